"""Near-duplicate passages: texts that share most of their word shingles."""

from array import array
from collections import defaultdict
from itertools import count, repeat

import numpy as np
from scipy.sparse import csr_array

from embedding_finetune.data.normalize import word_tokens

SHINGLE_WORDS = 5  # words
TEXTS, BLOCK = 50_000, 5_000_000  # texts whose runs, and pairs of texts that are looked at together
NEAR_DUPLICATE = 0.8  # share of the shorter text's runs of words that the longer one must have


def near_duplicates(texts):
    """Pairs of texts that say nearly the same in the same words: int array (pairs, 2) of positions, the lower one
    first.

    Two texts do so when the longer one contains at least NEAR_DUPLICATE of the runs of GRAM words of the shorter one
    (containment, Broder 1997); a text of fewer words is one run. The result is exact: a pair that qualifies shares
    one of the rarest runs of its shorter text, as many as it may miss and one more (prefix filter, Chaudhuri et al.
    2006), so that only texts with such a run in common are counted. Memory: 4 bytes a word, the different words, and
    the runs of texts that may have a near-duplicate; it grows with the pairs found, which are the square of the texts
    where all say the same.
    """
    number = defaultdict(count().__next__)
    flat, bounds = _word_ids(texts, lambda found: map(number.__getitem__, found))
    del number
    if not len(flat):
        return np.empty((0, 2), dtype=np.int64)
    met = np.zeros(1 << min(27, int(len(flat)).bit_length() + 1), dtype=np.uint8)  # of runs by hash: 0, 1, or more
    for _, _, hashes in _shingles(flat, bounds):
        cells, times = np.unique(hashes & np.uint64(len(met) - 1), return_counts=True)
        met[cells] = np.minimum(met[cells] + times, 2)
    sizes, wanted = np.zeros(len(bounds) - 1, dtype=np.int64), []
    for block, rows, hashes in _shingles(flat, bounds):
        shared = met[hashes & np.uint64(len(met) - 1)] > 1
        sizes[block] = of_block = np.bincount(rows - block.start, minlength=block.stop - block.start)
        enough = np.bincount(rows[shared] - block.start, minlength=len(of_block)) >= NEAR_DUPLICATE * of_block - 1e-9
        wanted.append(np.unique(hashes[shared & enough[rows - block.start]]))
    del met
    wanted, columns, known = np.unique(np.concatenate(wanted)), [], np.zeros(len(sizes) + 1, dtype=np.int64)
    last = np.append(wanted, np.uint64(0))
    for block, rows, hashes in _shingles(flat, bounds):
        place = np.searchsorted(wanted, hashes).astype(np.int32)
        found = last[place] == hashes
        columns.append(place[found])
        of_block = np.bincount(rows[found] - block.start, minlength=block.stop - block.start)
        known[block.start + 1:block.stop + 1] = of_block
    del flat
    columns = np.concatenate(columns)
    ones = np.ones(len(columns), dtype=bool)  # of one byte, and a product of them cannot overflow
    return _contained(csr_array((ones, columns, np.cumsum(known)), shape=(len(sizes), len(wanted))), sizes)


def near_duplicates_between(texts, others):
    """Those pairs of near_duplicates that are one of `texts` and one of `others`, as positions in the two: int array
    (pairs, 2). Only texts that share a run of words with any of `others` are compared at all (or whose hash does).
    """
    texts, others, number = list(texts), list(others), defaultdict(count(1).__next__)
    flat, bounds = _word_ids(others, lambda found: map(number.__getitem__, found))
    met = np.zeros(1 << min(27, int(len(flat)).bit_length() + 8), dtype=bool)  # runs of the others by hash
    for _, _, hashes in _all_shingles(flat, bounds):
        met[hashes & np.uint64(len(met) - 1)] = True
    flat, bounds = _word_ids(texts, lambda found: map(number.get, found, repeat(0)))  # 0: a word of no other
    sharing = np.zeros(len(texts), dtype=bool)
    for _, rows, hashes in _all_shingles(flat, bounds):
        sharing[rows[met[hashes & np.uint64(len(met) - 1)]]] = True
    some = np.flatnonzero(sharing)
    near = near_duplicates([*(texts[number] for number in some), *others])
    near = near[(near[:, 0] < len(some)) & (near[:, 1] >= len(some))]
    return np.stack([some[near[:, 0]], near[:, 1] - len(some)], axis=1)


def _contained(grams, sizes):
    """The pairs of near_duplicates: `grams` says which run is in which text (those in one text only may be left out),
    `sizes` how many runs a text has.
    """
    alone = sizes - np.diff(grams.indptr)  # runs of the text that no other has: the rarest
    spare = sizes - np.ceil(NEAR_DUPLICATE * sizes - 1e-9)  # runs that the shorter text of a pair may have for itself
    texts = np.flatnonzero(alone <= spare)
    some = grams[texts]
    rows, columns = np.repeat(np.arange(len(texts)), np.diff(some.indptr)), some.indices
    times = np.bincount(grams.indices, minlength=grams.shape[1])
    order = np.lexsort((times[columns], rows))
    place = np.arange(len(order)) + alone[texts][rows] - some.indptr[rows]
    rare = order[place < (spare + 1)[texts][rows]]
    effort = np.cumsum(np.bincount(rows[rare], times[columns[rare]], minlength=len(texts)))
    met, columns = np.unique(columns[rare], return_inverse=True)
    prefix = csr_array((np.ones(len(rare), dtype=bool), (rows[rare], columns)), shape=(len(texts), len(met)))
    found, by_text = [np.empty((0, 2), dtype=np.int64)], grams[:, met].T.tocsr()
    ends = np.searchsorted(effort, np.arange(BLOCK, effort.max(initial=0), BLOCK))
    for block in np.split(np.arange(len(texts)), ends):
        candidates = (prefix[block] @ by_text).tocoo()
        one, other = texts[block][candidates.row], candidates.col
        shorter = (sizes[one] < sizes[other]) | (sizes[one] == sizes[other]) & (one < other)
        one, other = one[shorter], other[shorter]
        for start in range(0, len(one), 100_000):
            a, b = one[start:start + 100_000], other[start:start + 100_000]
            near = grams[a].multiply(grams[b]).sum(axis=1) >= NEAR_DUPLICATE * sizes[a] - 1e-9
            found.append(np.stack([np.minimum(a, b)[near], np.maximum(a, b)[near]], axis=1))
    return np.concatenate(found, dtype=np.int64)


def _word_ids(texts, numbers):
    """The words of all texts as numbers, one array, and where each text begins in it and the last one ends; `numbers`
    has those of some words."""
    flat, bounds = array("I"), array("q", [0])
    for text in texts:
        flat.extend(numbers(word_tokens(text)))
        bounds.append(len(flat))
    return np.array(flat, copy=False), np.array(bounds, copy=False)


def _shingles(flat, bounds):
    """The same as _all_runs, but a run counts once a text."""
    for block, rows, hashes in _all_shingles(flat, bounds):
        order = np.lexsort((hashes, rows))
        hashes, rows = hashes[order], rows[order]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
        yield block, rows[new], hashes[new]


def _all_shingles(flat, bounds):
    """Which run of GRAM words occurs in which text, in blocks of texts: yields (slice of the texts, the text of each
    run, its hash).
    """
    for first in range(0, len(bounds) - 1, TEXTS):
        block = slice(first, min(first + TEXTS, len(bounds) - 1))
        starts, lengths = bounds[block], np.diff(bounds[first:block.stop + 1])
        hashes, rows = [], []
        for size in range(1, SHINGLE_WORDS + 1):  # a text shorter than GRAM is one run of its own size
            of_size = np.flatnonzero(lengths == size if size < SHINGLE_WORDS else lengths >= SHINGLE_WORDS)
            runs = lengths[of_size] - size + 1
            ends = np.cumsum(runs)
            at = np.repeat(starts[of_size] - ends + runs, runs) + np.arange(runs.sum())
            value = np.full(len(at), size, dtype=np.uint64)
            for offset in range(size):  # a polynomial in 64 bits; two runs collide once in some 10 ** 19
                value = (value ^ (value >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
                value += flat[at + offset] + np.uint64(1)
            hashes.append(value)
            rows.append(np.repeat(of_size, runs))
        yield block, first + np.concatenate(rows), np.concatenate(hashes)
