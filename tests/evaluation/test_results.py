"""What is saved, what still fits today, what dev chooses, and which comparisons are planned."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import Collection, write_collection, write_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.tables import conclusion, write_comparison
from embedding_finetune.files import UserError, write_json
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.trec import read_run

QUERIES = {f"q{number}": f"question {number}" for number in range(6)}
PARTS = dict(zip(QUERIES, ["test", "test", "dev", "dev", "dev", "train"]))
CORPUS = {f"p{number}": f"passage {number}" for number in range(6)}
DATA = Collection(QUERIES, CORPUS, {f"q{number}": {f"p{number}": 1} for number in range(6)}, PARTS)


@pytest.fixture
def measured(settings):
    """The tiny experiment with six queries and passages, two queries of them test and three dev."""
    write_data(settings, DATA, {"source": "six"})
    return settings


def run(part, right):
    """A run of a part that has the first `right` queries right, and the others at the end of the corpus."""
    ranked = {}
    for number, query in enumerate(DATA.split(part).queries):
        own = f"p{query[1:]}"
        others = [passage for passage in CORPUS if passage != own]
        order = [own, *others] if number < right else [*others, own]
        ranked[query] = {passage: 1 / place for place, passage in enumerate(order, start=1)}
    return ranked


def finished(settings, label, pooling="mean"):
    """A fine-tuned model as the trainer leaves it, as far as an evaluation looks at it."""
    folder = settings.output_dir / label
    shutil.copytree(settings.base_model, folder)
    write_json(folder / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""},
                                         {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
                                         {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}])
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": pooling == "mean",
                                                      "pooling_mode_cls_token": pooling == "cls"})
    (folder / "README.md").write_text("# Model\n\n## Metrics\n\nNot evaluated yet.\n\n## Dev curve\n")
    return folder


class Model:
    """What `results.model_metadata` asks of an encoder, without the model in memory."""

    def __init__(self, settings, label):
        self.config = load_encoder_config(settings, label)
        self.revision = model_content(self.config.name)


def save(settings, label, dev=1, test=1):
    """Save a result with so many dev and test queries right; a label with a model is one of a model."""
    more = {"model": "BM25"} if label == "bm25" else results.model_metadata(settings, Model(settings, label))
    return results.save_result(settings, DATA, label, {"dev": run("dev", dev), "test": run("test", test)}, **more)


def save_hybrid(settings, label, dev=1, test=1):
    of = Model(settings, label)
    return results.save_result(settings, DATA, f"hybrid_{label}", {"dev": run("dev", dev), "test": run("test", test)},
                               model="BM25 + it", hybrid_of=label, used=asdict(of.config), content=of.revision)


def test_a_result_has_metrics_of_both_parts_and_runs_for_every_tool(measured):
    few = {"test": {query: {"p0": 3.0} for query in DATA.split("test").queries}, "dev": run("dev", 2)}
    folder = finished(measured, "neg10")
    metadata = results.model_metadata(measured, Model(measured, "neg10"))
    result = results.save_result(measured, DATA, "neg10", few, **metadata)
    assert result["metrics"]["recall@1"] == 0.5 and result["dev"]["recall@1"] == pytest.approx(2 / 3)
    assert (result["queries"], result["corpus"], result["recipe"]) == (2, 6, "neg10")
    assert read_checksummed(measured.output_dir / "results" / "neg10.json") == result
    padded = read_run(measured.output_dir / "runs" / "neg10.trec")["q1"]
    assert list(padded) == ["p0", "p1", "p2", "p3", "p4", "p5"] and padded["p1"] < 0  # not found, and it says so
    assert set(read_run(measured.output_dir / "runs" / "dev" / "neg10.trec")) == {"q2", "q3", "q4"}
    card = (folder / "README.md").read_text()
    assert "| recall@1 | 0.5000 |" in card and "Not evaluated yet" not in card and "## Dev curve" in card


def test_results_are_compared_in_the_order_of_the_story(measured):
    for label in ("neg10", "neg50"):
        finished(measured, label)
    for label, right in (("reference", 1), ("neg50", 1), ("neg10", 2), ("raw", 0), ("bm25", 1)):
        save(measured, label, test=right)
    save_hybrid(measured, "neg10")
    rows, left_out = results.compare(measured, DATA)
    assert [row["label"] for row in rows] == ["bm25", "raw", "neg10", "neg50", "reference", "hybrid_neg10"]
    assert left_out == []
    raw, neg10 = rows[1:3]
    assert raw["ci95"]["recall@1"] == [0, 0] and neg10["against"]["raw"]["recall@1"]["difference"] == 1
    write_comparison(measured, rows)
    assert json.loads((measured.output_dir / "results" / "comparison.json").read_text()) == rows
    added = "ci95", "against", "chosen", "finalist", "eval_sets"
    assert results.load_results(measured)[0] == [  # the comparison itself is no result
        {key: value for key, value in row.items() if key not in added} for row in rows]


def test_dev_chooses_the_fine_tuned_model_not_test(measured):
    """neg10 is better on test, neg50 on dev; a repetition and a hybrid are better still, and take no part."""
    measured = replace(measured, seeds=2)
    for label in ("neg10", "neg50", "neg50_seed43"):
        finished(measured, label)
    for label, dev, test in (("bm25", 3, 0), ("raw", 3, 0), ("neg10", 1, 2), ("neg50", 2, 1), ("neg50_seed43", 3, 2),
                             ("reference", 3, 2)):
        save(measured, label, dev, test)
    save_hybrid(measured, "neg10", 3, 2)
    rows, _ = results.compare(measured, DATA)
    assert results.best_fine_tuned(rows)["label"] == "neg50"
    assert [row["label"] for row in rows if row["chosen"]] == ["neg50"]
    planned = {frozenset((row["label"], other)) for row in rows for other, pair in row["against"].items()
               if pair["recall@1"]["planned"]}
    assert planned == set(map(frozenset, [("neg50", "raw"), ("neg50", "bm25"), ("neg50", "reference"),
                                          ("neg50", "neg10"), ("hybrid_neg10", "bm25")]))
    assert [row["label"] for row in rows if row["finalist"]] == ["bm25", "hybrid_neg10"]
    assert "neg50, the best on dev queries, is" in conclusion(rows)


def test_the_planned_comparisons():
    def result(label, dev=0.5, **more):
        return {"label": label, "dev": {"mrr@10": dev, "recall@1": 1 - dev}, **more}

    tuned = [result("neg10", 0.6, recipe="neg10"), result("hard", 0.7, recipe="hard"), result("kd", 0.5, recipe="kd"),
             result("hard_seed43", 0.9, recipe="hard"), result("hybrid_hard", 0.95, hybrid_of="hard")]
    others = [result("bm25"), result("raw"), result("reference"), result("extra", 0.9)]
    assert results.planned_pairs(others + tuned) == [("hard", "raw"), ("hard", "bm25"), ("hard", "reference"),
                                                     ("hard", "neg10"), ("kd", "neg10"), ("hybrid_hard", "extra")]
    assert results.planned_pairs(tuned[:1] + others[:1]) == [("neg10", "bm25")]  # once, though it is the last one, too
    assert results.planned_pairs(tuned[1:3]) == []  # neither a rival nor neg10
    assert results.planned_pairs(others) == [] and results.best_fine_tuned(others) is None


def result(label, dev, **more):
    return {"label": label, "dev": {"mrr@10": dev}, **more}


def test_a_fraction_of_the_queries_is_a_point_of_the_curve_and_no_candidate():
    rows = [result("neg10", 0.6, recipe="neg10", share=1.0), result("half", 0.8, recipe="half", share=0.5),
            result("hybrid_half", 0.9, hybrid_of="half"), result("raw", 0.3),
            result("hybrid_raw", 0.4, hybrid_of="raw")]
    assert results.best_fine_tuned(rows)["label"] == "neg10"
    assert results.planned_pairs(rows) == [("neg10", "raw"), ("neg10", "hybrid_raw")]
    assert [row["label"] for row in results.finalists(rows)] == ["hybrid_raw", "neg10"]
    assert results.finalists(rows[3:]) == (rows[4], None) and results.finalists([]) == (None, None)


def test_a_compiled_form_of_a_fine_tuned_model_is_no_system_without_training():
    rows = [result("bm25", 0.3), result("reference", 0.4), result("neg10", 0.6, recipe="neg10"),
            result("neg10-onnx", 0.7, compiled_of="neg10"), result("hybrid_neg10-onnx", 0.9, hybrid_of="neg10-onnx")]
    assert [row["label"] for row in results.finalists(rows)] == ["reference", "neg10"]
    assert results.planned_pairs(rows)[-1] == ("neg10", "reference")
    rows.append(result("reference-onnx", 0.5, compiled_of="reference"))
    assert [row["label"] for row in results.finalists(rows)] == ["reference-onnx", "neg10"]
    assert [row and row["label"] for row in results.finalists(rows[3:4])] == [None, None]  # neg10's result is left out


def test_a_reranker_that_was_trained_makes_a_system_that_needs_training():
    """Here by token embeddings of neg10 on the hits of the reference; a cross-encoder has no result of its own."""
    of = {"hybrid_of": "reference"}
    rows = [result("reference", 0.1), result("neg10", 0.2, recipe="neg10"),
            result("hybrid_late_reference", 0.3, second={"model": "reference"}, **of),
            result("hybrid_late_neg10_on_reference", 0.5, second={"model": "neg10"}, **of),
            result("hybrid_rerank_mine_on_reference", 0.4, second={"model": "mine"}, **of)]
    assert [row["label"] for row in results.finalists(rows)] == ["hybrid_late_reference",
                                                                 "hybrid_late_neg10_on_reference"]
    assert results.finalists([rows[0], rows[4]])[1]["label"] == "hybrid_rerank_mine_on_reference"


def trained_again(settings):
    weights = settings.output_dir / "neg10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def used_otherwise(settings):
    config = settings.output_dir / "neg10" / "1_Pooling" / "config.json"
    write_json(config, {"pooling_mode_cls_token": True})


def gone(settings):
    shutil.rmtree(settings.output_dir / "neg10")


@pytest.mark.parametrize("change, reason", [(trained_again, "its model has changed since"),
                                            (used_otherwise, "it was measured with another pooling"),
                                            (gone, "its model cannot be read (")])
def test_a_result_that_no_longer_fits_its_model_is_left_out_by_name(measured, change, reason):
    finished(measured, "neg10")
    for label in ("bm25", "raw", "neg10"):
        save(measured, label)
    save_hybrid(measured, "neg10")
    save_hybrid(measured, "raw")
    change(measured)
    rows, left_out = results.compare(measured, DATA)
    assert [row["label"] for row in rows] == ["bm25", "raw", "hybrid_raw"]
    assert len(left_out) == 2 and all("\n" not in line for line in left_out)
    assert [line.startswith(f"{label} is left out: {reason}") and line.endswith("; evaluate it again")
            for label, line in zip(("hybrid_neg10", "neg10"), left_out)] == [True, True]


def test_a_setting_of_use_leaves_out_the_models_it_is_about(measured):
    for label in ("bm25", "raw", "reference"):
        save(measured, label)
    rows, left_out = results.compare(replace(measured, query_prompt="ask: "), DATA)
    assert [row["label"] for row in rows] == ["bm25", "reference"]
    assert left_out == ["raw is left out: it was measured with another query_prompt; evaluate it again"]
    assert [row["label"] for row in results.compare(measured, DATA)[0]] == ["bm25", "raw", "reference"]


def test_a_result_of_other_metrics_is_left_out(measured, monkeypatch):
    save(measured, "bm25")
    monkeypatch.setitem(results.MEASURES, "recall@5", results.MEASURES["recall@10"])
    left_out = results.load_results(measured)[1]
    assert left_out == ["bm25 is left out: it was measured with other metrics; evaluate it again"]


def test_results_of_other_data_are_left_out_all_of_them_even_bm25s(measured, monkeypatch):
    save(measured, "bm25"), save(measured, "raw")
    other = replace(DATA, corpus=CORPUS | {"p6": "one more passage"})
    monkeypatch.setenv("OVERWRITE", "1")
    write_data(measured, other, {"source": "seven"})
    assert results.load_results(measured) == ([], [f"{label} is left out: it was measured on other data; evaluate it "
                                                   "again" for label in ("bm25", "raw")])
    with pytest.raises(UserError, match="has no result for the current data: run an evaluation notebook"):
        results.compare(measured, other)
    write_data(measured, DATA, {"source": "six"})  # the same files again are the same data
    assert [result["label"] for result in results.load_results(measured)[0]] == ["bm25", "raw"]


def test_a_result_of_bm25_and_its_fusions_is_of_a_language(measured):
    save(measured, "bm25"), save(measured, "raw"), save_hybrid(measured, "raw")
    german = replace(measured, bm25_language="de")
    assert results.load_results(german)[1] == [
        f"{label} is left out: it was measured with BM25_LANGUAGE=auto; evaluate it again"
        for label in ("bm25", "hybrid_raw")]
    assert [result["label"] for result in results.load_results(german)[0]] == ["raw"]


def test_runs_and_results_that_do_not_belong_together_are_named(measured):
    save(measured, "bm25")
    path = measured.output_dir / "runs" / "bm25.trec"
    saved = path.read_text()
    path.write_text(saved.replace("q1 ", "q3 "))
    with pytest.raises(UserError, match="bm25.trec ranks other queries than .* evaluate bm25 again"):
        results.compare(measured, DATA)
    path.write_text("".join(f"{query} Q0 p5 1 1.0 bm25\n" for query in DATA.split("test").queries))
    with pytest.raises(UserError, match="bm25.trec is not the run that was measured: evaluate bm25 again"):
        results.compare(measured, DATA)
    result = measured.output_dir / "results" / "bm25.json"
    write_checksummed(result, read_checksummed(result) | {"runs": {}})  # as an earlier version wrote it
    with pytest.raises(UserError, match="the run and the result of bm25 do not match: evaluate it again"):
        results.compare(measured, DATA)
    path.unlink()
    with pytest.raises(UserError, match="bm25.trec does not exist"):
        results.compare(measured, DATA)
    write_checksummed(result, read_checksummed(result) | {"label": "raw"})  # two that were exchanged
    with pytest.raises(UserError, match="bm25.json is not a result, or is damaged"):
        results.load_results(measured)
    (measured.output_dir / "results" / "bm25.json").write_text("[]")
    with pytest.raises(UserError, match="bm25.json is not a result, or is damaged"):
        results.load_results(measured)


def test_a_repetition_is_of_its_recipe_and_ready_made_models_are_of_none(measured):
    finished(measured, "neg10_seed43")
    repeated = results.model_metadata(replace(measured, seeds=2), Model(measured, "neg10_seed43"))
    assert repeated["recipe"] == "neg10" and repeated["about"] == "10 random negatives a query"
    assert repeated["used"]["pooling"] == "mean" and repeated["note"].endswith("this data set's training part")
    assert "recipe" not in results.model_metadata(measured, Model(measured, "reference"))


def test_other_test_sets_are_measured_on_their_own_corpus(measured, tmp_path):
    far = Collection({"x": "falcon at dawn", "y": "no word of it"}, {"a": "the falcon sleeps at dawn", "b": "a willow"},
                     {"x": {"a": 1}, "y": {"b": 1}}, {"x": "test", "y": "test"})
    write_collection(tmp_path / "far", far)
    retriever = BM25().index(CORPUS)
    assert results.evaluate_out_of_domain(measured, retriever) == {}
    asked = replace(measured, out_of_domain_sets=str(tmp_path / "far"))
    found = results.evaluate_out_of_domain(asked, retriever)
    assert list(retriever.ids) == list(CORPUS)  # the retriever itself keeps its corpus
    assert list(found) == [str(tmp_path / "far")] and found[str(tmp_path / "far")]["recall@1"] == 0.5
    each = {query: values["recall@1"] for query, values in found[str(tmp_path / "far")]["each"].items()}
    assert each == {"x": 1.0, "y": 0.0}
    (tmp_path / "far" / "qrels" / "test.tsv").rename(tmp_path / "far" / "qrels" / "dev.tsv")
    with pytest.raises(UserError, match="far has no qrels/test.tsv"):
        results.evaluate_out_of_domain(asked, retriever)
    with pytest.raises(UserError, match="nowhere/corpus.jsonl does not exist"):
        results.evaluate_out_of_domain(replace(measured, out_of_domain_sets="nowhere"), retriever)


def test_what_is_lost_out_of_domain_is_a_paired_difference_on_the_same_queries():
    def row(label, *values):
        each = {f"q{number}": {"recall@1": value} for number, value in enumerate(values)}
        return {"label": label, "eval_sets": {"far": {"recall@1": sum(values) / len(values), "each": each}}}

    raw, tuned, reference = row("raw", 1, 1, 1, 0), row("neg10", 0, 0, 1, 0), row("reference", 1, 1)
    far = results.compare_out_of_domain(tuned, [raw, tuned, reference, {"label": "hybrid_raw"}], seed=1)["far"]
    assert far["recall@1"] == 0.25 and set(far["against"]) == {"raw"}  # the reference answered other queries
    seen = far["against"]["raw"]["recall@1"]
    assert seen["difference"] == -0.5 and seen["ci95"] == [-1, 0] and not seen["planned"] and "each" not in far
    assert results.compare_out_of_domain({"label": "hybrid_raw"}, [raw], seed=1) == {}
    old = {"label": "neg10", "eval_sets": {"far": {"recall@1": 0.5}}}  # of a version that kept no values
    assert results.compare_out_of_domain(old, [raw, old], seed=1) == {"far": {"recall@1": 0.5}}
