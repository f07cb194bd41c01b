"""Near-duplicate passages: texts that share most of their word shingles."""

from array import array
from collections import defaultdict
from itertools import count, repeat

import numpy as np
from scipy.sparse import csr_array

from embedding_finetune.data.normalize import word_tokens

SHINGLE_WORDS = 5  # words
TEXTS, BLOCK = 50_000, 5_000_000  # texts, and candidate pairs, that are processed at once
NEAR_DUPLICATE = 0.8  # fraction of the shorter text's shingles that the longer one must contain


def near_duplicates(texts):
    """All pairs of near-duplicate texts: int array (pairs, 2) of positions, the lower one first.

    Two texts are near-duplicates if the longer one contains at least NEAR_DUPLICATE of the shingles (SHINGLE_WORDS
    consecutive words) of the shorter one (containment, Broder 1997). A text with fewer words is one shingle. The result
    is exact: if the shorter text may miss m shingles, a qualifying pair shares at least one of its m + 1 rarest ones
    (prefix filter, Chaudhuri et al. 2006), so only texts that share such a shingle are compared. Memory: 4 bytes per
    word, the vocabulary, and the shingles of texts that may have a near-duplicate. It grows with the pairs found, which
    are quadratic in the number of texts when all are alike.
    """
    number = defaultdict(count().__next__)
    flat, bounds = _word_ids(texts, lambda found: map(number.__getitem__, found))
    del number
    if not len(flat):
        return np.empty((0, 2), dtype=np.int64)
    met = np.zeros(1 << min(27, int(len(flat)).bit_length() + 1), dtype=np.uint8)  # shingles by hash: 0, 1, or more
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
    """The pairs of near_duplicates with one text of `texts` and one of `others`: int array (pairs, 2) of positions in
    the two.

    Only texts that share the hash of a shingle with `others` are compared.
    """
    texts, others, number = list(texts), list(others), defaultdict(count(1).__next__)
    flat, bounds = _word_ids(others, lambda found: map(number.__getitem__, found))
    met = np.zeros(1 << min(27, int(len(flat)).bit_length() + 8), dtype=bool)  # shingles of `others` by hash
    for _, _, hashes in _all_shingles(flat, bounds):
        met[hashes & np.uint64(len(met) - 1)] = True
    flat, bounds = _word_ids(texts, lambda found: map(number.get, found, repeat(0)))  # 0: not in `others`
    sharing = np.zeros(len(texts), dtype=bool)
    for _, rows, hashes in _all_shingles(flat, bounds):
        sharing[rows[met[hashes & np.uint64(len(met) - 1)]]] = True
    candidates = np.flatnonzero(sharing)
    near = near_duplicates([*(texts[number] for number in candidates), *others])
    near = near[(near[:, 0] < len(candidates)) & (near[:, 1] >= len(candidates))]
    return np.stack([candidates[near[:, 0]], near[:, 1] - len(candidates)], axis=1)


def _contained(grams, sizes):
    """The pairs of near_duplicates, from the shingles of each text.

    `grams` is the (texts, shingles) incidence matrix, which may leave out shingles of a single text; `sizes` is the
    number of shingles per text.
    """
    alone = sizes - np.diff(grams.indptr)  # shingles that occur in this text only: the rarest
    spare = sizes - np.ceil(NEAR_DUPLICATE * sizes - 1e-9)  # shingles that the shorter text of a pair may miss
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
    """The words of all texts as ids in one array, and the offsets of the texts in it, with the end.

    `numbers` maps a list of words to ids.
    """
    flat, bounds = array("I"), array("q", [0])
    for text in texts:
        flat.extend(numbers(word_tokens(text)))
        bounds.append(len(flat))
    return np.array(flat, copy=False), np.array(bounds, copy=False)


def _shingles(flat, bounds):
    """As _all_shingles, but each shingle counts once per text."""
    for block, rows, hashes in _all_shingles(flat, bounds):
        order = np.lexsort((hashes, rows))
        hashes, rows = hashes[order], rows[order]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
        yield block, rows[new], hashes[new]


def _all_shingles(flat, bounds):
    """Yield, per block of texts, (slice of the texts, the text of each shingle, the hash of each shingle).

    All shingles have SHINGLE_WORDS words, except those of shorter texts.
    """
    for first in range(0, len(bounds) - 1, TEXTS):
        block = slice(first, min(first + TEXTS, len(bounds) - 1))
        starts, lengths = bounds[block], np.diff(bounds[first:block.stop + 1])
        hashes, rows = [], []
        for size in range(1, SHINGLE_WORDS + 1):  # a shorter text is one shingle of its own size
            of_size = np.flatnonzero(lengths == size if size < SHINGLE_WORDS else lengths >= SHINGLE_WORDS)
            runs = lengths[of_size] - size + 1
            ends = np.cumsum(runs)
            at = np.repeat(starts[of_size] - ends + runs, runs) + np.arange(runs.sum())
            value = np.full(len(at), size, dtype=np.uint64)
            for offset in range(size):  # polynomial hash in 64 bits; two shingles collide with probability 1e-19
                value = (value ^ (value >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
                value += flat[at + offset] + np.uint64(1)
            hashes.append(value)
            rows.append(np.repeat(of_size, runs))
        yield block, first + np.concatenate(rows), np.concatenate(hashes)
