"""When two texts count as the same, and when they say nearly the same."""

import hashlib
import unicodedata

import numpy as np
import regex
from scipy.sparse import csr_array

GRAM = 5  # words
NEAR_DUPLICATE = 0.8  # share of the shorter text's runs of words that the longer one must have
# Scripts that put no spaces between words: Han, kana, and those whose lines break by dictionary (UAX 14's class SA:
# Thai, Lao, Khmer, Burmese ..). In the others a word goes on over marks: Hindi writes its vowels with them.
UNSPACED, SPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{LB=SA}]", r"[\p{L}\p{N}_]"
WORD = regex.compile(rf"{UNSPACED}|[{SPACED}--{UNSPACED}][[{SPACED}\p{{M}}]--{UNSPACED}]*", regex.V1)


def tidy(text):
    """A text without white space around it; half a surrogate pair, which no file can hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def normalise(text):
    """The form in which two texts count as the same: Unicode NFKC, case folded, white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def passage_id(text):
    """An id that depends on nothing but the normalised text, so that it is the same in every file and every run."""
    return "p" + hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def query_id(text):
    """The id of a query whose source gives none."""
    return "q" + hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def words(text):
    """The words of a text, lower-cased, without punctuation; of a script without spaces each character is one.

    They say whether texts are alike and how long they are, which needs no dictionary (for a search, see words.Words).
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def near_duplicates(texts):
    """Pairs of texts that say nearly the same in the same words: int array (pairs, 2) of positions, the lower one
    first.

    Two texts do so when the longer one contains at least NEAR_DUPLICATE of the runs of GRAM words of the shorter one
    (containment, Broder 1997); a text of fewer words is one run. The result is exact: a pair that qualifies shares
    one of the rarest runs of its shorter text, as many as it may miss and one more (prefix filter, Chaudhuri et al.
    2006), so that only texts with such a run in common are counted.
    """
    grams = _gram_matrix([words(text) for text in texts])
    sizes = np.diff(grams.indptr)
    rarity = np.bincount(grams.indices)[grams.indices]
    rows = np.repeat(np.arange(len(texts)), sizes)
    order = np.lexsort((rarity, rows))
    place = np.arange(len(order)) - np.repeat(grams.indptr[:-1], sizes)
    rare = order[place < np.repeat(sizes - np.ceil(NEAR_DUPLICATE * sizes - 1e-9) + 1, sizes)]
    prefix = csr_array((np.ones(len(rare), np.int32), (rows[rare], grams.indices[rare])), shape=grams.shape)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(texts), 4096):
        candidates = (prefix[start:start + 4096] @ grams.T).tocoo()
        one, other = candidates.row + start, candidates.col
        shorter = (sizes[one] < sizes[other]) | (sizes[one] == sizes[other]) & (one < other)
        one, other = one[shorter], other[shorter]
        for block in range(0, len(one), 100_000):
            a, b = one[block:block + 100_000], other[block:block + 100_000]
            shared = grams[a].multiply(grams[b]).sum(axis=1)
            near = shared >= NEAR_DUPLICATE * sizes[a] - 1e-9
            found.append(np.stack([np.minimum(a, b)[near], np.maximum(a, b)[near]], axis=1))
    return np.concatenate(found, dtype=np.int64)


def _gram_matrix(texts):
    """Which run of GRAM words occurs in which text: sparse array (texts, runs) of ones. `texts` are lists of words."""
    number = {}
    flat = np.array([number.setdefault(word, len(number)) for text in texts for word in text], dtype=np.uint64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(texts) else lengths
    hashes, rows = [], []
    for size in range(1, GRAM + 1):  # a text shorter than GRAM is one run of its own size
        of_size = np.flatnonzero(lengths == size if size < GRAM else lengths >= GRAM)
        runs = lengths[of_size] - size + 1
        at = np.repeat(starts[of_size] - np.concatenate([[0], np.cumsum(runs)[:-1]]), runs) + np.arange(runs.sum()) \
            if len(of_size) else np.empty(0, np.int64)
        value = np.full(len(at), size, dtype=np.uint64)
        for offset in range(size):  # a polynomial in 64 bits; two runs collide once in some 10 ** 19
            value = (value ^ (value >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
            value += flat[at + offset] + np.uint64(1)
        hashes.append(value)
        rows.append(np.repeat(of_size, runs))
    _, columns = np.unique(np.concatenate(hashes), return_inverse=True)
    rows = np.concatenate(rows)
    cells = np.unique(np.stack([rows, columns]), axis=1)  # a run counts once a text
    return csr_array((np.ones(cells.shape[1], np.int32), (cells[0], cells[1])),
                     shape=(len(texts), int(columns.max(initial=-1)) + 1))
