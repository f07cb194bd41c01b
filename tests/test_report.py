import dataclasses
import json

import pytest

from embedding_finetune import report
from embedding_finetune.files import ExperimentError
from embedding_finetune.training_files import TestSet

TEST_SET = TestSet(queries={"q1": "first", "q2": "second"}, corpus={"a": "passage a", "b": "passage b"}, qrels={"q1": {"a": 1}, "q2": {"b": 1}})
RIGHT = {"q1": {"a": 0.9, "b": 0.1}, "q2": {"b": 0.9, "a": 0.1}}
HALF = {"q1": {"a": 0.9, "b": 0.1}, "q2": {"a": 0.9, "b": 0.1}}


def result(label, recall, queries=1000):
    return {"label": label, "queries": queries, "metrics": {"recall@1": recall, "mrr@10": recall, "recall@10": recall}}


def test_results_are_written_and_compared(experiment):
    for label, run in (("neg10", RIGHT), ("raw", HALF), ("bm25", HALF)):
        report.save_result(experiment, TEST_SET, label, run, model=f"model of {label}", used={"pooling": "cls"})
    results = report.load_results(experiment, TEST_SET)
    table = report.compare(experiment, results)
    assert list(table.index) == ["bm25", "raw", "neg10"] and table["recall@1"].to_list() == [0.5, 0.5, 1] and table["mrr@10"].to_list() == [0.75, 0.75, 1]
    folder = experiment.output_dir / "results"
    written = json.loads((folder / "comparison.json").read_text())
    assert [row["label"] for row in written] == ["bm25", "raw", "neg10"] and written[0]["settings"]["SEED"] == 42
    assert "| neg10   |      1.000 |" in (folder / "comparison.md").read_text()
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_test_set_are_refused(experiment):
    report.save_result(experiment, TEST_SET, "raw", HALF, model="m", used={})
    smaller = dataclasses.replace(TEST_SET, queries={"q1": "first"})
    with pytest.raises(ExperimentError, match="raw.json was measured on another test set"):
        report.load_results(experiment, smaller)


def test_the_conclusion_follows_the_numbers():
    text = report.conclusion([result("bm25", 0.8), result("raw", 0.3), result("neg10", 0.7), result("neg50", 0.71), result("reference", 0.7)])
    assert text == ("Fine-tuning raised recall@1 from 0.300 (raw) to 0.700 (neg10) and 0.710 (neg50). The better one, neg50, is 0.090 below bm25 "
                    "(0.800) and level with reference (0.700, a difference within the noise of 0.041).")
    assert "lowered recall@1 from 0.500 (raw) to 0.400 (neg10)" in report.conclusion([result("raw", 0.5), result("neg10", 0.4)])
    assert "have to be evaluated" in report.conclusion([result("bm25", 0.8), result("raw", 0.3)])


def test_examples_show_right_and_wrong_hits():
    right, wrong = (report.examples(TEST_SET, HALF, right=right) for right in (True, False))
    assert right["query"].to_list() == ["first"] and right["first hit"].to_list() == ["passage a"]
    assert wrong.iloc[0].to_dict() == {"query": "second", "first hit": "passage a", "positive": "passage b", "rank of positive": "2"}
