"""What systems are called: a model that is not used as published says so wherever a reader meets it."""

import itertools
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from embedding_finetune.evaluation import plots, tables
from embedding_finetune.evaluation.conclusion import conclusion
from embedding_finetune.evaluation.names import baseline, name_of, with_names
from embedding_finetune.evaluation.report_page import ReportData, page_data
from embedding_finetune.evaluation.results import planned_pairs
from embedding_finetune.models.encoder_config import display_name, load_encoder_config, usage
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import Settings

MISUSED = "raw (CLS pooling, 96 tokens, not as published)"


def row(label, recall, dev, **more):
    system = System(label.removeprefix("hybrid_"), fused=label.startswith("hybrid_"))
    return {"label": label, "model": f"the model of {label}", "metrics": {"recall@1": recall}, "dev": {"mrr@10": dev},
            "ci95": {"recall@1": [recall - 0.03, recall + 0.03]}, "against": {}, "system": asdict(system),
            **({"recipe": label} if label.startswith("neg") else {}), **more}


def compared(*rows):
    """The rows with every pair compared."""
    for one, other in itertools.permutations(rows, 2):
        gap = one["metrics"]["recall@1"] - other["metrics"]["recall@1"]
        one["against"][other["label"]] = {"recall@1": {
            "difference": gap, "ci95": [gap - 0.02, gap + 0.02], "p_value": 0.001, "planned": True}}
    return list(rows)


def model(label, recall, dev, weights, unpublished="", **more):
    """The row of a model alone."""
    return row(label, recall, dev, unpublished=unpublished, settings={"BASE_MODEL": "bundled"},
               inputs={"models": {label: {"revision": weights}}}, **more)


def experiment(*others):
    """A base used with another pooling, a model fine-tuned from it, and `others`; hybrid_raw and neg10 are the best."""
    best = {"finalist": {"on": "dev", "queries": 60, "stability": 1.0, "is_default": False}}
    rows = compared(row("bm25", 0.4, 0.5), model("raw", 0.3, 0.4, "a", "CLS pooling, 96 tokens"),
                    row("hybrid_raw", 0.45, 0.6, **best), *others, model("neg10", 0.5, 0.6, "b", chosen=True, **best))
    return with_names(rows)


def test_a_fusion_and_a_reranked_system_are_called_after_their_models():
    rows = [{"label": "late_raw_on_x", "system": asdict(System("x", reranker="late", reranker_model="raw"))},
            {"label": "raw-onnx", "system": asdict(System("raw", "onnx"))}]
    names = list(map(name_of, with_names(experiment() + rows)))
    note = MISUSED.removeprefix("raw")
    assert names == ["bm25", MISUSED, f"hybrid_raw{note}", "neg10", f"late_raw_on_x{note}", f"raw-onnx{note}"]
    assert name_of({"label": "raw"}) == "raw"


def test_tables_plots_page_and_sentences_use_the_names():
    rows = experiment()
    for one in rows:
        one["by_corpus_size"] = [{"passages": 9, "recall@1": 0.5}]
        one["metrics"] |= {"mrr@10": 0.5, "recall@10": 0.5}
        one["ci95"] |= dict.fromkeys(("mrr@10", "recall@10"), [0.4, 0.6])
        for pair in one["against"].values():
            pair["recall@1"] |= {"wins": 1, "ties": 1, "losses": 1}
    rows[3]["eval_sets"] = {"general": {"recall@1": 0.5, "against": {"raw": rows[3]["against"]["raw"]}}}
    assert MISUSED in tables.comparison_table(rows).index
    pairs = tables.pairs_table(rows)
    assert f"neg10 - {MISUSED}" in set(pairs["pair"]) and not (pairs["pair"] == "neg10 - raw").any()
    hybrid = MISUSED.replace("raw", "hybrid_raw")
    assert f"{hybrid} is better" in set(pairs["verdict"])
    assert set(tables.as_table(rows)["system"]) == {one["model"] for one in rows}
    assert f"general, difference to {MISUSED}" in tables.out_of_domain_table(rows)
    ticks = [tick.get_text() for tick in plots.plot(rows).axes[0].get_yticklabels()]
    assert MISUSED.replace(" (", "\n(") in ticks
    legend = [text.get_text() for text in plots.plot_by_corpus_size(rows).legends[0].get_texts()]
    assert MISUSED in legend
    plt.close("all")
    text = conclusion(rows)
    assert f"{hybrid} is the best system without training" in text or f"Use the model of hybrid_raw ({hybrid}" in text


def test_labels_on_the_report_page_are_names():
    rows = experiment()
    evidence = ReportData(rows, ["q"], ["query"], ["passage", "other"], np.array([[0, 0]]),
                          {one["label"]: np.array([[0, 1, *[-1] * 98]], np.int32) for one in rows})
    data = page_data(evidence, {}, [])
    assert data["labels"] == [one["label"] for one in data["rows"]] == list(map(name_of, rows))
    assert set(data["labels"]) == set(data["ranks"]) == set(data["top"]) == set(data["recall"]) == set(data["doubts"])
    assert set(data["rows"][0]["against"]) == set(data["labels"][1:])


def test_a_fine_tuned_model_is_compared_with_its_base_as_published():
    rows = experiment(model("reference", 0.45, 0.5, "a"), model("other", 0.9, 0.1, "c"))
    assert baseline(rows)["label"] == "reference"
    assert "Fine-tuning alone changed recall@1 from 0.450 (reference) to 0.500 (neg10)" in conclusion(rows)
    rows = experiment(model("reference", 0.9, 0.1, "c"), model("published", 0.45, 0.5, "a"))
    assert baseline(rows)["label"] == "published" and ("neg10", "published") in planned_pairs(rows)
    assert [pair for pair in planned_pairs(rows) if pair[0] == "neg10"][:4] == [
        ("neg10", other) for other in ("raw", "bm25", "reference", "published")]


def test_without_it_the_conclusion_says_what_the_gain_is_worth():
    text = conclusion(experiment(model("reference", 0.9, 0.1, "c")))
    assert (f"Fine-tuning alone changed recall@1 from 0.300 ({MISUSED}) to 0.500 (neg10): better (+0.200 [+0.180, "
            "+0.220]). That is no fair baseline: EXTRA_MODELS=published=bundled evaluates it as published.") in text
    as_published = with_names([model("raw", 0.3, 0.4, "a"), model("reference", 0.3, 0.4, "a")])
    assert baseline(as_published)["label"] == "raw" and baseline(as_published[1:]) is None


@pytest.mark.parametrize("profile, label, expected, unpublished", [
    ("demo", "raw", "all-MiniLM-L6-v2 (not as published: CLS pooling, query prompt 'Represent this …', 48/96 tokens)",
     "CLS pooling, 48/96 tokens"),
    ("demo", "reference", "all-MiniLM-L6-v2 (mean pooling, 256 tokens)", ""),
    ("laptop", "raw", "all-MiniLM-L6-v2 (mean pooling, 256 tokens)", ""),
    ("laptop", "reference", "all-MiniLM-L6-v2 (mean pooling, 256 tokens)", "")])
def test_the_demo_declares_its_handicap_and_the_laptop_has_none(profile, label, expected, unpublished):
    settings = Settings.load(profile, {"DATASET": "faq.csv"})
    config = load_encoder_config(settings, label)
    assert (display_name(config), config.unpublished) == (expected, unpublished)
    assert usage(replace(config, query_prompt="", passage_prompt="p: "), "query_prompt", "passage_prompt") == (
        "no query prompt, passage prompt 'p:'")
