import numpy as np
import pytest

from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.trec import pad_run

WORDS = {"q": {"a": 8.0, "b": 4.0, "c": 2.0}}
DENSE = {"q": {"b": 0.9, "d": 0.8, "a": 0.5}}


def test_scores_are_fused_by_hand():
    """BM25 over its best: a 1, b 0.5, c 0.25; what the dense run lacks gets its lowest, 0.5; `d` shares no word."""
    fused = weighted_sum_fusion(WORDS, DENSE, weight=0.4)["q"]
    assert fused == pytest.approx({"b": 0.9 + 0.2, "a": 0.5 + 0.4, "d": 0.8, "c": 0.5 + 0.1})
    assert list(fused) == ["b", "a", "d", "c"]
    assert list(weighted_sum_fusion(WORDS, DENSE, weight=0)["q"])[:2] == ["b", "d"]
    assert list(weighted_sum_fusion(WORDS, DENSE, weight=5)["q"])[0] == "a"


def test_beyond_the_depth_a_passage_may_have_shared_words():
    """The BM25 run is full: `d` is beyond its depth, and can have had its lowest score at most."""
    fused = weighted_sum_fusion(WORDS, DENSE, weight=0.4, depth=3)["q"]
    assert fused == pytest.approx({"b": 0.9 + 0.2, "a": 0.5 + 0.4, "d": 0.8 + 0.1})


def test_equal_scores_are_ordered_by_id_and_moved_apart():
    fused = weighted_sum_fusion({"q": {"b": 2.0, "a": 1.0}}, {"q": {"a": 1.0, "b": 0.5}}, 1)["q"]
    assert list(fused) == ["a", "b"] and np.float32(fused["a"]) > np.float32(fused["b"])
    assert list(weighted_sum_fusion(WORDS, DENSE, 0.4, depth=2)["q"]) == ["b", "a"]


def test_padding_gets_no_credit_in_a_fusion():
    """A run that was padded for its file fuses as the bare one does, whatever the padding says first."""
    corpus, bare = dict.fromkeys("abcdefgh", ""), {"q": {"a": 8.0, "b": 4.0}, "none": {}}
    dense = {"q": {"h": 0.9, "b": 0.8, "a": 0.5}, "none": {"h": 0.9, "c": 0.2}}
    full = pad_run(bare, corpus, 100)
    assert list(full["q"]) == list("abcdefgh") and list(full["none"])[0] == "a"
    assert weighted_sum_fusion(full, dense, 0.4) == weighted_sum_fusion(bare, dense, 0.4)
    assert weighted_sum_fusion(full, dense, 1)["none"] == pytest.approx(dense["none"])
    assert weighted_sum_fusion({"q": {}}, {"q": {}}, 0.5) == {"q": {}}
