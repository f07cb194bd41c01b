"""Exact search: the order that a full sort gives, ties included, whatever the shards."""

import numpy as np
import pytest

from embedding_finetune.retrieval import nearest as module
from embedding_finetune.retrieval.nearest import nearest


@pytest.mark.parametrize("shard", [1000, 7, 20])
@pytest.mark.parametrize("depth", [1, 2, 7, 60, 100])
def test_nearest_agrees_with_a_full_sort_where_many_tie(depth, shard, monkeypatch):
    """Small whole numbers, so that equal products are equal to the last bit, and few values for many passages."""
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "SHARD", shard)
    rng = np.random.default_rng(depth)
    queries, passages = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (50, 60))
    tie_rank = rng.permutation(60)
    for order, given in ((np.arange(60), None), (tie_rank, tie_rank)):
        scores, positions = nearest(queries, passages, depth, given)
        assert scores.shape == positions.shape == (50, min(depth, 60))
        for row, products in enumerate(queries @ passages.T):
            expected = np.lexsort((order, -products))[:depth]
            assert positions[row].tolist() == expected.tolist() and (scores[row] == products[expected]).all()


def test_nothing_to_search_for_gives_nothing():
    assert nearest(np.empty((0, 4), np.float32), np.ones((3, 4), np.float32), 2)[1].shape == (0, 2)
