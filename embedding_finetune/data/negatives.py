"""Negatives for training queries: predefined, random, or hard negatives that are mined and filtered by score.

All functions work on positions in the pool of training passages (see NegativeCandidates), in batches of queries: memory
grows with queries times candidates, never with queries times passages.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.near_duplicates import near_duplicates_between
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.files import UserError

BATCH = 2048  # queries that are filtered at once
Seed = int | Sequence[int] | np.random.Generator


@dataclass(frozen=True)
class NegativeCandidates:
    """The passages that the training split may use, by position, and the judged ones of each query."""

    train: Collection
    ids: list[str]  # position -> passage id
    positives: list[list[int]]  # per query: positions of its positives
    negatives: list[list[int]]  # per query: positions of its predefined negatives
    num_eligible: int  # random and mined negatives come from the first so many, all of them positives of some query

    def texts(self) -> list[str]:
        """The texts, by position."""
        return [self.train.corpus[passage] for passage in self.ids]

    def excluded(self) -> list[list[int]]:
        """Positions per query that are not drawn as negatives: positives, predefined negatives and copies of it."""
        found = [own + others if others else own for own, others in zip(self.positives, self.negatives)]
        place = {passage: position for position, passage in enumerate(self.ids)} if self.train.copies else {}
        for row, query in enumerate(self.train.queries if place else ()):
            copies = [place[passage] for passage in self.train.copies.get(query, ()) if passage in place]
            found[row] = found[row] + copies if copies else found[row]
        return found


def negative_candidates(collection: Collection, near: bool = True) -> NegativeCandidates:
    """The NegativeCandidates of a split Collection, without dev and test positives and, with `near`, their near-
    duplicates.

    After our own split no training positive is one of these, so only predefined negatives are checked. With predefined
    splits the training positives are checked as well: those found stay positives, but are not eligible as negatives.
    Such data may contain a text twice in the corpus; both copies get one position.
    """
    train = collection.split("train")
    own = {query: [passage for passage, grade in judged.items() if not grade]
           for query, judged in train.qrels.items() if not all(judged.values())}
    if not collection.predefined and not own:
        pool, positives = train.positive_pool()
        return NegativeCandidates(train, pool, positives, [[]] * len(positives), len(pool))
    key = {passage: passage_id(collection.corpus[passage]) for passage in collection.judged_passages()}
    positive, suspects = train.positive_pool()[0], list(dict.fromkeys(chain.from_iterable(own.values())))
    if collection.predefined:
        suspects = positive + suspects
    held_out = [passage for part in ("dev", "test") for passage in collection.split(part).positive_pool()[0]]
    unsafe = {key[passage] for passage in held_out}
    if near:
        pairs = near_duplicates_between(map(collection.corpus.__getitem__, suspects),
                                        map(collection.corpus.__getitem__, held_out))
        unsafe |= {key[suspects[place]] for place in pairs[:, 0]}
    ids: dict[str, str] = {}  # key -> passage id: eligible passages, other positives, predefined negatives
    safe, safe_suspects = ([passage for passage in some if key[passage] not in unsafe] for some in (positive, suspects))
    for passage in (*safe, *positive, *safe_suspects):
        ids.setdefault(key[passage], passage)
    place = {text: position for position, text in enumerate(ids)}
    positives = [list(dict.fromkeys(place[key[passage]] for passage in train.positives(query)))
                 for query in train.queries]
    negatives = [list(dict.fromkeys(place[key[passage]] for passage in own.get(query, ())
                                    if key[passage] not in unsafe and place[key[passage]] not in answers))
                 for query, answers in zip(train.queries, positives)]
    lost = sum(map(len, own.values())) - sum(map(len, negatives))
    if lost:
        print(f"{lost} negatives that came with training queries are left out: they are dev or test positives or "
              "near-duplicates of these")
    return NegativeCandidates(train, list(ids.values()), positives, negatives, len({key[passage] for passage in safe}))


def add_predefined(pool: NegativeCandidates, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the predefined negatives of each query before those of its row of `chosen`, which keeps its shape.

    Returns the merged array and a bool array of the same shape: whether the negative is predefined.
    """
    merged, predefined = chosen.copy() if any(pool.negatives) else chosen, np.zeros(chosen.shape, dtype=bool)
    for row, own in enumerate(pool.negatives):
        if own:
            own = own[:chosen.shape[1]]
            merged[row] = [*own, *chosen[row, :chosen.shape[1] - len(own)]]
            predefined[row, :len(own)] = True
    return merged, predefined


def most_negatives(positives: Sequence[Sequence[int]], pool_size: int) -> int:
    """The number of distinct random negatives that every query has; the arguments are those of sample_random."""
    _, sizes = _taken(positives, pool_size)
    return pool_size - int(sizes.max(initial=0))


def _taken(positives, pool_size):
    """The distinct positions below `pool_size`, query after query and sorted, and their number per query."""
    flat = np.fromiter(chain.from_iterable(positives), dtype=np.int64)
    rows = np.repeat(np.arange(len(positives)), [len(own) for own in positives])[flat < pool_size]
    places = np.sort(rows * pool_size + flat[flat < pool_size])  # row and position in one sortable number
    rows, taken = np.divmod(places[np.diff(places, prepend=-1) > 0], pool_size)
    return taken, np.bincount(rows, minlength=len(positives))


def sample_random(positives: Sequence[Sequence[int]], pool_size: int, number: int, seed: Seed) -> np.ndarray:
    """Draw `number` distinct random negatives per query, never one of its positives.

    `positives` lists per query the positions that must not be drawn for it; positions from pool_size on are not drawn
    for any query. Returns an int array (queries, number) of positions; each set of negatives is equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), vectorized over queries: `number` steps, whatever the
    number of queries. Positives are excluded by drawing from a pool reduced by their number and shifting each draw past
    the positives before it, so there are no rejections. Raises UserError when a query has fewer than `number` passages
    to draw from.
    """
    taken, sizes = _taken(positives, pool_size)
    available = pool_size - sizes
    if available.size and available.min() < number:
        raise UserError(f"{number} negatives per query were asked for, but a query has only {available.min()} other "
                        "passages in the training split: ask for fewer or give more pairs (raise MAX_QUERIES)")
    rng = np.random.default_rng(seed)
    chosen = np.empty((number, len(positives)), dtype=np.int32)  # transposed: each step writes one contiguous row
    for step in range(number):
        last = available - number + step
        draw = rng.integers(0, last + 1)
        chosen[step] = np.where((chosen[:step] == draw).any(axis=0), last, draw)
    first = np.cumsum(sizes) - sizes
    for column in range(sizes.max(initial=0)):
        some = np.flatnonzero(sizes > column)
        chosen[:, some] += chosen[:, some] >= taken[first[some] + column]
    return np.ascontiguousarray(chosen.T)


@dataclass(frozen=True)
class Filter:
    """The rule by which candidates are safe to use as negatives, from a model's scores of candidates and positives.

    `relative_margin 0.95` keeps candidates scored below 95 % of the positive's score; `absolute_margin 0.05` keeps
    those scored lower by more than 0.05; `rank_range 10 60` keeps ranks 10 to 60 of the candidates; `none` keeps all.
    The first two are TopK-PercPos and TopK-MarginPos of NV-Retriever (Moreira et al. 2024, arXiv 2407.15831), the third
    is the earlier practice.
    """

    kind: str
    values: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """The filter that a validated recipe names."""
        kind, *values = text.split()
        return cls(kind, tuple(map(float, values)))

    def keeps(self, scores: np.ndarray, positive_scores: np.ndarray) -> np.ndarray:
        """Bool array of the shape of `scores` (queries, candidates).

        `positive_scores` (queries,) holds the lowest score of each query's positives.
        """
        positive = positive_scores[:, None]
        if self.kind == "relative_margin":
            return scores < positive - (1 - self.values[0]) * np.abs(positive)
        if self.kind == "absolute_margin":
            return scores < positive - self.values[0]
        kept = np.ones(scores.shape, dtype=bool)
        if self.kind == "rank_range":
            kept[:, :int(self.values[0]) - 1] = kept[:, int(self.values[1]):] = False
        return kept


def interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Interleave two candidate lists per query without duplicates: (queries, a), (queries, b) -> (queries, a + b),
    padded with -1.
    """
    width = max(first.shape[1], second.shape[1])
    both = np.stack([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
                     for part in (first, second)], axis=2)
    merged = np.full((len(first), first.shape[1] + second.shape[1]), -1, dtype=first.dtype)
    for row, candidates in zip(merged, both.reshape(len(first), -1)):
        found = candidates[candidates >= 0]
        _, places = np.unique(found, return_index=True)
        row[:len(places)] = found[np.sort(places)]
    return merged


def filter_candidates(candidates: np.ndarray, positives: Sequence[Sequence[int]], query_vectors: np.ndarray,
                      passage_vectors: np.ndarray, rule: Filter) -> np.ndarray:
    """The candidates, with -1 for positives of their query and for those that the Filter `rule` rejects.

    `candidates` is an int array (queries, depth), best first, -1 for none; `positives` lists positions per query. The
    vectors, float32 (queries, dimensions) and (passages, dimensions), come from the model that filters.
    """
    filtered = np.full_like(candidates, -1)
    for start in tqdm(range(0, len(candidates), BATCH), desc="filtering candidates", unit="batch"):
        rows = slice(start, start + BATCH)
        batch, vectors = candidates[rows], query_vectors[rows]
        scores = np.stack([passage_vectors[found] @ vector for found, vector in zip(batch, vectors)])
        lowest = np.array([(passage_vectors[own] @ vector).min() for own, vector in zip(positives[rows], vectors)])
        own = np.array([np.isin(found, own) for found, own in zip(batch, positives[rows])])
        filtered[rows] = np.where(rule.keeps(scores, lowest) & ~own, batch, -1)
    return filtered


def select_negatives(candidates: np.ndarray, positives: Sequence[Sequence[int]], near: np.ndarray, pool_size: int,
                     number: int, seed: Seed) -> tuple[np.ndarray, np.ndarray]:
    """The first `number` candidates per query that are not near-duplicates of a positive, filled up with random
    passages.

    `candidates` as returned by `filter_candidates`; `near` are the pairs of near-duplicates in the pool
    (near_duplicates.near_duplicates). Returns an int array (queries, number) of positions, mined ones first, and the
    number of mined ones per row. Random ones are never a positive or its near-duplicate. Raises UserError when the pool
    is too small.
    """
    rng, alike = np.random.default_rng(seed), defaultdict(set)
    for one, other in near.tolist():
        alike[one].add(other)
        alike[other].add(one)
    chosen, mined = np.empty((len(candidates), number), dtype=np.int64), np.empty(len(candidates), dtype=np.int64)
    for row, (found, own) in enumerate(zip(tqdm(candidates, desc="selecting negatives", unit="query"), positives)):
        unsafe = set(own).union(*(alike[positive] for positive in own))
        unsafe = {passage for passage in unsafe if passage < pool_size}
        if pool_size - len(unsafe) < number:
            raise UserError(f"{number} negatives per query were asked for, but a query has only "
                            f"{pool_size - len(unsafe)} passages in the training split that are not near-duplicates of "
                            "its positives: ask for fewer or give more pairs (raise MAX_QUERIES)")
        safe = (passage for passage in found[found >= 0].tolist() if passage not in unsafe)
        picked = dict.fromkeys(islice(safe, number))
        mined[row] = len(picked)
        while len(picked) < number:
            passage = int(rng.integers(pool_size))
            if passage not in unsafe:
                picked[passage] = None
        chosen[row] = list(picked)
    return chosen, mined
