"""Selection among systems: on which queries, and when these are too few.

The best of several nearly equal systems on a dozen queries is a matter of chance. Below MIN_QUERIES, nothing is
selected and no weight is tuned: defaults take their place. Systems without training may be selected and tuned on the
training queries as well, since they have not seen them, and do so where dev is that small.
"""

from dataclasses import dataclass

import numpy as np

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.normalize import is_pseudo_query
from embedding_finetune.evaluation.significance import SEED

MIN_QUERIES = 50
MAX_QUERIES = 1000  # of a small dev split with training queries, a sample: more are not needed for a selection
RESAMPLES = 1000
MIN_STABILITY = 0.5  # below, most selections on other queries would differ


@dataclass(frozen=True)
class Selection:
    """A selected system, on how many queries, and the share of selections on resampled queries that agree.

    `is_default` if the queries do not suffice, so that the default takes the place of the selected one.
    """

    label: str
    queries: int
    stability: float
    is_default: bool


def selection_queries(collection: Collection, trained: bool) -> Collection:
    """The queries that select and tune a system, and the whole corpus.

    These are the dev queries. A system that is not `trained` gets the training queries as well if dev has fewer than
    MIN_QUERIES, and at most MAX_QUERIES in all. Pseudo-queries never join human-written ones.
    """
    dev = collection.split("dev")
    if trained or len(dev.queries) >= MIN_QUERIES or any(map(is_pseudo_query, dev.queries)):
        return dev
    more = [query for query in collection.split("train").queries if not is_pseudo_query(query)]
    order = np.random.default_rng(SEED).permutation(len(more))[:MAX_QUERIES - len(dev.queries)]
    return collection.select_queries([*dev.queries, *(more[place] for place in sorted(order))])


def select(values: dict[str, np.ndarray], default: str) -> Selection:
    """The system with the highest mean (the first of equals), or the default where the queries do not suffice.

    `values` are one array per label, (queries,) of a metric, over the same queries; `default` is one of the labels. The
    default is taken below MIN_QUERIES, and where fewer than MIN_STABILITY of the selections on resampled queries agree.
    """
    labels, table = list(values), np.array(list(values.values()), float)  # systems x queries
    queries = table.shape[1]
    counts = np.random.default_rng(SEED).multinomial(queries, np.full(queries, 1 / queries), size=RESAMPLES)
    winners = (counts @ table.T).round(9).argmax(axis=1)  # rounding: equal systems have equal sums
    best = int(table.sum(axis=1).round(9).argmax())
    stability = float((winners == best).mean())
    is_default = queries < MIN_QUERIES or stability < MIN_STABILITY
    return Selection(default if is_default else labels[best], queries, stability, is_default)
