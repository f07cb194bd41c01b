import numpy as np
import pytest

from embedding_finetune.hybrid import choose_weight, fuse_ranks, fuse_scores

BM25 = {"q": {"a": 8.0, "b": 4.0, "c": 2.0}}
DENSE = {"q": {"b": 0.9, "d": 0.8, "a": 0.5}}


def test_ranks_are_fused_by_hand():
    fused = fuse_ranks(BM25, DENSE)["q"]
    assert list(fused) == ["b", "a", "d", "c"]
    assert list(fused.values()) == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])


def test_scores_are_fused_by_hand():
    """BM25 over its best: a 1, b 0.5, c 0.25; what a run lacks gets its lowest."""
    fused = fuse_scores(BM25, DENSE, weight=0.4)["q"]
    assert fused == pytest.approx({"b": 0.9 + 0.2, "a": 0.5 + 0.4, "d": 0.8 + 0.1, "c": 0.5 + 0.1})
    assert list(fused)[0] == "b" and list(fused)[3] == "c"
    assert list(fuse_scores(BM25, DENSE, weight=0)["q"])[:2] == ["b", "d"] and list(fuse_scores(BM25, DENSE, weight=5)["q"])[0] == "a"


def test_equal_scores_are_ordered_by_id_and_moved_apart():
    fused = fuse_ranks({"q": {"b": 2.0, "a": 1.0}}, {"q": {"a": 2.0, "b": 1.0}})["q"]
    assert list(fused) == ["a", "b"] and fused["a"] > fused["b"] and np.float32(fused["a"]) > np.float32(fused["b"])
    assert list(fuse_ranks(BM25, DENSE, depth=2)["q"]) == ["b", "a"]


def test_a_query_without_any_word_in_common_keeps_the_models_ranking():
    fused = fuse_scores({"q": {"a": 0.0, "b": -1e-45, "d": -3e-45}}, DENSE, weight=1)
    assert list(fused["q"]) == ["b", "d", "a"]


def test_the_weight_is_the_best_on_the_queries_given():
    """BM25 knows q1, the model knows q2; only weights between answer both."""
    qrels = {"q1": {"x": 1}, "q2": {"y": 1}}
    bm25 = {"q1": {"x": 9.0, "y": 1.0}, "q2": {"x": 5.0, "y": 4.0}}
    dense = {"q1": {"y": 0.6, "x": 0.5}, "q2": {"y": 0.9, "x": 0.4}}
    assert choose_weight(qrels, bm25, dense) == 0.15  # q1 needs more than 0.1 / (8 / 9) = 0.1125
    assert choose_weight({"q2": {"y": 1}}, bm25, dense) == 0
