"""Nearest vectors by comparing all of them, whether they are in memory or mapped from disk."""

import faiss
import numpy as np
from tqdm.auto import tqdm

BATCH, SHARD = 2048, 1 << 17  # queries, and passages, that are compared together
FEW = 10  # comparisons of both that need no progress bar


def nearest(query_vectors, passage_vectors, depth, tie_rank=None):
    """Scores and positions of the `depth` nearest passages of each query by inner product, as `Retriever.top` returns
    them.

    Exact (faiss), SHARD passages after one another, whose best are merged: memory grows with queries times depth, and
    of passages mapped from disk one shard is looked at. `tie_rank` orders equal scores, by default the position does.
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
        found, where = faiss.knn(query_vectors[rows], passage_vectors, reach, metric=faiss.METRIC_INNER_PRODUCT)
        scores[rows], positions[rows] = _best(found, where, depth, tie_rank)
        rows = rows[(found[:, -1] == found[:, depth - 1]) & (reach < len(passage_vectors))]
        reach *= 2
    return scores, positions


def _best(scores, positions, depth, tie_rank):
    """The first `depth` columns of both by (-score, tie rank), row by row."""
    order = np.lexsort((tie_rank[positions], -scores), axis=-1)[:, :depth]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
