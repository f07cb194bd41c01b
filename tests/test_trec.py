import numpy as np
import pytest

from embedding_finetune import trec
from embedding_finetune.files import ExperimentError


def test_qrels_come_back_as_written(tmp_path):
    qrels = {"q1": {"p1": 1, "p2": 1}, "q2": {"p3": 1}}
    trec.write_qrels(tmp_path / "qrels.trec", qrels)
    assert (tmp_path / "qrels.trec").read_text().splitlines()[1] == "q1 0 p2 1"
    assert trec.read_qrels(tmp_path / "qrels.trec") == qrels


def test_runs_come_back_to_the_last_bit(tmp_path):
    best = np.float32(0.7)
    run = {"q1": {"p2": float(best), "p1": float(np.nextafter(best, np.float32(0)))}}
    trec.write_run(tmp_path / "a.trec", run, "a")
    again = trec.read_run(tmp_path / "a.trec")
    assert list(again["q1"]) == ["p2", "p1"] and {p: np.float32(s) for p, s in again["q1"].items()} == run["q1"]
    assert (tmp_path / "a.trec").read_text().split()[:4] == ["q1", "Q0", "p2", "1"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "a.trec").write_text("q1 Q0 p1 1 0.5 a\nq1 Q0 p2 2\n")
    with pytest.raises(ExperimentError, match="a.trec, line 2: expected 6 fields, found 4"):
        trec.read_run(tmp_path / "a.trec")
    with pytest.raises(ExperimentError, match="does not exist: it is made by the evaluation notebooks"):
        trec.read_run(tmp_path / "b.trec")
