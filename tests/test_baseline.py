"""What `make baseline-check` calls equal."""

import json

import pytest
from baseline import differences, run_differences


def write_run(folder, loss=2.0, run="q1 Q0 p1 1 0.5 bm25\n"):
    """The files of a run of the demo, each with little in it."""
    log = json.dumps({"step": 5, "loss": loss, "passages_per_second": loss}) + "\n"
    contents = {"data/corpus.jsonl": "{}\n", "data/dataset.json": str(folder), "run/runs/bm25.trec": run,
                "run/runs/dev/bm25.trec": run, "run/neg10/training_log.jsonl": log}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("changes, expected", [
    ({}, []),
    ({"loss": 2.0000001}, []),
    ({"loss": 2.00001}, ["run/neg10/training_log.jsonl: step 5, loss: 2.0 is now 2.00001"]),
    ({"run": "q1 Q0 p1 1 0.5000001 bm25\n"}, []),
    ({"run": "q1 Q0 p1 1 0.50001 bm25\n"},
     ["run/runs/bm25.trec: query q1: 1 scores have moved, 1 passages are now 1",
      "run/runs/dev/bm25.trec: query q1: 1 scores have moved, 1 passages are now 1"]),
    ({"run": "q1 Q0 p1 1 0.5 bm25\nq1 Q0 p2 2 0.4 bm25\n"},
     ["run/runs/bm25.trec: query q1: 1 scores have moved, 1 passages are now 2",
      "run/runs/dev/bm25.trec: query q1: 1 scores have moved, 1 passages are now 2"]),
])
def test_differences(tmp_path, changes, expected):
    stored, current = write_run(tmp_path / "stored"), write_run(tmp_path / "current", **changes)
    assert differences(stored, current) == expected


def test_a_missing_file_is_a_difference(tmp_path):
    stored, current = write_run(tmp_path / "stored"), write_run(tmp_path / "current")
    (current / "data/corpus.jsonl").unlink()
    (stored / "run/neg10/training_log.jsonl").unlink()
    assert differences(stored, current) == ["data/corpus.jsonl: only in stored",
                                            "run/neg10/training_log.jsonl: step 5, loss: None is now 2.0"]


def test_passages_of_equal_scores_may_swap_and_others_may_not():
    before = {"q": {"a": 0.9, "b": 0.5, "c": 0.4}}
    assert run_differences(before, {"q": {"a": 0.9, "c": 0.4, "b": 0.5}}) == []
    assert run_differences(before, {"q": {"a": 0.9, "b": 0.5, "d": 0.4000001}}) == []  # the last place
    assert run_differences(before, {"q": {"a": 0.9, "b": 0.4, "c": 0.5}}) == [
        "query q: 2 scores have moved, 3 passages are now 3"]
    assert run_differences(before, {}) == ["query q: 3 scores have moved, 3 passages are now 0"]
