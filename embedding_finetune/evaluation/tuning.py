"""Tuning of reranking depth and score weights on dev queries."""

from embedding_finetune.evaluation.metrics import ranking_metrics
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.rerank import DEPTHS, candidate_union, interpolate_scores

BM25_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
WEIGHTS = 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0  # of reranker scores, added to the first-stage score


def candidate_recall(collection, bm25, dense, depths=DEPTHS):
    """Recall of the candidate union of both runs by depth: an upper bound for any reranker."""
    found = {}
    for depth in depths:
        candidates = candidate_union(dense, bm25, depth=depth)
        recalls = [len({*positives} & {*candidates[query]}) / len(positives) for query in collection.queries
                   if (positives := collection.positives(query))]
        found[depth] = sum(recalls) / max(1, len(recalls))
    return found


def tune_reranking(dev, bm25, dense, second, depths=DEPTHS):
    """Best `bm25_weight`, `rerank_weight` and `depth` by MRR@10 on dev queries; never call it with test queries.

    `bm25` and `dense` are runs of the dev queries, `second` is the run of the reranker over their union at the largest
    depth. The weights are tuned at that depth, then the depth with these weights. Ties go to the smallest value, which
    is the cheapest.
    """
    candidates = {depth: candidate_union(dense, bm25, depth=depth) for depth in depths}

    def value(first, rerank_weight, depth):
        run = interpolate_scores(first, second, rerank_weight, candidates[depth], depth=10)
        return round(ranking_metrics(dev.qrels, run)["mrr@10"], 9)

    first = {weight: weighted_sum_fusion(bm25, dense, weight) for weight in BM25_WEIGHTS}
    weight, rerank_weight = max(((bm25_weight, weight) for bm25_weight in BM25_WEIGHTS for weight in WEIGHTS),
                                key=lambda pair: (value(first[pair[0]], pair[1], max(depths)), -pair[0], -pair[1]))
    depth = max(depths, key=lambda depth: (value(first[weight], rerank_weight, depth), -depth))
    return {"bm25_weight": weight, "rerank_weight": rerank_weight, "depth": depth}


def rerank_run(bm25, dense, second, *, bm25_weight, rerank_weight, depth):
    """Run of BM25 and a dense model, reranked. `bm25_weight` 0 ignores BM25's scores; `rerank_weight` None ranks by the
    reranker alone.
    """
    candidates = candidate_union(dense, bm25, depth=depth)
    return interpolate_scores(weighted_sum_fusion(bm25, dense, bm25_weight), second, rerank_weight, candidates)
