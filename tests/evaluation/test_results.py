"""What is saved, what still fits today, what dev chooses, and which comparisons are planned."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import Collection, write_collection, write_data
from embedding_finetune.evaluation import results, selection
from embedding_finetune.evaluation.evaluate import evaluate_out_of_domain, model_metadata
from embedding_finetune.evaluation.selection import selection_queries
from embedding_finetune.evaluation.tables import write_comparison
from embedding_finetune.files import UserError, sha256, write_json
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.system import System
from embedding_finetune.retrieval.trec import read_run

QUERIES = {f"q{number}": f"question {number}" for number in range(6)}
PARTS = dict(zip(QUERIES, ["test", "test", "dev", "dev", "dev", "train"]))
CORPUS = {f"p{number}": f"passage {number}" for number in range(6)}
DATA = Collection(QUERIES, CORPUS, {f"q{number}": {f"p{number}": 1} for number in range(6)}, PARTS)


@pytest.fixture
def few(settings):
    """The tiny experiment with six queries and passages, two queries of them test and three dev."""
    write_data(settings, DATA, {"source": "six"})
    return settings


@pytest.fixture
def measured(few, monkeypatch):
    """The same where three dev queries are enough for a selection."""
    monkeypatch.setattr(selection, "MIN_QUERIES", 3)
    return few


def run(part, right, trained=True):
    """A run of a part that has the first `right` queries right, and the others at the end of the corpus."""
    ranked = {}
    for number, query in enumerate((selection_queries(DATA, trained) if part == "dev" else DATA.split(part)).queries):
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


def metadata(settings, label):
    return model_metadata(settings, load_encoder_config(settings, label))


def save(settings, label, dev=1, test=1, **system):
    """Save a result with so many dev and test queries right, of a retriever unless `system` says otherwise."""
    system = System(label, **system)
    more = metadata(settings, label) if system.has_model and system.is_single else {"model": "BM25"}
    runs = {"dev": run("dev", dev, label.startswith("neg")), "test": run("test", test)}
    return results.save_result(settings, DATA, system, runs, inputs=results.inputs_of(settings, system), **more)


def save_hybrid(settings, label, dev=1, test=1):
    return save(settings, label, dev, test, fused=True)


def test_a_result_has_metrics_of_both_parts_and_runs_for_every_tool(measured):
    few = {"test": {query: {"p0": 3.0} for query in DATA.split("test").queries}, "dev": run("dev", 2)}
    folder = finished(measured, "neg10")
    result = results.save_result(measured, DATA, System("neg10"), few, inputs={}, **metadata(measured, "neg10"))
    assert result["metrics"]["recall@1"] == 0.5 and result["dev"]["recall@1"] == pytest.approx(2 / 3)
    assert (result["queries"], result["corpus"], result["recipe"]) == (2, 6, "neg10")
    assert result["system"] == asdict(System("neg10")) and results.system_of(result) == System("neg10")
    assert read_checksummed(measured.output_dir / "results" / "neg10.json") == result
    padded = read_run(measured.output_dir / "runs" / "neg10.trec")["q1"]
    assert list(padded) == ["p0", "p1", "p2", "p3", "p4", "p5"] and padded["p1"] < 0  # not found, and it says so
    assert set(read_run(measured.output_dir / "runs" / "dev" / "neg10.trec")) == {"q2", "q3", "q4"}
    card = (folder / "README.md").read_text()
    assert "| recall@1 | 0.5000 |" in card and "Not evaluated yet" not in card and "## Dev curve" in card


def test_a_result_says_what_was_left_out_and_what_leaks(measured):
    leaking = replace(DATA, leaking=2, copies={"q1": ["p0", "p3"], "q2": ["p0"], "q5": ["p1"]})
    runs = {"test": {query: {} for query in DATA.split("test").queries}, "dev": run("dev", 2)}
    result = results.save_result(measured, leaking, System("bm25"), runs, inputs={}, model="BM25")
    assert (result["copies_left_out"], result["leaking_pairs"]) == (2 + ("q5" in runs["test"]), 2)
    assert "2 training pairs share" in results.caveats(result) and results.caveats({}) == ""
    assert list(read_run(measured.output_dir / "runs" / "bm25.trec")["q1"]) == ["p1", "p2", "p4", "p5"]


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
    found = write_comparison(measured, DATA, rows)
    assert found == json.loads((measured.output_dir / "results" / "recommendation.json").read_text())
    assert (found["system"], found["trained"], found["chosen_on"]) == ("bm25", False, 3)  # the first of equals on dev
    assert found["stability"] == 1 and found["metrics"] == rows[0]["metrics"]
    assert "bm25 was selected on 3 dev queries; 100% of selections on resampled dev queries agree" in found["sentence"]
    assert json.loads((measured.output_dir / "results" / "comparison.json").read_text()) == rows
    added = "ci95", "against", "chosen", "finalist", "eval_sets", "name"
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


def test_few_dev_queries_select_nothing_fine_tuned_and_get_the_training_queries_for_the_others(few):
    for label in ("neg10", "neg50"):
        finished(few, label)
    for label, dev in (("bm25", 4), ("raw", 3), ("reference", 3), ("neg10", 1), ("neg50", 3)):
        save(few, label, dev)
    save_hybrid(few, "reference", 2)
    save_hybrid(few, "neg10", 2)
    rows, _ = results.compare(few, DATA)
    found = {row["label"]: row["finalist"] for row in rows if row["finalist"]}
    assert {label: (how["queries"], how["on"], how["is_default"]) for label, how in found.items()} == {
        "hybrid_reference": (4, "dev and training", True), "hybrid_neg10": (3, "dev", True)}
    assert rows[0]["dev"]["recall@1"] == 1 and set(read_run(few.output_dir / "runs" / "dev" / "bm25.trec")) == {
        "q2", "q3", "q4", "q5"}
    sentence = write_comparison(few, DATA, rows)["sentence"]
    assert "hybrid_reference is the default system without training: 4 dev and training queries are too few" in sentence


def result(system, dev, **more):
    """A result of a system, or of the retriever with this label."""
    system = system if isinstance(system, System) else System(system)
    return {"label": system.label, "system": asdict(system), "dev": {"mrr@10": dev, "recall@1": 1 - dev}, **more}


TUNED = [result("neg10", 0.6, recipe="neg10"), result("hard", 0.7, recipe="hard"), result("kd", 0.5, recipe="kd"),
         result("hard_seed43", 0.9, recipe="hard"), result(System("hard", fused=True), 0.95)]
BASELINES = [result("bm25", 0.5), result("raw", 0.5), result("reference", 0.5), result("extra", 0.9)]
FRACTIONS = [result("raw", 0.3), result(System("raw", fused=True), 0.4),
             result("neg10", 0.6, recipe="neg10", train_fraction=1.0),
             result("half", 0.8, recipe="half", train_fraction=0.5), result(System("half", fused=True), 0.9)]
COMPILED = [result("bm25", 0.3), result("reference", 0.4), result("neg10", 0.6, recipe="neg10"),
            result(System("neg10", "onnx"), 0.7), result(System("neg10", "onnx", fused=True), 0.9)]
RERANKED = [result("reference", 0.1), result("neg10", 0.2, recipe="neg10"),
            *(result(System("reference", fused=True, reranker=kind, reranker_model=model), dev)
              for kind, model, dev in (("late", "reference", 0.3), ("late", "neg10", 0.5), ("rerank", "mine", 0.4)))]


@pytest.mark.parametrize("rows, best, finalists, planned", [
    (BASELINES + TUNED, "hard", ("extra", "hybrid_hard"),
     [("hard", "raw"), ("hard", "bm25"), ("hard", "reference"), ("hard", "neg10"), ("kd", "neg10"),
      ("hybrid_hard", "extra")]),
    (BASELINES[:1] + TUNED[:1], "neg10", ("bm25", "neg10"), [("neg10", "bm25")]),  # once, though for two reasons
    (TUNED[1:3], "hard", (None, "hard"), []), (BASELINES, None, ("extra", None), []), ([], None, (None, None), []),
    # A fraction of the queries is a point of the learning curve and no candidate.
    (FRACTIONS, "neg10", ("hybrid_raw", "neg10"), [("neg10", "raw"), ("neg10", "hybrid_raw")]),
    # A compiled form of a fine-tuned model is neither without training nor a finalist.
    (COMPILED, "neg10", ("reference", "neg10"), [("neg10", "bm25"), ("neg10", "reference")]),
    ([*COMPILED, result(System("reference", "onnx"), 0.5)], "neg10", ("reference-onnx", "neg10"),
     [("neg10", "bm25"), ("neg10", "reference"), ("neg10", "reference-onnx")]),
    (COMPILED[3:4], None, (None, None), []),  # neg10's own result is left out
    # A trained reranker makes a system that needs training; a cross-encoder has no result of its own.
    (RERANKED, "neg10", ("hybrid_late_reference", "hybrid_late_neg10_on_reference"),
     [("neg10", "reference"), ("hybrid_late_neg10_on_reference", "hybrid_late_reference")]),
    ([RERANKED[0], RERANKED[4]], None, ("reference", "hybrid_rerank_mine_on_reference"),
     [("hybrid_rerank_mine_on_reference", "reference")])])
def test_dev_selects_the_finalists_and_the_planned_comparisons(rows, best, finalists, planned):
    found = results.best_fine_tuned(rows)
    assert (found and found["label"]) == best
    last = [max(group, key=lambda row: row["dev"]["mrr@10"]) for group in filter(None, results.candidates(rows))]
    rows = [row | {"finalist": {"queries": 60} if row in last else None} for row in rows]
    assert tuple(row and row["label"] for row in results.finalists(rows)) == finalists
    assert results.planned_pairs(rows) == planned


def trained_again(settings):
    weights = settings.output_dir / "neg10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def used_otherwise(settings):
    config = settings.output_dir / "neg10" / "1_Pooling" / "config.json"
    write_json(config, {"pooling_mode_cls_token": True})


def gone(settings):
    shutil.rmtree(settings.output_dir / "neg10")


@pytest.mark.parametrize("change, reason", [
    (trained_again, "it was measured with other inputs (model.safetensors of neg10"),
    (used_otherwise, "it was measured with other inputs (pooling of neg10"), (gone, "its model cannot be read (")])
def test_a_result_that_no_longer_fits_its_model_is_left_out_by_name(measured, change, reason):
    finished(measured, "neg10")
    for label in ("bm25", "raw", "neg10"):
        save(measured, label)
    save_hybrid(measured, "neg10")
    save_hybrid(measured, "raw")
    change(measured)
    rows, left_out = results.compare(measured, DATA)
    assert [row["label"] for row in rows] == ["bm25", "raw", "hybrid_raw"]
    [line] = left_out
    assert "\n" not in line and line.startswith(f"hybrid_neg10, neg10 are left out: {reason}")
    assert line.endswith("; evaluate them again")


@pytest.mark.parametrize("changed, reason, left_out", [
    ({"query_max_len": 7}, "query_max_len of raw: 48, now 7", ["raw", "hybrid_raw"]),
    ({"bm25_language": "de"}, "BM25_LANGUAGE: auto, now de", ["bm25", "hybrid_raw"])])
def test_a_setting_leaves_out_the_systems_that_depend_on_it(measured, changed, reason, left_out):
    for label in ("bm25", "raw", "reference"):
        save(measured, label)
    save_hybrid(measured, "raw")
    kept, reasons = results.load_results(replace(measured, **changed))
    assert {result["label"] for result in kept} == {"bm25", "raw", "reference", "hybrid_raw"} - {*left_out}
    assert reasons == dict.fromkeys(left_out, f"it was measured with other inputs ({reason})")
    assert len(results.load_results(measured)[0]) == 4


def test_a_result_of_other_metrics_or_of_an_earlier_version_is_left_out(measured, monkeypatch):
    save(measured, "raw")
    old = {"label": "bm25", "metrics": {}, "dev": {}, "used": {}, "settings": {}}
    write_checksummed(measured.paths.result("bm25"), old)
    monkeypatch.setitem(results.MEASURES, "recall@5", results.MEASURES["recall@10"])
    kept, left_out = results.load_results(measured)
    assert kept == [] and results.left_out_line(left_out) == (
        "bm25 is left out: it was measured by an earlier version; raw is left out: it was measured with other inputs "
        "(metrics); evaluate them again")
    assert results.left_out_line({}) == ""
    assert results.left_out_line({"raw": "why"}) == "raw is left out: why; evaluate it again"
    with pytest.raises(UserError, match="the result of bm25, .*bm25.json, was written by an earlier version: evaluate"):
        results.read_result(measured, "bm25")
    with pytest.raises(UserError, match="the result of neg10, .*neg10.json, does not exist: evaluate neg10"):
        results.read_result(measured, "neg10")


def test_results_of_other_data_are_left_out_all_of_them_even_bm25s(measured, monkeypatch):
    save(measured, "bm25"), save(measured, "raw")
    other = replace(DATA, corpus=CORPUS | {"p6": "one more passage"})
    monkeypatch.setenv("OVERWRITE", "1")
    write_data(measured, other, {"source": "seven"})
    assert results.load_results(measured) == ([], dict.fromkeys(
        ("bm25", "raw"), "it was measured with other inputs (data)"))
    with pytest.raises(UserError, match="has no result for the current data: run an evaluation notebook"):
        results.compare(measured, other)
    write_data(measured, DATA, {"source": "six"})  # the same files again are the same data
    assert [result["label"] for result in results.load_results(measured)[0]] == ["bm25", "raw"]


@pytest.mark.parametrize("kind, model, changed, reason", [
    ("late", "reference", {"token_dtype": "int8"}, "TOKEN_DTYPE: float16, now int8"),
    ("late", "reference", {"token_pool_factor": 2}, "TOKEN_POOL_FACTOR: 1, now 2"),
    ("rerank", "reranker", {"reranker_precision": "bf16"}, "RERANKER_PRECISION: fp32, now bf16")])
def test_a_result_depends_on_the_settings_of_its_reranker(measured, kind, model, changed, reason):
    finished(measured, "reranker")
    label = save(measured, "reference", reranker=kind, reranker_model=model)["label"]
    save(measured, "raw")
    assert results.load_results(measured)[1] == {}
    assert results.load_results(replace(measured, **changed))[1] == {
        label: f"it was measured with other inputs ({reason})"}


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
    write_checksummed(result, read_checksummed(result) | {"runs": {"test": sha256(path)}})
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
    repeated = metadata(replace(measured, seeds=2), "neg10_seed43")
    assert repeated["recipe"] == "neg10" and repeated["description"] == "10 random negatives a query"
    assert repeated["train_fraction"] == 1 and repeated["note"].endswith("this data set's training part")
    assert "recipe" not in metadata(measured, "reference")


def test_other_test_sets_are_measured_on_their_own_corpus(measured, tmp_path):
    far = Collection({"x": "falcon at dawn", "y": "no word of it"}, {"a": "the falcon sleeps at dawn", "b": "a willow"},
                     {"x": {"a": 1}, "y": {"b": 1}}, {"x": "test", "y": "test"})
    write_collection(tmp_path / "far", far)
    retriever = BM25().index(CORPUS)
    assert evaluate_out_of_domain(measured, retriever) == {}
    asked = replace(measured, out_of_domain_sets=str(tmp_path / "far"))
    found = evaluate_out_of_domain(asked, retriever)
    assert list(retriever.ids) == list(CORPUS)  # the retriever itself keeps its corpus
    assert list(found) == [str(tmp_path / "far")] and found[str(tmp_path / "far")]["recall@1"] == 0.5
    each = {query: values["recall@1"] for query, values in found[str(tmp_path / "far")]["each"].items()}
    assert each == {"x": 1.0, "y": 0.0}
    (tmp_path / "far" / "qrels" / "test.tsv").rename(tmp_path / "far" / "qrels" / "dev.tsv")
    with pytest.raises(UserError, match="far has no qrels/test.tsv"):
        evaluate_out_of_domain(asked, retriever)
    with pytest.raises(UserError, match="nowhere/corpus.jsonl does not exist"):
        evaluate_out_of_domain(replace(measured, out_of_domain_sets="nowhere"), retriever)


def test_what_is_lost_out_of_domain_is_a_paired_difference_on_the_same_queries():
    def row(label, *values):
        each = {f"q{number}": {"recall@1": value} for number, value in enumerate(values)}
        return {"label": label, "eval_sets": {"far": {"recall@1": sum(values) / len(values), "each": each}}}

    raw, tuned, reference = row("raw", 1, 1, 1, 0), row("neg10", 0, 0, 1, 0), row("reference", 1, 1)
    far = results.compare_out_of_domain(tuned, [raw, tuned, reference, {"label": "hybrid_raw"}])["far"]
    assert far["recall@1"] == 0.25 and set(far["against"]) == {"raw"}  # the reference answered other queries
    seen = far["against"]["raw"]["recall@1"]
    assert seen["difference"] == -0.5 and seen["ci95"] == [-1, 0] and not seen["planned"] and "each" not in far
    assert results.compare_out_of_domain({"label": "hybrid_raw"}, [raw]) == {}
    old = {"label": "neg10", "eval_sets": {"far": {"recall@1": 0.5}}}  # of a version that kept no values
    assert results.compare_out_of_domain(old, [raw, old]) == {"far": {"recall@1": 0.5}}
