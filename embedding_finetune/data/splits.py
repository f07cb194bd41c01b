"""A split in which nothing of the test set can be learnt: by query and by positive passage at once."""

import dataclasses
from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.files import UserError


def assign_splits(collection, *, test_fraction, dev_fraction, seed, together=True):
    """The collection with each query assigned to `train`, `dev` or `test`.

    Queries that share a positive passage, directly or over other queries, stay together, and with `together` also
    those whose positives say nearly the same (texts.near_duplicates): they are the connected components of the graph
    of queries and passages. Whole components are dealt out in a seeded random order, test first, while they fit the
    share wanted: `test_fraction` of all queries, then `dev_fraction` of the rest. Nothing has to be dropped to keep
    the parts apart. Parts that came with the data stay; only what is missing is cut from their training part. Raises
    UserError when a part would be empty.

    Where people wrote some queries and the others are pseudo-queries, the test part is what people wrote, and the
    pseudo-queries of its components are left out.
    """
    missing = [part for part in ("test", "dev") if part not in collection.predefined]
    if not missing:
        return collection
    whole, collection = collection, collection.split("train") if collection.predefined else collection
    component = _components(collection, together)
    sizes = np.bincount(component)
    parts = np.full(len(sizes), "train", dtype="<U5")
    written = np.array([not query.startswith(PSEUDO_QUERY_PREFIX) for query in collection.queries], dtype=bool)
    mixed = written.any() and not written.all()
    asked = np.unique(component[written]) if mixed else np.empty(0, dtype=int)
    parts[asked] = "test"
    in_test = sizes[asked].sum() if mixed else round(test_fraction * len(component)) if "test" in missing else 0
    wanted = {"test": 0 if mixed else in_test, "dev": round(dev_fraction * (len(component) - in_test))}
    order = np.random.default_rng(seed).permutation(len(sizes))
    left = order[~np.isin(order, asked)].tolist()
    for part in missing:
        later, room = [], wanted[part]
        for index in left:
            if sizes[index] <= room:
                parts[index] = part
                room -= sizes[index]
            else:
                later.append(index)
        left = later
    assigned = parts[component].tolist()
    for part in ("train", *missing):
        if part not in assigned:
            raise UserError(f"{len(component)} queries are too few, or too entangled by shared passages, for a {part} "
                            "part: raise MAX_QUERIES, TEST_FRACTION or DEV_FRACTION, or give more pairs")
    parts = whole.splits | {query: part for query, part, own in zip(collection.queries, assigned, written)
                           if own or not (mixed and part == "test")}
    kept = whole if len(parts) == len(whole.queries) else whole.select_queries(parts)
    return dataclasses.replace(kept, splits=parts)


def _components(collection, together):
    """The connected component of each query in the graph of queries and positives, numbered from 0 without gaps."""
    pool, positives = collection.positive_pool()
    queries, size = len(positives), len(positives) + len(pool)
    one = np.repeat(np.arange(queries), [len(own) for own in positives])
    edges = [one, queries + np.fromiter(chain.from_iterable(positives), dtype=np.int64, count=len(one))]
    del positives
    if together:
        near = queries + near_duplicates([collection.corpus[passage] for passage in pool]).T
        edges = np.concatenate([edges, near], axis=1)
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), tuple(edges)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:queries]
