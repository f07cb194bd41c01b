"""Reranking: candidates, interpolation of scores, and errors."""

import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.rerank import Reranker, candidate_union, interpolate_scores


class Lengths(Reranker):
    """The longer a passage, the better."""

    def build(self, texts):
        self.lengths = np.array([len(text) for text in texts], np.float32)

    def scores(self, texts, places):
        for own in places:
            yield self.lengths[own]


def test_candidates_are_scored_best_first_and_equal_ones_by_id():
    stage = Lengths().index({"a": "four", "b": "a longer one", "c": "five"})
    run = stage.score({"q": "?"}, {"q": ["c", "b", "a"]})
    assert list(run["q"]) == ["b", "a", "c"] and run["q"]["a"] > run["q"]["c"] and stage.ms_per_query > 0
    with pytest.raises(UserError, match="'x' is not in this corpus"):
        stage.score({"q": "?"}, {"q": ["x"]})


def test_the_union_is_of_what_was_found():
    dense, bm25 = {"q": {"a": 0.9, "b": -0.1, "c": -0.2}}, {"q": {"c": 2.0, "d": 1.0, "e": -1.0}}
    assert candidate_union(dense, bm25, depth=2) == {"q": ["a", "b", "c", "d"]}
    assert candidate_union(dense, bm25, depth=3) == {"q": ["a", "b", "c", "d"]}  # e is padding


def test_what_was_not_looked_at_again_comes_after_what_was():
    first = {"q": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}}
    second = {"q": {"c": 0.5, "b": 0.1, "x": 0.45}}
    assert list(interpolate_scores(first, second, 1.0)["q"].items())[:3] == [
        ("c", pytest.approx(1.2)), ("x", pytest.approx(0.6 + 0.45)), ("b", pytest.approx(0.9))]
    assert list(interpolate_scores(first, second, 1.0)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(interpolate_scores(first, second, None)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(interpolate_scores(first, second, 1.0, {"q": ["b"]}, depth=3)["q"]) == ["b", "a", "c"]
