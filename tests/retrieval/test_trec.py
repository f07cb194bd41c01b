import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.trec import pad_run, read_run, write_run


def test_runs_come_back_to_the_last_bit(tmp_path):
    best = np.float32(0.7)
    run = {"q1": {"p2": float(best), "p1": float(np.nextafter(best, np.float32(0)))}}
    write_run(tmp_path / "a.trec", run, "a")
    again = read_run(tmp_path / "a.trec")
    assert list(again["q1"]) == ["p2", "p1"]
    assert {passage: np.float32(score) for passage, score in again["q1"].items()} == run["q1"]
    assert (tmp_path / "a.trec").read_text().split()[:4] == ["q1", "Q0", "p2", "1"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "a.trec").write_text("q1 Q0 p1 1 0.5 a\nq1 Q0 p2 2\n")
    with pytest.raises(UserError, match="a.trec, line 2: expected 6 fields, found 4"):
        read_run(tmp_path / "a.trec")
    (tmp_path / "a.trec").write_text("q1 Q0 p1 1 high a\n")
    with pytest.raises(UserError, match="a.trec, line 1: 'high' is not a number"):
        read_run(tmp_path / "a.trec")
    with pytest.raises(UserError, match="does not exist: it is made by the evaluation notebooks"):
        read_run(tmp_path / "b.trec")


CORPUS = dict.fromkeys("cabde", "")


@pytest.mark.parametrize("ranking, depth, padding", [
    ({"d": 0.5, "b": 1e-6}, 4, {"a": -1.0, "c": -2.0}), ({}, 4, {"a": -1.0, "b": -2.0, "c": -3.0, "d": -4.0}),
    ({"d": 0.5, "b": 0.25}, 2, {}), ({"d": 0.5, "b": 0.25}, 1, {}),
    ({"d": 0.5, "b": 0.25}, 100, {"a": -1.0, "c": -2.0, "e": -3.0}),
    ({"d": -3.5, "b": -20.0}, 3, {"a": -21.0})])  # a tool that sorts by score must see the ranking as it is
def test_padding_follows_by_id_below_zero_and_below_all_scores(ranking, depth, padding):
    assert list(pad_run({"q": ranking}, CORPUS, depth)["q"].items()) == [*ranking.items(), *padding.items()]


def test_copies_of_the_query_do_not_come_back_as_padding():
    run = pad_run({"a": {"d": 0.5}, "b": {"d": 0.5}}, CORPUS, 100, copies={"a": ["b", "e"]})
    assert list(run["a"]) == ["d", "a", "c"] and list(run["b"]) == ["d", "a", "b", "c", "e"]
