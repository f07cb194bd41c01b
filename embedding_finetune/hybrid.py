"""BM25 and a model together: two ways to make one ranking of two. What one overlooks the other may find.

A run is a dict of query id -> dict of passage id -> score, best first (see trec).
"""

import numpy as np

from embedding_finetune.index import DEPTH
from embedding_finetune.metrics import mean, per_query

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))  # of BM25, beside a cosine


def fuse_ranks(bm25, dense, constant=60, depth=DEPTH):
    """Reciprocal rank fusion: a passage scores the sum of 1 / (constant + rank) over the runs that have it.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009.
    """
    return {query: _ranked(_sum({passage: 1 / (constant + rank) for rank, passage in enumerate(ranking, start=1)}
                                for ranking in (bm25[query], dense[query])), depth) for query in dense}


def fuse_scores(bm25, dense, weight, depth=DEPTH):
    """Cosine plus `weight` times the BM25 score over the query's best BM25 score.

    A passage beyond the depth of one run gets that run's lowest score, which is as high as it can have been.
    """
    fused = {}
    for query, cosines in dense.items():
        scale = max(bm25[query].values()) or 1
        lexical = {passage: weight * max(score, 0) / scale for passage, score in bm25[query].items()}
        lowest = min(cosines.values()), min(lexical.values())
        fused[query] = _ranked({passage: cosines.get(passage, lowest[0]) + lexical.get(passage, lowest[1])
                                for passage in cosines | lexical}, depth)
    return fused


def choose_weight(qrels, bm25, dense, weights=WEIGHTS):
    """The weight of `fuse_scores` with the best MRR@10, the smallest of equals. To be chosen on dev queries, never on test queries."""
    return max(weights, key=lambda weight: (round(mean(per_query(qrels, fuse_scores(bm25, dense, weight)))["mrr@10"], 9), -weight))


def _sum(parts):
    total = {}
    for part in parts:
        for passage, score in part.items():
            total[passage] = total.get(passage, 0) + score
    return total


def _ranked(scores, depth):
    """By (-score, id) in 32 bits, equal scores moved apart as everywhere (see index)."""
    ranking, limit = {}, np.float32(np.inf)
    for passage, score in sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[:depth]:
        limit = min(np.float32(score), np.nextafter(limit, np.float32(-np.inf)))
        ranking[passage] = float(limit)
    return ranking
