"""What is recommended: never what the numbers do not say, and never chosen on the test queries."""

import itertools
import re
from dataclasses import asdict

import pytest

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.conclusion import conclusion, costs, recommendation, verdict
from embedding_finetune.evaluation.results import candidates
from embedding_finetune.hub import model_size
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.retrieval.system import System


def pair(gap, p=0.001, half=0.02, planned=True, **more):
    return {"recall@1": {"difference": gap, "ci95": [gap - half, gap + half], "p_value": p, "planned": planned, **more}}


def row(label, recall, dev, **more):
    return {"label": label, "model": f"the model of {label}", "metrics": {"recall@1": recall}, "dev": {"mrr@10": dev},
            "ci95": {"recall@1": [recall - 0.03, recall + 0.03]}, "against": {},
            "system": asdict(System(label.removeprefix("hybrid_"), fused=label.startswith("hybrid_"))),
            **({"recipe": label} if label.startswith("neg") else {}), **more}


def compared(*rows, **how):
    """The rows with every pair compared, all with the same p-value, and with the best on dev as finalists."""
    for one, other in itertools.permutations(rows, 2):
        one["against"][other["label"]] = pair(one["metrics"]["recall@1"] - other["metrics"]["recall@1"], **how)
    for group in filter(None, candidates(rows)):
        selected(max(group, key=lambda row: row["dev"]["mrr@10"]))
    return list(rows)


def selected(row, queries=60, stability=0.8, is_default=False, on="dev"):
    row["finalist"] = {"queries": queries, "stability": stability, "is_default": is_default, "on": on}


def test_the_reference_is_recommended_where_fine_tuning_is_behind_it():
    rows = compared(row("bm25", 0.40, 0.5), row("raw", 0.42, 0.5), row("reference", 0.53, 0.6),
                    row("neg10", 0.47, 0.55, chosen=True))
    assert conclusion(rows) == (
        "Use the model of reference (reference, no training): recall@1 0.530 [0.500, 0.560]. On dev queries, reference "
        "is the best system without training and neg10 the best fine-tuned one; on test queries, neg10 has 0.470 "
        "against 0.530: worse (-0.060 [-0.080, -0.040]). BM25 alone has 0.400; reference differs from it by +0.130 "
        "[+0.110, +0.150]. Fine-tuning alone changed recall@1 from 0.420 (raw) to 0.470 (neg10): better (+0.050 "
        "[+0.030, +0.070]).")


def test_a_significantly_better_fine_tuned_system_is_recommended_with_its_out_of_domain_cost():
    far = {"general": {"recall@1": 0.2, "against": {"raw": pair(0.01), "reference": pair(-0.1)}}}
    rows = compared(row("bm25", 0.4, 0.5), row("raw", 0.3, 0.4), row("reference", 0.45, 0.5, eval_sets=far),
                    row("neg10", 0.5, 0.6, eval_sets=far), row("hybrid_neg10", 0.55, 0.7))
    text = conclusion(rows)
    assert text.startswith("Use the model of hybrid_neg10 (hybrid_neg10, fine-tuned)") and ": better (+0.1" in text
    assert text.endswith("Out of domain, on general, neg10 has 0.200. Its difference to raw there is +0.010 [-0.010, "
                         "+0.030]. Its difference to reference there is -0.100 [-0.120, -0.080].")
    rows[3]["metrics"]["recall@1"] = rows[4]["metrics"]["recall@1"] = 0.4
    assert "Out of domain" not in conclusion(compared(*rows))  # it is not recommended


@pytest.mark.parametrize("gap, half, p, expected", [
    (0.02, 0.02, 0.2, "not distinguishable (+0.020 [+0.000, +0.040]; about 2,300 "),
    (-0.03, 0.027, 0.06, "worse by its interval alone, not after correction (-0.030 [-0.057, -0.003]; about 2,300 "),
    (0.03, 0.027, 0.05, "better by its interval alone, not after correction (+0.030 [+0.003, +0.057]; about 2,300 "),
    (0.03, 0.031, 0.049, "better, though the interval includes 0 (+0.030 [-0.001, +0.061]; about 2,300 "),
    (0.0, 0.01, 0.01, "not distinguishable (+0.000 [-0.010, +0.010]; about 2,300 ")])
def test_the_conclusion_agrees_with_the_planned_table(gap, half, p, expected):
    rows = compared(row("bm25", 0.5, 0.6), row("raw", 0.3, 0.4), row("neg10", 0.5 + gap, 0.7), p=p, half=half,
                    queries_needed=2345)
    text = conclusion(rows)
    assert f" against 0.500: {expected}test queries would be needed)." in text
    assert text.startswith("Use the model of neg10") == (p < 0.05 and gap > 0) != ("BM25 alone" not in text)
    seen = verdict("neg10", rows[2]["against"]["bm25"]["recall@1"])
    for words in ("by its interval alone", "not distinguishable", "though the interval includes 0"):
        assert (words in expected) == (words in seen)


@pytest.mark.parametrize("test_of_neg10, test_of_reference", [(0.1, 0.9), (0.9, 0.1)])
def test_dev_selects_the_finalists_whatever_the_test_queries_say(test_of_neg10, test_of_reference):
    rows = compared(row("bm25", 0.5, 0.9), row("reference", test_of_reference, 0.3), row("neg10", test_of_neg10, 0.6),
                    row("neg50", 1 - test_of_neg10, 0.7))
    text = conclusion(rows)
    assert "On dev queries, bm25 is the best system without training and neg50 the best fine-tuned one" in text
    assert "reference" not in text and "neg10" not in text


def test_nothing_is_recommended_without_both_finalists_or_from_pseudo_queries():
    for label, missing in (("bm25", "fine-tuned model"), ("neg10", "system without training")):
        one = compared(row(label, 0.5, 0.5))
        assert conclusion(one) == f"Nothing to recommend yet: no {missing} has been evaluated."
    rows = compared(row("bm25", 0.40, 0.5), row("raw", 0.45, 0.5), row("neg10", 0.9, 0.9, pseudo_queries=0))
    assert conclusion(rows).startswith("Use the model of neg10") and "LEAKING_ROWS" not in conclusion(rows)
    assert conclusion([{**one, "leaking_pairs": 5} for one in rows]).endswith("fine-tuned models are too high.")
    rows[0]["pseudo_queries"] = 8
    assert conclusion(rows).startswith("Nothing to recommend. The test queries are pseudo-queries")


FEW = {"queries": 49, "is_default": True}
TOSS = {"queries": 80, "stability": 0.41, "is_default": True, "on": "dev and training"}


@pytest.mark.parametrize("ready, tuned, sentences, last", [
    ({"queries": 240, "on": "dev and training"}, FEW,
     "raw is the best system without training on 240 dev and training queries. neg10 is the default fine-tuned system: "
     "49 dev queries are too few to select one.",
     " raw was selected on 240 dev and training queries; 80% of selections on resampled dev and training queries "
     "agree."),
    (TOSS, FEW,
     "raw is the default system without training: 80 dev and training queries do not tell, since only 41% of "
     "selections on resampled dev and training queries agree. neg10 is the default fine-tuned system: 49 dev queries "
     "are too few to select one.", ""),
    (FEW, {"queries": 50},
     "raw is the default system without training: 49 dev queries are too few to select one. neg10 is the best "
     "fine-tuned system on 50 dev queries.", ""),
    ({}, {}, "On dev queries, raw is the best system without training and neg10 the best fine-tuned one; on test "
     "queries, neg10 has", " raw was selected on 60 dev queries; 80% of selections on resampled dev queries agree.")])
def test_a_default_is_said_to_be_one_and_why(ready, tuned, sentences, last):
    rows = compared(row("raw", 0.45, 0.5), row("neg10", 0.5, 0.6), p=0.2)
    for line, how in zip(rows, (ready, tuned)):
        selected(line, **how)
    found = recommendation(None, rows)
    assert sentences in found["sentence"] and found["sentence"] == conclusion(rows) + last
    how = rows[0]["finalist"]
    assert found == {"system": "raw", "trained": False, "chosen_on": how["queries"], "stability": how["stability"],
                     "is_default": how["is_default"], "metrics": {"recall@1": 0.45}, "sentence": found["sentence"]}


@pytest.mark.parametrize("seen, expected", [
    (pair(0.1, 0.049), "neg10 is better"),
    (pair(0.1, 0.049, half=0.11), "neg10 is better, though the interval includes 0"),
    (pair(0.1, 0.05),
     "neg10 is better by its interval alone, not after correction; difference too small to plan for"),
    (pair(0.1, 0.05, queries_needed=1472),
     "neg10 is better by its interval alone, not after correction; about 1,500 queries would be needed"),
    (pair(0.0, 0.01), "not distinguishable; difference too small to plan for"),
    (pair(0.01, 0.3, queries_needed=96), "not distinguishable; about 96 queries would be needed"),
    (pair(-0.1, 0.001, planned=False), "exploration: interval excludes 0"),
    (pair(-0.01, 0.001, planned=False), "exploration: interval includes 0")])
def test_verdicts(seen, expected):
    assert verdict("neg10", seen["recall@1"]) == expected


def test_costs_are_those_of_the_model_behind(built):
    """A random BERT plays both models; a fusion takes its model's time and BM25's."""
    size = model_size(base_encoder_config(built).name)
    assert size["vector"] == 64 and 100_000 < size["weights"] < 1_000_000
    rows = compared(row("bm25", 0.4, 0.4), row("raw", 0.3, 0.3, size=size), row("hybrid_raw", 0.5, 0.5))
    table = costs(built, read_data(built), rows)
    assert list(table.index) == ["bm25", "hybrid_raw"]
    assert (table.loc["bm25"].drop("ms per query") == "").all()
    assert table.loc["hybrid_raw", "bytes per passage"] == "256"
    assert table.loc["hybrid_raw", "MB of weights"] == f"{size['weights'] / 1e6:.0f}"
    assert all(re.fullmatch(r"\d+\.\d", value) for value in table["ms per query"])
    assert float(table.loc["hybrid_raw", "ms per query"]) > 0
    assert int(table.loc["hybrid_raw", "passages per second"]) > 0


def test_nothing_is_recommended_where_nothing_is_found():
    rows = compared(row("bm25", 0.0, 0.0), row("raw", 0.0, 0.0), row("neg10", 0.0, 0.0))
    assert conclusion(rows) == "Nothing to recommend: no system finds a positive for any dev query."
