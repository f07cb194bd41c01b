"""Leakage-free train, dev and test splits: no query and no positive passage is in two of them.

Texts are compared in normalized form (normalize.normalize): the same text may have several ids.
"""

import dataclasses
import functools
from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import is_pseudo_query, passage_id, query_id
from embedding_finetune.files import UserError

SHOWN = 5  # queries that a message names


def assign_splits(collection, *, test_fraction, dev_fraction, seed, together=True):
    """The collection with each query assigned to `train`, `dev` or `test`.

    Queries that share a positive passage stay in one split, directly or through other queries, as do (with `together`)
    those whose positives are near-duplicates (near_duplicates.near_duplicates): they form the connected components of
    the graph of queries and passages. Components are assigned in seeded random order, test first, while they fit the
    size: `test_fraction` of all queries, then `dev_fraction` of the rest. Nothing has to be dropped. Predefined splits
    are kept; only missing ones are taken from the training split, or dev from test if there are test queries alone.
    Raises UserError when a split would be empty.

    Human-written queries are never trained on if there are pseudo-queries as well: their components are halved between
    test and dev (all are test if there is only one), and the pseudo-queries of these components are left out.
    """
    missing = [part for part in ("test", "dev") if part not in collection.predefined]
    if not missing:
        return collection
    rest = "test" if collection.predefined == ("test",) else "train"
    whole, collection = collection, collection.split(rest) if collection.predefined else collection
    component = _components(collection, together)
    sizes, queries = np.bincount(component), np.array(list(collection.queries), dtype=object)
    order = np.random.default_rng(seed).permutation(len(sizes))
    parts = np.full(len(sizes), rest, dtype="<U5")
    is_written = np.array([not is_pseudo_query(query) for query in queries], dtype=bool)
    is_mixed = is_written.any() and not is_written.all()
    held_out = order[np.isin(order, component[is_written])] if is_mixed else order[:0]
    half = -(-len(held_out) // 2)
    parts[held_out[:half]], parts[held_out[half:]] = "test", "dev"
    remaining = order[~np.isin(order, held_out)]
    test_size = 0 if is_mixed or "test" not in missing else round(test_fraction * len(component))
    dev_size = 0 if len(held_out) > 1 else round(dev_fraction * (sizes[remaining].sum() - test_size))
    _fill(parts, sizes, remaining, {part: {"test": test_size, "dev": dev_size}[part] for part in missing})
    assigned = parts[component]
    for part in (rest, *missing):
        if part not in assigned:
            raise UserError(f"{len(component)} queries are too few, or share too many passages, for a {part} "
                            "split: raise MAX_QUERIES, TEST_FRACTION or DEV_FRACTION, or give more pairs")
    is_kept = is_written | ~np.isin(component, held_out)
    splits = whole.splits | dict(zip(queries[is_kept], assigned[is_kept].tolist()))
    kept = whole if len(splits) == len(whole.queries) else whole.select_queries(splits)
    return dataclasses.replace(kept, splits=splits)


def _fill(parts, sizes, order, wanted):
    """Assign the components, in their order, to each of the `wanted` splits (name -> queries) while they fit."""
    remaining = order.tolist()
    for part, room in wanted.items():
        later = []
        for index in remaining:
            if sizes[index] <= room:
                parts[index] = part
                room -= sizes[index]
            else:
                later.append(index)
        remaining = later


def remove_leaks(collection: Collection, mode: str) -> tuple[Collection, dict[str, int]]:
    """The collection without the leaking pairs of a predefined training split, and their number for the report.

    A pair of a training query and a positive leaks if a dev or test query has the same text, or one of its positives
    does. `mode` is LEAKING_ROWS: `drop`, `keep` (only count them), or `stop` (raise UserError). Prints how many there
    are and names the first queries. Raises UserError when no training pair is left.
    """
    if not collection.predefined:
        return collection, {}
    train, key = collection.split("train"), functools.cache(passage_id)
    held_out = collection.select_queries([query for query, part in collection.splits.items() if part != "train"])
    queries = set(map(key, held_out.queries.values()))
    passages = {key(held_out.corpus[passage]) for query in held_out.queries for passage in held_out.positives(query)}
    leaks = {query: found for query, text in train.queries.items()
             if (found := {passage for passage in train.positives(query)
                           if key(text) in queries or key(train.corpus[passage]) in passages})}
    number = sum(map(len, leaks.values()))
    if not leaks:
        return collection, {}
    message = (f"{number} of {sum(len(train.positives(query)) for query in train.queries)} training pairs leak: their "
               f"query or passage is also in the dev or test split (queries {', '.join(list(leaks)[:SHOWN])}"
               f"{', ...' if len(leaks) > SHOWN else ''})")
    if mode == "stop":
        raise UserError(f"{message}; LEAKING_ROWS=drop leaves them out, LEAKING_ROWS=keep trains on them")
    print(f"{message}: {'kept, so that test results are too high' if mode == 'keep' else 'dropped'}")
    if mode == "keep":
        return dataclasses.replace(collection, leaking=number), {"leaking training pairs kept": number}
    qrels = collection.qrels | {query: {passage: grade for passage, grade in collection.qrels[query].items()
                                        if passage not in found} for query, found in leaks.items()}
    found = dataclasses.replace(collection, qrels=qrels)
    found = found.select_queries([query for query in found.queries if query not in leaks or found.positives(query)])
    if "train" not in found.splits.values():
        raise UserError(f"{message}, and no other is left to train on: LEAKING_ROWS=keep trains on them")
    return found, {"leaking training pairs dropped": number}


def _components(collection, together):
    """The connected component of each query in the graph of queries and positives, numbered from 0 without gaps."""
    pool, positives = collection.positive_pool()
    queries, size = len(positives), len(positives) + len(pool)
    one = np.repeat(np.arange(queries), [len(passages) for passages in positives])
    edges = [one, queries + np.fromiter(chain.from_iterable(positives), dtype=np.int64, count=len(one))]
    del positives
    if collection.predefined:  # otherwise equal texts have one id, see deduplication
        keys = chain(map(query_id, collection.queries.values()), (passage_id(collection.corpus[key]) for key in pool))
        first = {}
        same = np.array([[first.setdefault(key, place), place] for place, key in enumerate(keys)]).T
        edges = np.concatenate([edges, same], axis=1)
    if together:
        near = queries + near_duplicates([collection.corpus[passage] for passage in pool]).T
        edges = np.concatenate([edges, near], axis=1)
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), tuple(edges)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:queries]
