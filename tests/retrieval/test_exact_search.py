"""Exact search: the order that a full sort gives, ties included, whatever the shards."""

import numpy as np
import pytest

from embedding_finetune.retrieval import exact_search as module
from embedding_finetune.retrieval.exact_search import exact_search


@pytest.mark.parametrize(("shard", "group"), [(1000, 16), (7, 2), (20, 16), (45, 3), (1000, 2)])
@pytest.mark.parametrize("depth", [1, 2, 7, 60, 100])
@pytest.mark.parametrize("few", [0, module.FEW_PRODUCTS])
def test_nearest_agrees_with_a_full_sort_where_many_tie(few, depth, shard, group, monkeypatch):
    """Small whole numbers, so that equal products are equal to the last bit, and few values for many passages."""
    monkeypatch.setattr(module, "FEW_PRODUCTS", few)
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "SHARD", shard)
    monkeypatch.setattr(module, "GROUP", group)
    rng = np.random.default_rng(depth)
    queries, passages = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (50, 60))
    scores, positions = exact_search(queries, passages, depth)
    assert scores.shape == positions.shape == (50, min(depth, 60))
    for row, products in enumerate(queries @ passages.T):
        expected = np.argsort(-products, kind="stable")[:depth]
        assert positions[row].tolist() == expected.tolist() and (scores[row] == products[expected]).all()


def test_nothing_to_search_for_gives_nothing():
    assert exact_search(np.empty((0, 4), np.float32), np.ones((3, 4), np.float32), 2)[1].shape == (0, 2)


def test_only_queries_with_a_tie_at_the_cut_are_searched_again(monkeypatch):
    """Among thousands of queries one ties by chance; the others need not pay for it."""
    searched, largest = [], module._largest
    monkeypatch.setattr(module, "_largest", lambda *given: searched.append(len(given[0])) or largest(*given))
    passages = np.array([[1, 1], [0.9, 1], [0.8, 1], [0.7, 1], [0.6, 1], [0.5, 1]], np.float32)
    _, positions = exact_search(np.eye(2, dtype=np.float32), passages, 2)
    assert positions.tolist() == [[0, 1], [0, 1]]
    assert searched == [2, 1]
