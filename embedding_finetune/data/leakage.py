"""Leakage check: no dev or test item may occur in a training file, as the files are on disk."""

import json
from itertools import chain

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.near_duplicates import near_duplicates_between
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.files import UserError

POSITIVE, NEGATIVE = 1, 2  # bit mask: the side of a training row on which a text occurs


def check_leakage(settings, collection, files):
    """Search training files of DATA_DIR for dev and test items; returns a table of counts per file and split.

    Texts are compared in normalized form (normalize.normalize). `near-duplicates` counts the held-out positives with a
    near-duplicate in the training file, which is a leak unless GROUP_NEAR_DUPLICATES is off. With LEAKING_ROWS=keep a
    predefined split may share queries and positives with the training split, but no negative may be one of its
    positives or a near-duplicate of one. Raises UserError when anything leaked.
    """
    tables, rows = [], {name: read_rows(settings.paths.data / name) for name in files}
    texts = _Texts(rows.values(), collection)
    for name in files:
        found = list(_found(name, rows[name], texts, collection))
        tables.append(pd.DataFrame(found).set_index(["file", "against"]))
        for row in found:
            may_be = () if settings.group_near_duplicates else ("near-duplicates",)
            may_be += ("queries", "positives") if collection.leaking and row["against"] in collection.predefined else ()
            if any(count for what, count in row.items() if what not in ("file", "against", *may_be)):
                raise UserError(f"{settings.paths.data / name} is not clean, a count above 0 is a leak: "
                                f"{json.dumps(found)}; run both build notebooks again")
    return pd.concat(tables)


def check_leakage_on_disk(settings, files):
    """check_leakage with the collection read from disk."""
    return check_leakage(settings, read_data(settings), files)


class _Texts:
    """The distinct passages of all rows, numbered, each processed once.

    `normal` holds a hash of each normalized text, `same` a number that is equal for texts with equal hashes, and `near`
    pairs of a text and a held-out positive that are near-duplicates.
    """

    def __init__(self, rows, collection):
        self.keys, texts = np.empty(0, dtype=np.int64), []
        for some in rows:
            used = np.zeros(len(some.keys), dtype=bool)
            for _, positions in chain(_lists(some, "pos"), _lists(some, "neg")):
                used[positions] = True
            used = np.flatnonzero(used)
            used = used[np.sort(np.unique(some.keys[used], return_index=True)[1])]
            used = used[~np.isin(some.keys[used], self.keys)]
            texts += map(some.text, used.tolist())
            self.keys = np.append(self.keys, some.keys[used])
        self.order, self.normal = np.argsort(self.keys), _normal(texts)
        self.same = np.unique(self.normal, return_inverse=True)[1]
        self.held_out = {part: [collection.corpus[passage] for passage in collection.split(part).positive_pool()[0]]
                         for part in ("dev", "test")}
        self.near = near_duplicates_between(texts, chain.from_iterable(self.held_out.values()))

    def numbers(self, keys):
        """The numbers of the texts with these keys; arbitrary for a key that no row uses."""
        return self.order[np.minimum(np.searchsorted(self.keys, keys, sorter=self.order), len(self.order) - 1)]


def _found(name, rows, texts, collection):
    number, sides, contradictions, repeated = texts.numbers(rows.keys), np.zeros(len(texts.keys), np.uint8), 0, 0
    for (pos_rows, pos), (neg_rows, neg) in zip(_lists(rows, "pos"), _lists(rows, "neg")):
        pos, neg = number[pos], number[neg]
        sides[pos] |= POSITIVE
        sides[neg] |= NEGATIVE
        pos, neg = pos_rows * len(sides) + texts.same[pos], neg_rows * len(sides) + texts.same[neg]
        contradictions += _common(pos, neg)
        repeated += len(neg) - len(_different(neg))
    queries, first = _normal(rows.table["query"].to_pylist()), 0
    for part, held_out in texts.held_out.items():
        counted = texts.near[(texts.near[:, 1] >= first) & (texts.near[:, 1] < first + len(held_out))]
        first += len(held_out)
        # Near-duplicates between positives of a predefined split and training positives came with the data.
        checked = NEGATIVE if part in collection.predefined else POSITIVE | NEGATIVE
        counted = counted[sides[counted[:, 0]] & checked > 0]
        asked, same = _normal(collection.split(part).queries.values()), _normal(held_out)
        yield {"file": name, "against": part,
               "queries": _common(asked, queries),
               "positives": _common(same, texts.normal[sides & POSITIVE > 0]),
               "negatives": _common(same, texts.normal[sides & NEGATIVE > 0]),
               "near-duplicates": len(np.unique(counted[:, 1])),
               "own positives as negatives": contradictions, "repeated negatives": repeated}


def _different(numbers):
    """The distinct numbers, sorted. np.unique hashes them, which takes ten times as long for millions."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])[:len(numbers)]]


def _common(one, other):
    """The number of distinct values that occur in both arrays."""
    both = np.sort(np.concatenate([_different(one), _different(other)]))
    return int((both[1:] == both[:-1]).sum())


def _lists(rows, side):
    """Yield, per chunk of rows, the row and the passage position of each list entry: two int64 arrays."""
    for chunk in rows.table[side].chunks:
        lengths = np.diff(chunk.offsets.to_numpy())
        yield np.repeat(np.arange(len(lengths)), lengths), chunk.flatten().to_numpy().astype(np.int64)


def _normal(texts):
    """64-bit hashes of the normalized texts: a uint64 array."""
    return np.fromiter((int(passage_id(text)[1:], 16) for text in texts), dtype=np.uint64)
