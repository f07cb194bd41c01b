"""Negatives for training queries: random ones, and mined hard ones that a positive-aware filter has passed.

Everything here works on positions in the pool of training passages (0 to passages - 1), in batches of queries: memory
grows with queries times candidates, never with queries times passages.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import UserError

BATCH = 2048  # queries that are filtered together


def sample_random(positives, pool_size, number, seed):
    """Draw `number` distinct random negatives for each query, never one of its positives.

    `positives` lists for each query the positions (0 to pool_size - 1) of its positives in the pool of passages.
    Returns an int array of shape (queries, number) of positions in the pool; each set of negatives is equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), run for all queries at once: `number` vectorised steps,
    whatever the number of queries. The positives are left out by drawing from a pool that is smaller by their number
    and moving each draw past the positives before it, so nothing has to be drawn again. Raises UserError when a
    query has fewer than `number` passages to draw from.
    """
    taken = [sorted(set(row)) for row in positives]
    available = pool_size - np.array([len(row) for row in taken])
    if available.size and available.min() < number:
        raise UserError(f"{number} negatives a query were asked for, but a query has only {available.min()} other "
                        "passages in the training part: ask for fewer negatives or give more pairs (raise MAX_PAIRS)")
    rng = np.random.default_rng(seed)
    chosen = np.empty((len(taken), number), dtype=np.int64)
    for step in range(number):
        last = available - number + step
        draw = rng.integers(0, last + 1)
        met_before = (chosen[:, :step] == draw[:, None]).any(axis=1)
        chosen[:, step] = np.where(met_before, last, draw)
    past_the_end = pool_size  # moves nothing
    for column in range(max(map(len, taken), default=0)):
        obstacle = np.array([row[column] if column < len(row) else past_the_end for row in taken])
        chosen += chosen >= obstacle[:, None]
    return chosen


@dataclass(frozen=True)
class Filter:
    """Which candidates are safe to call negative, by a model's scores beside those of the positives.

    `share 0.95`: only candidates scored below 95 % of the positive's score; `margin 0.05`: only those scored lower by
    more than 0.05; `ranks 10 60`: only those that stand from rank 10 to 60 among the candidates; `none`: all. The
    first two are TopK-PercPos and TopK-MarginPos of NV-Retriever (Moreira et al. 2024, arXiv 2407.15831), the third
    is what came before.
    """

    kind: str
    values: tuple = ()

    @classmethod
    def parse(cls, text):
        """The filter that a checked recipe names."""
        kind, *values = text.split()
        return cls(kind, tuple(map(float, values)))

    def keeps(self, scores, positive_scores):
        """Bool, of the shape of `scores` (queries, candidates); `positive_scores` (queries,): the lowest positives'."""
        positive = np.asarray(positive_scores)[:, None]
        if self.kind == "share":
            return scores < positive - (1 - self.values[0]) * np.abs(positive)
        if self.kind == "margin":
            return scores < positive - self.values[0]
        kept = np.ones(scores.shape, dtype=bool)
        if self.kind == "ranks":
            kept[:, :int(self.values[0]) - 1] = kept[:, int(self.values[1]):] = False
        return kept


def interleave(first, second):
    """Two lists of candidates a query in turns: (queries, a) and (queries, b) -> (queries, a + b), -1 past the end."""
    width = max(first.shape[1], second.shape[1])
    both = np.stack([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
                     for part in (first, second)], axis=2)
    merged = np.full((len(first), first.shape[1] + second.shape[1]), -1, dtype=first.dtype)
    for row, candidates in zip(merged, both.reshape(len(first), -1)):
        found = candidates[candidates >= 0]
        _, places = np.unique(found, return_index=True)
        row[:len(places)] = found[np.sort(places)]
    return merged


def screen(candidates, positives, query_vectors, passage_vectors, rule):
    """Candidates with those set to -1 that are a positive of their query or that the Filter `rule` does not keep.

    `candidates`: int array (queries, depth), best first, -1 for none; `positives`: positions for each query; the
    vectors, float32 of shapes (queries, dimensions) and (passages, dimensions), are those of the model that filters.
    """
    screened = np.full_like(candidates, -1)
    for start in tqdm(range(0, len(candidates), BATCH), desc="filtering", unit="batch"):
        rows = slice(start, start + BATCH)
        some, vectors = candidates[rows], query_vectors[rows]
        scores = np.stack([passage_vectors[found] @ vector for found, vector in zip(some, vectors)])
        lowest = np.array([(passage_vectors[own] @ vector).min() for own, vector in zip(positives[rows], vectors)])
        own = np.array([np.isin(found, own) for found, own in zip(some, positives[rows])])
        screened[rows] = np.where(rule.keeps(scores, lowest) & ~own, some, -1)
    return screened


def choose(candidates, positives, near, pool_size, number, seed):
    """The first `number` candidates of each query that are no near-duplicate of a positive, filled up with random
    passages.

    `candidates` as `screen` returns them; `near` are the pairs of near-duplicates in the pool
    (texts.near_duplicates). Returns positions, int array of shape (queries, number), and for each row how many of
    them are mined; these come first. Random ones obey the same guard and are never a positive. Raises UserError
    when the pool is too small.
    """
    rng, alike = np.random.default_rng(seed), defaultdict(set)
    for one, other in near.tolist():
        alike[one].add(other)
        alike[other].add(one)
    chosen, mined = np.empty((len(candidates), number), dtype=np.int64), np.empty(len(candidates), dtype=np.int64)
    for row, (found, own) in enumerate(zip(tqdm(candidates, desc="choosing", unit="query"), positives)):
        unsafe = set(own).union(*(alike[positive] for positive in own))
        if pool_size - len(unsafe) < number:
            raise UserError(f"{number} negatives a query were asked for, but a query finds only "
                            f"{pool_size - len(unsafe)} in the training part that are no near-duplicates of its "
                            "positive: ask for fewer or give more pairs (raise MAX_PAIRS)")
        safe = (passage for passage in found[found >= 0].tolist() if passage not in unsafe)
        picked = dict.fromkeys(islice(safe, number))
        mined[row] = len(picked)
        while len(picked) < number:
            passage = int(rng.integers(pool_size))
            if passage not in unsafe:
                picked[passage] = None
        chosen[row] = list(picked)
    return chosen, mined
