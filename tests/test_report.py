import dataclasses
import json

import pytest

from embedding_finetune import report
from embedding_finetune.files import ExperimentError, write_jsonl
from embedding_finetune.training_files import TestSet

TEST_SET = TestSet(queries={"q1": "first", "q2": "second"}, corpus={"a": "passage a", "b": "passage b"}, qrels={"q1": {"a": 1}, "q2": {"b": 1}})
RIGHT = {"q1": {"a": 0.9, "b": 0.1}, "q2": {"b": 0.9, "a": 0.1}}
HALF = {"q1": {"a": 0.9, "b": 0.1}, "q2": {"a": 0.9, "b": 0.1}}


def row(label, recall, **against):
    """A row of a comparison with what the conclusion reads; `against` gives (difference, p) by label."""
    pairs = {other: {"recall@1": {"difference": difference, "ci95": [difference - 0.02, difference + 0.02], "p_value": p}}
             for other, (difference, p) in against.items()}
    return {"label": label, "metrics": {"recall@1": recall}, "against": pairs}


def test_results_are_written_and_compared(experiment):
    for label, run in (("neg10", RIGHT), ("raw", HALF), ("bm25", HALF)):
        report.save_result(experiment, TEST_SET, label, run, model=f"model of {label}", used={"pooling": "cls"})
    rows = report.compare(experiment, TEST_SET)
    assert [(each["label"], each["metrics"]["recall@1"], each["metrics"]["mrr@10"]) for each in rows] == [
        ("bm25", 0.5, 0.75), ("raw", 0.5, 0.75), ("neg10", 1, 1)]
    assert rows[2]["ci95"]["recall@1"] == [1, 1] and rows[0]["ci95"]["recall@1"] == [0, 1]
    assert rows[2]["against"]["raw"]["recall@1"]["difference"] == 0.5 and rows[1]["against"]["bm25"]["recall@1"]["p_value"] == 1
    folder = experiment.output_dir / "results"
    assert json.loads((folder / "comparison.json").read_text()) == rows and rows[0]["settings"]["SEED"] == 42
    assert "1.000 [1.000, 1.000]" in (folder / "comparison.md").read_text()
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_test_set_are_refused(experiment):
    report.save_result(experiment, TEST_SET, "raw", HALF, model="m", used={})
    smaller = dataclasses.replace(TEST_SET, queries={"q1": "first"})
    with pytest.raises(ExperimentError, match="raw.json was measured on another test set"):
        report.compare(experiment, smaller)
    other = dataclasses.replace(TEST_SET, queries={"q1": "first", "q3": "third"}, qrels={"q1": {"a": 1}, "q3": {"b": 1}})
    with pytest.raises(ExperimentError, match="raw.trec ranks other queries"):
        report.compare(experiment, other)


def test_the_conclusion_follows_the_numbers():
    best = row("neg50", 0.71, raw=(0.41, 0.001), bm25=(-0.09, 0.001), reference=(0.01, 0.6))
    text = report.conclusion([row("bm25", 0.8), row("raw", 0.3), row("neg10", 0.7), best, row("reference", 0.7)])
    assert text == ("Fine-tuning took recall@1 from 0.300 (raw) to 0.700 (neg10) and 0.710 (neg50): neg50 is better than raw (0.300; difference "
                    "+0.410, 95 % interval [+0.390, +0.430]). It is worse than bm25 (0.800; difference -0.090, 95 % interval [-0.110, -0.070]) and "
                    "not distinguishable from reference (0.700; difference +0.010, 95 % interval [-0.010, +0.030]).")
    assert "neg10 is worse than raw" in report.conclusion([row("raw", 0.5), row("neg10", 0.4, raw=(-0.1, 0.01))])
    assert "have to be evaluated" in report.conclusion([row("bm25", 0.8), row("raw", 0.3)])


def test_examples_show_right_and_wrong_hits():
    right, wrong = (report.examples(TEST_SET, HALF, right=right) for right in (True, False))
    assert right["query"].to_list() == ["first"] and right["first hit"].to_list() == ["passage a"]
    assert wrong.iloc[0].to_dict() == {"query": "second", "first hit": "passage a", "positive": "passage b", "rank of positive": "2"}


def test_the_training_curve_is_drawn_where_there_is_one(experiment, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(report.plt, "show", lambda: shown.append(report.plt.gcf()))
    report.plot_training(experiment, "raw")
    assert "raw was not trained here" in capsys.readouterr().out and not shown
    write_jsonl(experiment.output_dir / "neg10" / "training_log.jsonl",
                [{"step": 0, "mrr@10": 0.1, "recall@10": 0.2}, {"step": 5, "loss": 1.5, "learning_rate": 1e-5}, {"step": 10, "loss": 1.0, "learning_rate": 0.0}])
    report.plot_training(experiment, "neg10")
    loss, rate, dev = shown[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[5, 1.5], [10, 1.0]] and rate.lines[0].get_ydata().tolist() == [1e-5, 0]
    assert [line.get_label() for line in dev.lines] == ["recall@10", "mrr@10"]


def test_seeds_are_summed_up_beside_the_interval_of_one():
    def repeated(label, value):
        return {"label": label, "metrics": {"recall@1": value}, "ci95": {"recall@1": [value - 0.1, value + 0.1]}}

    table = report.seeds_table([repeated("raw", 0.3), repeated("neg10", 0.5), repeated("neg10_seed43", 0.6), repeated("neg10_seed44", 0.7)])
    assert list(table.index) == ["neg10"] and table.loc["neg10", "seeds"] == 3
    assert table.loc["neg10", "mean"] == pytest.approx(0.6) and table.loc["neg10", "spread"] == pytest.approx(0.1)
    assert table.loc["neg10", "interval of one"] == "[0.400, 0.600]"


def test_other_test_sets_stand_beside_the_own_one():
    rows = [{"label": "bm25", "metrics": {"recall@1": 0.5}, "eval_sets": {"far": {"recall@1": 0.4}}}, {"label": "hybrid", "metrics": {"recall@1": 0.6}}]
    assert report.eval_sets_table(rows).to_dict("index") == {"bm25": {"own": 0.5, "far": 0.4}}


def test_the_plot_by_corpus_size_has_a_line_for_each_model_measured_so():
    rows = [{"label": "bm25", "by_corpus_size": [{"passages": 10, "recall@1": 0.9}, {"passages": 20, "recall@1": 0.8}]}, {"label": "hybrid"}]
    lines = report.plot_by_corpus_size(rows).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [[[10, 0.9], [20, 0.8]]]
