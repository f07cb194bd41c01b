"""A second stage chosen: how deep it looks, and what it weighs beside the first, as dev queries have it."""

from embedding_finetune.artifacts.manifest import read_checksummed
from embedding_finetune.evaluation.metrics import reciprocal_rank
from embedding_finetune.evaluation.results import RESULT, save_result
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.rerank import DEPTHS, candidate_union, interpolate_scores, parse_reranker_label

BM25_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
WEIGHTS = 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0  # of the second stage, beside a cosine


def candidate_recall(collection, bm25, dense, depths=DEPTHS):
    """Depth -> the share of positives that a second stage can see at all: their recall in the union of both runs."""
    found = {}
    for depth in depths:
        seen = candidate_union(dense, bm25, depth=depth)
        shares = [len({*own} & {*seen[query]}) / len(own) for query in collection.queries
                  if (own := collection.positives(query))]
        found[depth] = sum(shares) / max(1, len(shares))
    return found


def tune_reranking(dev, bm25, dense, second, depths=DEPTHS):
    """What is best on dev queries by MRR@10: `weight` of BM25, `second_weight`, and `depth`; for test queries never.

    `bm25`, `dense` are runs of the dev queries, `second` the run of the second stage over the union at the largest
    depth. Weights are chosen at that depth and the depth with them; the smallest of equals, which costs least.
    """
    candidates = {depth: candidate_union(dense, bm25, depth=depth) for depth in depths}

    def value(first, rerank_weight, depth):
        run = interpolate_scores(first, second, rerank_weight, candidates[depth], depth=10)
        return round(reciprocal_rank(dev, run), 9)

    first = {weight: weighted_sum_fusion(bm25, dense, weight) for weight in BM25_WEIGHTS}
    weight, rerank_weight = max(((one, other) for one in BM25_WEIGHTS for other in WEIGHTS),
                                key=lambda pair: (value(first[pair[0]], pair[1], max(depths)), -pair[0], -pair[1]))
    depth = max(depths, key=lambda depth: (value(first[weight], rerank_weight, depth), -depth))
    return {"weight": weight, "rerank_weight": rerank_weight, "depth": depth}


def rerank_run(bm25, dense, second, *, weight, rerank_weight, depth):
    """The run of BM25, a model and a second stage together; `weight` 0 leaves BM25's scores out, `second_weight` None
    counts the second stage alone."""
    return interpolate_scores(weighted_sum_fusion(bm25, dense, weight), second, rerank_weight, candidate_union(dense, bm25, depth=depth))


def save_reranked(settings, collection, label, stage, alone, fused, chosen):
    """Save what a stage brought: `alone` (LABEL), and `fused` (hybrid_LABEL) with BM25 and the first stage; both have a
    run for "test" and for "dev". `chosen` is what `choose` returned. Returns both results.
    """
    _, model, first = parse_reranker_label(settings, label)
    of = read_checksummed(settings.output_dir / "results" / f"{first}.json", RESULT)
    if of is None:
        raise UserError(f"there is no result of {first}, or a damaged one: evaluate it first")
    more = {"hybrid_of": first, "used": of["used"], "content": of["content"], "depth": chosen["depth"],
            "second": {"stage": label, "model": model, "used": stage.config, "content": stage.revision},
            "ms_per_query": round(stage.ms_per_query, 3), "bytes_per_passage": round(stage.bytes_per_passage)}
    return (save_result(settings, collection, label, alone, model=f"{stage.description}, after BM25 and {of['model']}",
                        weight=0.0, rerank_weight=None, **more),
            save_result(settings, collection, f"hybrid_{label}", fused, model=f"BM25 + {of['model']} + {stage.description}",
                        weight=chosen["weight"], rerank_weight=chosen["rerank_weight"], **more))
