"""What is recommended: never what the numbers do not say, and never chosen on the test queries."""

import itertools
import re
from dataclasses import asdict

import pytest

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.conclusion import costs, format_difference, recommendation, required_queries
from embedding_finetune.evaluation.tables import verdict
from embedding_finetune.hub import model_size
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.retrieval.system import System


def pair(gap, p=0.001, half=0.02, **more):
    return {"recall@1": {"difference": gap, "ci95": [gap - half, gap + half], "p_value": p, **more}}


def row(label, recall, dev, **more):
    return {"label": label, "model": f"the model of {label}", "metrics": {"recall@1": recall}, "dev": {"mrr@10": dev},
            "system": asdict(System(label.removeprefix("hybrid_"), fused=label.startswith("hybrid_"))), "against": {},
            **({"recipe": label} if label.startswith("neg") else {}), **more}


def compared(*rows, p=0.001, **more):
    """The rows with every pair compared, all with the same p-value."""
    for one, other in itertools.permutations(rows, 2):
        one["against"][other["label"]] = pair(one["metrics"]["recall@1"] - other["metrics"]["recall@1"], p, **more)
    return list(rows)


def test_a_little_gain_over_the_base_is_no_reason_where_the_reference_is_far_ahead():
    rows = compared(row("bm25", 0.40, 0.5), row("raw", 0.45, 0.5), row("reference", 0.53, 0.6),
                    row("neg10", 0.47, 0.55))
    text = recommendation(rows)
    assert text.startswith("Use reference (no training). On dev queries, reference (the model of reference) is the "
                           "best system without training ")
    assert ("and neg10 the best fine-tuned one. On test queries, neg10 has recall@1 0.470 against 0.530 of reference: "
            "worse (-0.") in text
    assert "BM25 alone has 0.400; reference differs from it by +0.130 [+0.110, +0.150]." in text


def test_the_fine_tuned_one_is_taken_where_it_is_better_beyond_doubt_with_its_out_of_domain_cost():
    far = {"general": {"recall@1": 0.2, "against": {"raw": pair(0.01), "reference": pair(-0.1)}}}
    rows = compared(row("bm25", 0.4, 0.5), row("raw", 0.3, 0.4), row("reference", 0.45, 0.5, eval_sets=far),
                    row("neg10", 0.5, 0.6, eval_sets=far), row("hybrid_neg10", 0.55, 0.7))
    text = recommendation(rows)
    assert text.startswith("Use hybrid_neg10 (fine-tuned).") and ": better (+0.1" in text
    assert text.endswith("Out of domain, on general, neg10 has 0.200: +0.010 [-0.010, +0.030] compared with raw, "
                         "-0.100 [-0.120, -0.080] compared with reference.")


def test_what_cannot_be_told_apart_leaves_what_is_there_already():
    rows = compared(row("bm25", 0.50, 0.6), row("raw", 0.3, 0.4), row("neg10", 0.52, 0.7), p=0.2, queries_needed=2345)
    text = recommendation(rows)
    assert text.startswith("Use bm25 (no training).")
    assert "BM25 alone" not in text and "Out of domain" not in text
    assert "not distinguishable (+0.020 [+0.000, +0.040]; about 2,300 test queries would be needed)." in text


@pytest.mark.parametrize("gap, half, p, said", [
    (-0.03, 0.027, 0.06, "worse by its interval alone, not after correction (-0.030 [-0.057, -0.003]; about 900 "),
    (0.03, 0.027, 0.05, "better by its interval alone, not after correction (+0.030 [+0.003, +0.057]; about 900 "),
    (0.03, 0.031, 0.049, "better, though the interval includes 0 (+0.030 [-0.001, +0.061]; about 900 "),
    (0.03, 0.031, 0.05, "not distinguishable (+0.030 [-0.001, +0.061]; about 900 "),
    (0.0, 0.01, 0.01, "not distinguishable (+0.000 [-0.010, +0.010]; about 900 ")])
def test_the_sentence_says_what_the_planned_table_says(gap, half, p, said):
    rows = compared(row("bm25", 0.5, 0.6), row("raw", 0.3, 0.4), row("neg10", 0.5 + gap, 0.7), p=p, half=half,
                    queries_needed=900, planned=True)
    text = recommendation(rows)
    assert f" against 0.500 of bm25: {said}test queries would be needed)." in text
    assert text.startswith("Use neg10") == (p < 0.05 and gap > 0)
    seen = rows[2]["against"]["bm25"]["recall@1"]
    assert ("by its interval alone" in said) == ("by its interval alone" in verdict("neg10", seen))
    assert ("not distinguishable" in said) == ("not distinguishable" in verdict("neg10", seen))


@pytest.mark.parametrize("test_of_neg10, test_of_reference", [(0.1, 0.9), (0.9, 0.1)])
def test_dev_chooses_who_meets_whatever_the_test_queries_say(test_of_neg10, test_of_reference):
    rows = compared(row("bm25", 0.5, 0.9), row("reference", test_of_reference, 0.3), row("neg10", test_of_neg10, 0.6),
                    row("neg50", 1 - test_of_neg10, 0.7))
    text = recommendation(rows)
    assert "On dev queries, bm25 (the model of bm25) is the best system without training and neg50 the best f" in text
    assert "reference" not in text and "neg10" not in text


@pytest.mark.parametrize("gap", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("p", [0.001, 0.049, 0.05, 0.9])
def test_training_is_advised_for_a_real_gain_alone(gap, p):
    rows = compared(row("bm25", 0.5, 0.5), row("neg10", 0.5 + gap, 0.6), p=p)
    assert recommendation(rows).startswith("Use neg10") == (gap > 0 and p < 0.05)


def test_what_is_missing_is_said():
    for label, missing in (("bm25", "fine-tuned model"), ("neg10", "system without training")):
        expected = f"Nothing to recommend yet: no {missing} has been evaluated."
        assert recommendation([row(label, 0.5, 0.5)]) == expected


def test_numbers_for_people():
    assert format_difference({"difference": -0.01234, "ci95": [-0.05, 0.0]}) == "-0.012 [-0.050, +0.000]"
    assert required_queries({"queries_needed": 12345}, "test ") == "about 12,000 test queries would be needed"
    assert required_queries({}) == ""


def test_costs_are_those_of_the_model_behind(built):
    """A random BERT plays both models; a fusion takes its model's time and BM25's."""
    size = model_size(base_encoder_config(built).name)
    assert size["vector"] == 64 and 100_000 < size["weights"] < 1_000_000
    rows = [row("bm25", 0.4, 0.4), row("raw", 0.3, 0.3, size=size), row("hybrid_raw", 0.5, 0.5)]
    table = costs(built, read_data(built), rows)
    assert list(table.index) == ["bm25", "hybrid_raw"]
    assert (table.loc["bm25"].drop("ms per query") == "").all()
    assert table.loc["hybrid_raw", "bytes per passage"] == "256"
    assert table.loc["hybrid_raw", "MB of weights"] == f"{size['weights'] / 1e6:.0f}"
    assert all(re.fullmatch(r"\d+\.\d", value) for value in table["ms per query"])
    assert float(table.loc["hybrid_raw", "ms per query"]) > 0
    assert int(table.loc["hybrid_raw", "passages per second"]) > 0


def test_nothing_is_recommended_from_pseudo_queries():
    rows = compared(row("bm25", 0.40, 0.5), row("raw", 0.45, 0.5), row("neg10", 0.9, 0.9))
    assert recommendation(rows).startswith("Use neg10") and "LEAKING_ROWS" not in recommendation(rows)
    assert recommendation([{**one, "leaking_pairs": 5} for one in rows]).endswith("fine-tuned models are too high.")
    said = recommendation([{**one, "pseudo_queries": 8} for one in rows])
    assert said.startswith("Nothing to recommend. The test queries are pseudo-queries")
