"""Near-duplicate passages: texts that share most of their word shingles."""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction import FeatureHasher

from embedding_finetune.data.normalize import word_tokens

SHINGLE_WORDS = 5
NEAR_DUPLICATE = 0.8  # fraction of the shorter text's shingles that the longer one must contain
HASHED_TEXTS = 10_000  # texts that are hashed at once
CANDIDATE_PAIRS, COMPARED_PAIRS = 5_000_000, 100_000  # about as many pairs are found, and compared, at once
HASHER = FeatureHasher(n_features=2**31 - 1, input_type="string", alternate_sign=False)


def near_duplicates(texts: Iterable[str]) -> np.ndarray:
    """All pairs of near-duplicate texts: int64 array (pairs, 2) of positions, the lower one first.

    Two texts are near-duplicates if the longer one contains at least NEAR_DUPLICATE of the shingles (SHINGLE_WORDS
    consecutive words) of the shorter one (containment, Broder 1997). A text with fewer words is one shingle. Shingles
    are compared by 31-bit hashes. A pair whose shorter text is one shingle is compared by words as well, since single
    hashes collide in large corpora. Memory: about 20 bytes per shingle. It grows with the pairs found, which are
    quadratic in the number of texts when all are alike.
    """
    texts = list(texts)
    hashes, sizes = _shingles(texts)
    by_hash = np.sort(hashes)
    shared = np.unique(by_hash[1:][by_hash[1:] == by_hash[:-1]])
    rows, columns = _positions(hashes, sizes, shared)
    ones = np.ones(len(rows), dtype=bool)  # of one byte, and a product of them cannot overflow
    pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *_near(
        csr_array((ones, (rows, columns)), shape=(len(texts), len(shared))), sizes)])
    kept = sizes[pairs].min(axis=1) > 1
    for place in np.flatnonzero(~kept):
        one, other = (set(_word_shingles(texts[number])) for number in pairs[place])
        kept[place] = not one.isdisjoint(other)
    return pairs[kept]


def near_duplicates_between(texts: Iterable[str], others: Iterable[str]) -> np.ndarray:
    """The pairs of near_duplicates with one text of `texts` and one of `others`: int64 array (pairs, 2) of positions
    in the two.

    Only texts that share a shingle with `others` are compared.
    """
    texts, others = list(texts), list(others)
    candidates = np.unique(_positions(*_shingles(texts), np.unique(_shingles(others)[0]))[0])
    near = near_duplicates([*(texts[number] for number in candidates), *others])
    near = near[(near[:, 0] < len(candidates)) & (near[:, 1] >= len(candidates))]
    return np.stack([candidates[near[:, 0]], near[:, 1] - len(candidates)], axis=1)


def _word_shingles(text: str) -> list[str]:
    words = word_tokens(text)
    return [" ".join(words[start:start + SHINGLE_WORDS])
            for start in range(max(1, len(words) - SHINGLE_WORDS + 1))] if words else []


def _shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shingles of each text as int32 hashes in one array, text by text, and their number per text."""
    hashes: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
    sizes: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(texts), HASHED_TEXTS):
        counts = HASHER.transform(map(_word_shingles, texts[start:start + HASHED_TEXTS]))
        hashes.append(counts.indices)
        sizes.append(np.diff(counts.indptr))
    return np.concatenate(hashes), np.concatenate(sizes)


def _positions(hashes: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shingles whose hashes are `wanted` (sorted): the text of each, and the position of its hash in `wanted`."""
    if not len(wanted):
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
    columns = np.searchsorted(wanted, hashes)
    columns[columns == len(wanted)] = 0
    found = wanted[columns] == hashes
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[found], columns[found].astype(np.int32)


def _near(shingles: csr_array, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of near_duplicates, in arrays (pairs, 2).

    `shingles` is the (texts, shingles) incidence matrix of the shingles that occur in several texts; `sizes` is the
    number of all shingles per text. Only pairs that share a rare shingle are compared: if the shorter text may miss m
    shingles, a near-duplicate shares at least one of its m + 1 rarest ones (prefix filter, Chaudhuri et al. 2006).
    """
    required = np.ceil(NEAR_DUPLICATE * sizes - 1e-9)
    rows, columns = shingles.nonzero()
    allowed = np.bincount(rows, minlength=len(sizes)) - required  # misses, less the shingles that no other text has
    frequency = np.bincount(columns)
    order = np.lexsort((frequency[columns], rows))
    rare = order[np.arange(len(order)) - np.searchsorted(rows, rows) <= allowed[rows]]
    prefix = csr_array((np.ones(len(rare), dtype=bool), (rows[rare], columns[rare])), shape=shingles.shape)
    candidates = np.cumsum(np.bincount(rows[rare], frequency[columns[rare]], minlength=len(sizes)))
    ends = np.searchsorted(candidates, np.arange(CANDIDATE_PAIRS, candidates.max(initial=0), CANDIDATE_PAIRS))
    by_shingle = shingles.T.tocsr()
    for block in np.split(np.arange(len(sizes)), ends):
        found = (prefix[block] @ by_shingle).tocoo()
        one, other = block[found.row], found.col
        shorter = (sizes[one] < sizes[other]) | ((sizes[one] == sizes[other]) & (one < other))
        one, other = one[shorter], other[shorter]
        for start in range(0, len(one), COMPARED_PAIRS):
            pairs = np.stack([one, other], axis=1)[start:start + COMPARED_PAIRS]
            common = shingles[pairs[:, 0]].multiply(shingles[pairs[:, 1]]).sum(axis=1)
            yield np.sort(pairs[common >= required[pairs[:, 0]]], axis=1)
