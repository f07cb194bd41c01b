"""Negatives for training queries: those that came with them, random ones, and mined hard ones that a positive-aware
filter has passed.

Everything here works on positions in the pool of training passages (see Pool), in batches of queries: memory
grows with queries times candidates, never with queries times passages.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.near_duplicates import near_duplicates_between
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.files import UserError

BATCH = 2048  # queries that are filtered together


@dataclass(frozen=True)
class NegativeCandidates:
    """The passages that the training part may use, by position, and which of them each training query has."""

    train: Collection
    ids: list        # position -> passage id
    positives: list  # for each query the positions of its positives
    negatives: list  # for each query the positions of the negatives that came with it
    num_eligible: int       # negatives are drawn and mined from the first so many, which are all positives of some query

    def texts(self):
        """The texts, by position."""
        return [self.train.corpus[passage] for passage in self.ids]


def negative_candidates(collection, near=True):
    """The Pool of a split Collection. No negative of it is a dev or test positive, or, with `near`, nearly the same.

    After our own split the training positives are none, so only negatives that came with the data are looked through;
    where parts came with the data, the training positives, too. These stay positives, but are drawn for no query.
    There, texts may also be in the corpus twice; both then have one position.
    """
    train = collection.split("train")
    own = {query: [passage for passage, grade in judged.items() if not grade]
           for query, judged in train.qrels.items() if not all(judged.values())}
    if not collection.predefined and not own:
        ids, positives = train.positive_pool()
        return NegativeCandidates(train, ids, positives, [[]] * len(positives), len(ids))
    key = {passage: passage_id(collection.corpus[passage]) for passage in collection.judged_passages()}
    positive = list(dict.fromkeys(passage for query in train.queries for passage in train.positives(query)))
    suspects = (positive if collection.predefined else []) + list(dict.fromkeys(chain.from_iterable(own.values())))
    held_out = [passage for part in ("dev", "test") for passage in collection.split(part).positive_pool()[0]]
    unsafe = {key[passage] for passage in held_out}
    if near:
        pairs = near_duplicates_between(*([collection.corpus[passage] for passage in some] for some in (suspects, held_out)))
        unsafe |= {key[suspects[place]] for place in pairs[:, 0]}
    safe, ids = [passage for passage in positive if key[passage] not in unsafe], {}
    for passage in chain(safe, positive, (passage for passage in suspects if key[passage] not in unsafe)):
        ids.setdefault(key[passage], passage)
    place = {text: position for position, text in enumerate(ids)}
    positives = [list(dict.fromkeys(place[key[passage]] for passage in train.positives(query)))
                 for query in train.queries]
    negatives = [list(dict.fromkeys(place[key[passage]] for passage in own.get(query, ())
                                    if key[passage] not in unsafe and place[key[passage]] not in answers))
                 for query, answers in zip(train.queries, positives)]
    lost = sum(map(len, own.values())) - sum(map(len, negatives))
    if lost:
        print(f"{lost} negatives that came with training queries are left out: they are dev or test positives, or "
              "nearly")
    return NegativeCandidates(train, list(ids.values()), positives, negatives, len({key[passage] for passage in safe}))


def add_predefined(pool, chosen):
    """The negatives that came with each query, as many as there is room for, and then those of its row of `chosen`;
    and for each place whether its negative came with the query: two arrays of the shape of `chosen`.
    """
    merged, given = chosen.copy() if any(pool.negatives) else chosen, np.zeros(chosen.shape, dtype=bool)
    for row, own in enumerate(pool.negatives):
        if own:
            own = own[:chosen.shape[1]]
            merged[row] = [*own, *chosen[row, :chosen.shape[1] - len(own)]]
            given[row, :len(own)] = True
    return merged, given


def sample_random(positives, pool_size, number, seed):
    """Draw `number` distinct random negatives for each query, never one of its positives.

    `positives` lists for each query the positions of its positives in the pool of passages, or of whatever else must
    not be drawn for it; those beyond pool_size are not drawn for any.
    Returns an int array of shape (queries, number) of positions in the pool; each set of negatives is equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), run for all queries at once: `number` vectorised steps,
    whatever the number of queries. The positives are left out by drawing from a pool that is smaller by their number
    and moving each draw past the positives before it, so nothing has to be drawn again. Raises UserError when a
    query has fewer than `number` passages to draw from.
    """
    flat = np.fromiter(chain.from_iterable(positives), dtype=np.int64)
    rows = np.repeat(np.arange(len(positives)), [len(own) for own in positives])[flat < pool_size]
    places = np.sort(rows * pool_size + flat[flat < pool_size])  # row and position in one number, which sorts by both
    rows, taken = np.divmod(places[np.diff(places, prepend=-1) > 0], pool_size)
    sizes = np.bincount(rows, minlength=len(positives))
    available = pool_size - sizes
    if available.size and available.min() < number:
        raise UserError(f"{number} negatives a query were asked for, but a query has only {available.min()} other "
                        "passages in the training part: ask for fewer negatives or give more pairs (raise MAX_QUERIES)")
    rng = np.random.default_rng(seed)
    chosen = np.empty((number, len(positives)), dtype=np.int32)  # what is drawn for all queries at once lies together
    for step in range(number):
        last = available - number + step
        draw = _num_eligible(rng, last)
        chosen[step] = np.where((chosen[:step] == draw).any(axis=0), last, draw)
    first = np.cumsum(sizes) - sizes
    for column in range(sizes.max(initial=0)):
        some = np.flatnonzero(sizes > column)
        chosen[:, some] += chosen[:, some] >= taken[first[some] + column]
    return np.ascontiguousarray(chosen.T)


def _num_eligible(rng, last):
    """A number from 0 to each of `last`; one range for all is drawn from faster, and gives the same numbers."""
    if last.size and last.min() == last.max():
        return rng.integers(0, last[0] + 1, size=last.size).astype(np.int32)
    return rng.integers(0, last + 1)


@dataclass(frozen=True)
class Filter:
    """Which candidates are safe to call negative, by a model's scores beside those of the positives.

    `relative_margin 0.95`: only candidates scored below 95 % of the positive's score; `absolute_margin 0.05`: only those scored lower by
    more than 0.05; `rank_range 10 60`: only those that stand from rank 10 to 60 among the candidates; `none`: all. The
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
        if self.kind == "relative_margin":
            return scores < positive - (1 - self.values[0]) * np.abs(positive)
        if self.kind == "absolute_margin":
            return scores < positive - self.values[0]
        kept = np.ones(scores.shape, dtype=bool)
        if self.kind == "rank_range":
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


def filter_candidates(candidates, positives, query_vectors, passage_vectors, rule):
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


def select_negatives(candidates, positives, near, pool_size, number, seed):
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
        unsafe = {passage for passage in unsafe if passage < pool_size}
        if pool_size - len(unsafe) < number:
            raise UserError(f"{number} negatives a query were asked for, but a query finds only "
                            f"{pool_size - len(unsafe)} in the training part that are no near-duplicates of its "
                            "positive: ask for fewer or give more pairs (raise MAX_QUERIES)")
        safe = (passage for passage in found[found >= 0].tolist() if passage not in unsafe)
        picked = dict.fromkeys(islice(safe, number))
        mined[row] = len(picked)
        while len(picked) < number:
            passage = int(rng.integers(pool_size))
            if passage not in unsafe:
                picked[passage] = None
        chosen[row] = list(picked)
    return chosen, mined
