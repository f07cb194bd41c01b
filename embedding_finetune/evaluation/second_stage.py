"""A second stage chosen: how deep it looks, and what it weighs beside the first, as dev queries have it."""

from embedding_finetune.evaluation.metrics import reciprocal_rank
from embedding_finetune.evaluation.results import RESULT, save_result
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.retrievers import fuse_scores
from embedding_finetune.retrieval.second_stage import DEPTHS, add_second, parts_of, union
from embedding_finetune.seals import read_sealed

BM25_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
WEIGHTS = 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0  # of the second stage, beside a cosine


def limits(collection, bm25, dense, depths=DEPTHS):
    """Depth -> the share of positives that a second stage can see at all: their recall in the union of both runs."""
    found = {}
    for depth in depths:
        seen = union(dense, bm25, depth=depth)
        shares = [len({*own} & {*seen[query]}) / len(own) for query in collection.queries
                  if (own := collection.positives(query))]
        found[depth] = sum(shares) / max(1, len(shares))
    return found


def choose(dev, bm25, dense, second, depths=DEPTHS):
    """What is best on dev queries by MRR@10: `weight` of BM25, `second_weight`, and `depth`; for test queries never.

    `bm25`, `dense` are runs of the dev queries, `second` the run of the second stage over the union at the largest
    depth. Weights are chosen at that depth and the depth with them; the smallest of equals, which costs least.
    """
    candidates = {depth: union(dense, bm25, depth=depth) for depth in depths}

    def value(first, second_weight, depth):
        run = add_second(first, second, second_weight, candidates[depth], depth=10)
        return round(reciprocal_rank(dev, run), 9)

    first = {weight: fuse_scores(bm25, dense, weight) for weight in BM25_WEIGHTS}
    weight, second_weight = max(((one, other) for one in BM25_WEIGHTS for other in WEIGHTS),
                                key=lambda pair: (value(first[pair[0]], pair[1], max(depths)), -pair[0], -pair[1]))
    depth = max(depths, key=lambda depth: (value(first[weight], second_weight, depth), -depth))
    return {"weight": weight, "second_weight": second_weight, "depth": depth}


def reordered(bm25, dense, second, *, weight, second_weight, depth):
    """The run of BM25, a model and a second stage together; `weight` 0 leaves BM25's scores out, `second_weight` None
    counts the second stage alone."""
    return add_second(fuse_scores(bm25, dense, weight), second, second_weight, union(dense, bm25, depth=depth))


def save_stage(settings, collection, label, stage, alone, fused, chosen):
    """Save what a stage brought: `alone` (LABEL), and `fused` (hybrid_LABEL) with BM25 and the first stage; both have a
    run for "test" and for "dev". `chosen` is what `choose` returned. Returns both results.
    """
    _, model, first = parts_of(settings, label)
    of = read_sealed(settings.output_dir / "results" / f"{first}.json", RESULT)
    if of is None:
        raise UserError(f"there is no result of {first}, or a damaged one: evaluate it first")
    more = {"hybrid_of": first, "used": of["used"], "content": of["content"], "depth": chosen["depth"],
            "second": {"stage": label, "model": model, "used": stage.used, "content": stage.content},
            "ms_per_query": round(stage.ms_per_query, 3), "bytes_per_passage": round(stage.bytes_per_passage)}
    return (save_result(settings, collection, label, alone, model=f"{stage.about}, after BM25 and {of['model']}",
                        weight=0.0, second_weight=None, **more),
            save_result(settings, collection, f"hybrid_{label}", fused, model=f"BM25 + {of['model']} + {stage.about}",
                        weight=chosen["weight"], second_weight=chosen["second_weight"], **more))
