"""Nearest vectors by comparing all of them, whether they are in memory or mapped from disk."""

import numpy as np
from tqdm.auto import tqdm

BATCH, SHARD = 512, 1 << 17  # queries, and passages, that are compared together: 256 MB of scores
GROUP = 16  # passages that are first seen by their best score alone
FEW = 10  # comparisons of both that need no progress bar
FEW_PRODUCTS = 1 << 23  # multiplications: two milliseconds of one thread


def exact_search(query_vectors, passage_vectors, depth, tie_rank=None):
    """Scores and positions of the `depth` nearest passages of each query by inner product, as `Retriever.top` returns
    them.

    Exact, SHARD passages after one another, whose best are merged: memory grows with queries times depth, and of
    passages mapped from disk one shard is looked at. `tie_rank` orders equal scores, by default the position does.
    """
    count = len(passage_vectors)
    tie_rank, depth = np.arange(count) if tie_rank is None else tie_rank, min(depth, count)
    scores = np.full((len(query_vectors), depth), -np.inf, np.float32)
    positions = np.full((len(query_vectors), depth), -1, np.int32)
    parts = [(first, start) for first in range(0, count, SHARD) for start in range(0, len(query_vectors), BATCH)]
    for first, start in tqdm(parts, desc="searching", unit="batch", disable=len(parts) < FEW):
        rows, shard = slice(start, start + BATCH), slice(first, first + SHARD)
        found, where = _nearest_in(query_vectors[rows], passage_vectors[shard], depth, tie_rank[shard])
        where += first
        if first:
            found, where = np.hstack([scores[rows], found]), np.hstack([positions[rows], where])
            found, where = _best(found, where, depth, tie_rank)
        scores[rows, :found.shape[1]], positions[rows, :found.shape[1]] = found, where
    return scores, positions


def _nearest_in(query_vectors, passage_vectors, depth, tie_rank):
    """`nearest` of few queries in one shard."""
    depth, rows = min(depth, len(passage_vectors)), np.arange(len(query_vectors))
    scores, positions = np.empty((len(rows), depth), np.float32), np.empty((len(rows), depth), np.int64)
    reach = depth + 1
    while len(rows):  # all queries first; then those where a passage out of reach may tie with the last one wanted
        reach = min(reach, len(passage_vectors))
        found, where = _largest(inner_products(query_vectors[rows], passage_vectors), reach)
        scores[rows], positions[rows] = _best(found, where, depth, tie_rank)
        rows = rows[(found.min(1) == scores[rows, -1]) & (reach < len(passage_vectors))]
        reach *= 2
    return scores, positions


def inner_products(query_vectors, passage_vectors):
    """All inner products, float32 (queries, passages).

    Few of them by one thread: those of BLAS would wait for a core on which the encoder's still spin, ten times as long.
    """
    if len(query_vectors) * passage_vectors.size <= FEW_PRODUCTS:
        return np.einsum("qd,pd->qp", query_vectors, passage_vectors)
    return np.asarray(query_vectors @ passage_vectors.T)


def _largest(scores, count):
    """The `count` largest of each row and their columns, in any order.

    Columns are taken in groups: only the `count` groups with the largest members can have what is sought. That is five
    times as quick as to part all columns, and for 200 of many the whole search twice as quick as faiss.knn.
    """
    width = scores.shape[1]
    groups = width // GROUP
    where = np.broadcast_to(np.arange(width), scores.shape)
    if groups >= GROUP * count:  # column c is in group c modulo `groups`; the last few, that fill none, are all seen
        _, best = _largest(scores[:, :groups * GROUP].reshape(-1, GROUP, groups).max(1), count)
        members = best[:, None] + groups * np.arange(GROUP)[:, None]
        where = np.hstack([members.reshape(len(scores), -1), where[:, groups * GROUP:]])
        scores = np.take_along_axis(scores, where, 1)
    largest = np.argpartition(scores, -count, axis=1)[:, -count:]
    return np.take_along_axis(scores, largest, 1), np.take_along_axis(where, largest, 1)


def _best(scores, positions, depth, tie_rank):
    """The first `depth` columns of both by (-score, tie rank), row by row."""
    order = np.lexsort((tie_rank[positions], -scores), axis=-1)[:, :depth]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
