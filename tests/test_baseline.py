"""What `make baseline-check` calls equal."""

import json

import pytest
from baseline import differences


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
    ({"run": "q1 Q0 p1 1 0.50001 bm25\n"},
     ["run/runs/bm25.trec: other content", "run/runs/dev/bm25.trec: other content"]),
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
