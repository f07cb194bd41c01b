"""A split in which nothing of the test set can be learnt: by query and by positive passage at once."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from embedding_finetune.files import ExperimentError
from embedding_finetune.pairs import passage_id

PARTS = ("train", "dev", "test")


def split(pairs, *, test_fraction, dev_fraction, seed):
    """Assign each pair to `train`, `dev` or `test`; returns a list of those names, one a pair.

    Queries that share a positive passage, directly or over other queries, stay together: they are the connected components of
    the graph of queries and passages. Whole components are dealt out in a seeded random order, test first, while they fit the
    share wanted: `test_fraction` of all queries, then `dev_fraction` of the rest. Nothing has to be dropped to keep the parts
    apart. Raises ExperimentError when a part would be empty.
    """
    component = _components(pairs)
    sizes = np.bincount(component)
    parts = np.full(len(sizes), "train", dtype="<U5")
    wanted = {"test": round(test_fraction * len(pairs))}
    wanted["dev"] = round(dev_fraction * (len(pairs) - wanted["test"]))
    left = list(np.random.default_rng(seed).permutation(len(sizes)))
    for part, room in wanted.items():
        later = []
        for index in left:
            if sizes[index] <= room:
                parts[index] = part
                room -= sizes[index]
            else:
                later.append(index)
        left = later
    assigned = parts[component].tolist()
    for part in PARTS:
        if part not in assigned:
            raise ExperimentError(f"{len(pairs)} queries are too few, or too entangled by shared passages, for a {part} part: "
                                  "raise MAX_PAIRS, TEST_FRACTION or DEV_FRACTION, or give more pairs")
    return assigned


def _components(pairs):
    """The connected component of each pair in the graph of queries and positive passages, numbered from 0 without gaps."""
    number = {}
    edges = [(query, number.setdefault(passage_id(text), len(number)))
             for query, pair in enumerate(pairs) for text in pair["pos"]]
    queries, passages = np.array(edges, dtype=int).reshape(-1, 2).T
    size = len(pairs) + len(number)
    graph = coo_array((np.ones(len(edges)), (queries, passages + len(pairs))), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(pairs)]
