"""The audit: nothing of the dev and test part is in a training file, as the files are on disk."""

import json
from itertools import chain

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.near_duplicates import near_duplicates_between
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.files import UserError

POSITIVE, NEGATIVE = 1, 2  # bits: on which side of a training row a text was seen


def check_leakage(settings, collection, files):
    """Look for dev and test items in these training files of DATA_DIR; returns a table of how many were found.

    Texts are compared as they count as the same (texts.normalise). `near-duplicates` counts the held-out positives to
    which a passage of the training file is nearly the same; that is a leak, too, unless GROUP_NEAR_DUPLICATES is
    off. A part that came with the data may share queries and positives with the training part, but no negative may be
    one of its positives, or nearly. Raises UserError when anything leaked.
    """
    tables, rows = [], {name: read_rows([settings.data_dir / name]) for name in files}
    texts = _Texts(rows.values(), collection)
    for name in files:
        found = list(_found(name, rows[name], texts, collection))
        tables.append(pd.DataFrame(found).set_index(["file", "against"]))
        for row in found:
            may_be = () if settings.group_near_duplicates else ("near-duplicates",)
            may_be += ("queries", "positives") if row["against"] in collection.predefined else ()
            if any(count for what, count in row.items() if what not in ("file", "against", *may_be)):
                raise UserError(f"{settings.data_dir / name} is not clean, a count above 0 is a leak: "
                                f"{json.dumps(found)}; run both build notebooks again")
    return pd.concat(tables)


def check_leakage_on_disk(settings, files):
    """The audit of what is on disk, collection and training files."""
    return check_leakage(settings, read_data(settings), files)


class _Texts:
    """The different passages of all rows, numbered, each looked at once: what is `normal` of them, numbers that agree
    where they count as the `same`, and `near`, pairs of a text and a held-out positive.
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
        """The texts' numbers by their keys; that of a text that no row has is any."""
        return self.order[np.minimum(np.searchsorted(self.keys, keys, sorter=self.order), len(self.order) - 1)]


def _found(name, rows, texts, collection):
    number, sides, own, repeated = texts.numbers(rows.keys), np.zeros(len(texts.keys), np.uint8), 0, 0
    for (pos_rows, pos), (neg_rows, neg) in zip(_lists(rows, "pos"), _lists(rows, "neg")):
        pos, neg = number[pos], number[neg]
        sides[pos] |= POSITIVE
        sides[neg] |= NEGATIVE
        pos, neg = pos_rows * len(sides) + texts.same[pos], neg_rows * len(sides) + texts.same[neg]
        own += _common(pos, neg)
        repeated += len(neg) - len(_different(neg))
    queries, begin = _normal(rows.table["query"].to_pylist()), 0
    for part, held_out in texts.held_out.items():
        counted = texts.near[(texts.near[:, 1] >= begin) & (texts.near[:, 1] < begin + len(held_out))]
        begin += len(held_out)
        # What the positives of a part that came with the data are near to, its givers have to answer for.
        counted = counted[sides[counted[:, 0]] & (NEGATIVE if part in collection.predefined else POSITIVE | NEGATIVE) > 0]
        asked, same = _normal(collection.split(part).queries.values()), _normal(held_out)
        yield {"file": name, "against": part,
               "queries": _common(asked, queries),
               "positives": _common(same, texts.normal[sides & POSITIVE > 0]),
               "negatives": _common(same, texts.normal[sides & NEGATIVE > 0]),
               "near-duplicates": len(np.unique(counted[:, 1])),
               "own positives as negatives": own, "repeated negatives": repeated}


def _different(numbers):
    """Each number once, sorted; np.unique and what uses it hash them, which for millions takes ten times as long."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])[:len(numbers)]]


def _common(some, others):
    """How many different numbers are among both."""
    both = np.sort(np.concatenate([_different(some), _different(others)]))
    return int((both[1:] == both[:-1]).sum())


def _lists(rows, side):
    """Yield, for some rows at a time, the row and the position of each of their passages: two int64 arrays."""
    for chunk in rows.table[side].chunks:
        lengths = np.diff(chunk.offsets.to_numpy())
        yield np.repeat(np.arange(len(lengths)), lengths), chunk.flatten().to_numpy().astype(np.int64)


def _normal(texts):
    """64 bits a text, in which texts agree that count as the same: a uint64 array."""
    return np.fromiter((int(passage_id(text)[1:], 16) for text in texts), dtype=np.uint64)
