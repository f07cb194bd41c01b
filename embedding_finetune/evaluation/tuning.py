"""Tuning of fusion weights and of reranking depth and weights on dev queries, by MRR@10.

Never call these functions with test queries. Ties go to the smallest value, which is the cheapest. With fewer than
`at_least` queries nothing is tuned: the functions return the defaults.
"""

from collections.abc import Sequence

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.metrics import ranking_metrics
from embedding_finetune.evaluation.selection import MIN_QUERIES
from embedding_finetune.retrieval.base import Run
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.rerank import DEPTHS, candidate_union, interpolate_scores
from embedding_finetune.settings import SELECTION_METRIC

FUSION_WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))  # of BM25, added to a cosine
BM25_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))  # the same where a reranker follows
WEIGHTS = 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0  # of reranker scores, added to the first-stage score
DEFAULT_WEIGHT, DEFAULT_RERANKING = 0.3, {"bm25_weight": 0.3, "rerank_weight": 1.0, "depth": 30}


def choose_weight(dev: Collection, bm25: Run, dense: Run, weights: Sequence[float] = FUSION_WEIGHTS, *,
                  at_least: int = MIN_QUERIES) -> float:
    """The best weight of `weighted_sum_fusion` on dev queries."""
    if len(dev.queries) < at_least:
        return DEFAULT_WEIGHT
    return max(weights, key=lambda weight: (_value(dev, weighted_sum_fusion(bm25, dense, weight)), -weight))


def candidate_recall(collection: Collection, bm25: Run, dense: Run,
                     depths: Sequence[int] = DEPTHS) -> dict[int, float]:
    """Recall of the candidate union of both runs by depth: an upper bound for any reranker."""
    found = {}
    for depth in depths:
        candidates = candidate_union(dense, bm25, depth=depth)
        recalls = [len({*positives} & {*candidates[query]}) / len(positives) for query in collection.queries
                   if (positives := collection.positives(query))]
        found[depth] = sum(recalls) / max(1, len(recalls))
    return found


def tune_reranking(dev: Collection, bm25: Run, dense: Run, second: Run, depths: Sequence[int] = DEPTHS, *,
                   at_least: int = MIN_QUERIES) -> dict:
    """The best `bm25_weight`, `rerank_weight` and `depth` on dev queries.

    `bm25` and `dense` are runs of the dev queries, `second` is the run of the reranker over their union at the largest
    depth. The weights are tuned at that depth, then the depth with these weights.
    """
    if len(dev.queries) < at_least:
        return DEFAULT_RERANKING | {"depth": min(DEFAULT_RERANKING["depth"], max(depths))}
    candidates = {depth: candidate_union(dense, bm25, depth=depth) for depth in depths}
    first = {weight: weighted_sum_fusion(bm25, dense, weight) for weight in BM25_WEIGHTS}

    def value(bm25_weight: float, rerank_weight: float, depth: int) -> float:
        return _value(dev, interpolate_scores(first[bm25_weight], second, rerank_weight, candidates[depth], depth=10))

    weights = max(((bm25_weight, weight) for bm25_weight in BM25_WEIGHTS for weight in WEIGHTS),
                  key=lambda pair: (value(*pair, max(depths)), -pair[0], -pair[1]))
    depth = max(depths, key=lambda depth: (value(*weights, depth), -depth))
    return {"bm25_weight": weights[0], "rerank_weight": weights[1], "depth": depth}


def _value(dev: Collection, run: Run) -> float:
    """MRR@10 without rounding noise."""
    return round(ranking_metrics(dev.qrels, run)[SELECTION_METRIC], 9)


def rerank_run(bm25: Run, dense: Run, second: Run, *, bm25_weight: float, rerank_weight: float | None,
               depth: int) -> Run:
    """Run of BM25 and a dense model, reranked. `bm25_weight` 0 ignores BM25's scores; `rerank_weight` None ranks by the
    reranker alone.
    """
    candidates = candidate_union(dense, bm25, depth=depth)
    return interpolate_scores(weighted_sum_fusion(bm25, dense, bm25_weight), second, rerank_weight, candidates)
