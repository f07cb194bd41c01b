"""The audit: nothing of the dev and test part is in a training file, as the files are on disk."""

import json
from itertools import chain

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.texts import near_duplicates_of, passage_id
from embedding_finetune.files import UserError
from embedding_finetune.training.store import read_rows

POSITIVE, NEGATIVE = 1, 2  # bits: on which side of a training row a text was seen


def audit(settings, collection, files):
    """Look for dev and test items in these training files of DATA_DIR; returns a table of how many were found.

    Texts are compared as they count as the same (texts.normalise). `near-duplicates` counts the held-out positives to
    which a passage of the training file is nearly the same; that is a leak, too, unless NEAR_DUPLICATES_TOGETHER is
    off. A part that came with the data may share queries and positives with the training part, but no negative may be
    one of its positives, or nearly. Raises UserError when anything leaked.
    """
    tables, rows = [], {name: read_rows([settings.data_dir / name]) for name in files}
    texts = _Texts(rows.values(), collection)
    for name in files:
        found = list(_found(name, rows[name], texts, collection))
        tables.append(pd.DataFrame(found).set_index(["file", "against"]))
        for row in found:
            may_be = () if settings.near_duplicates_together else ("near-duplicates",)
            may_be += ("queries", "positives") if row["against"] in collection.given else ()
            if any(count for what, count in row.items() if what not in ("file", "against", *may_be)):
                raise UserError(f"{settings.data_dir / name} is not clean, a count above 0 is a leak: "
                                f"{json.dumps(found)}; run both build notebooks again")
    return pd.concat(tables)


def audit_data(settings, files):
    """The audit of what is on disk, collection and training files."""
    return audit(settings, read_data(settings), files)


class _Texts:
    """The different passages of all rows, each looked at once: `keys` (sorted), by which positions find them, `same`,
    numbers that agree where texts count as the same, and `near`, pairs of a text and a held-out positive.
    """

    def __init__(self, rows, collection):
        self.keys, texts = np.empty(0, dtype=np.int64), []
        for some in rows:
            used = np.zeros(len(some.keys), dtype=bool)
            for _, positions in chain(_lists(some, "pos"), _lists(some, "neg")):
                used[positions] = True
            used = np.flatnonzero(used)
            keys, first = np.unique(some.keys[used], return_index=True)
            new = ~np.isin(keys, self.keys)
            texts += map(some.text, used[first[new]].tolist())
            self.keys = np.append(self.keys, keys[new])
        order = np.argsort(self.keys)
        self.keys, texts = self.keys[order], [texts[number] for number in order]
        self.normal = _normal(texts)
        self.same = np.unique(self.normal, return_inverse=True)[1]
        self.held_out = {part: [collection.corpus[passage] for passage in collection.part(part).pool()[0]]
                         for part in ("dev", "test")}
        self.near = near_duplicates_of(texts, chain.from_iterable(self.held_out.values()))


def _found(name, rows, texts, collection):
    number, sides, own, repeated = np.searchsorted(texts.keys, rows.keys), np.zeros(len(texts.keys), np.uint8), 0, 0
    for (pos_rows, pos), (neg_rows, neg) in zip(_lists(rows, "pos"), _lists(rows, "neg")):
        pos, neg = number[pos], number[neg]
        sides[pos] |= POSITIVE
        sides[neg] |= NEGATIVE
        pos, neg = pos_rows * len(sides) + texts.same[pos], neg_rows * len(sides) + texts.same[neg]
        different = np.unique(neg)
        own += len(np.intersect1d(pos, different))
        repeated += len(neg) - len(different)
    queries, begin = _normal(rows.table["query"].to_pylist()), 0
    for part, held_out in texts.held_out.items():
        counted = texts.near[(texts.near[:, 1] >= begin) & (texts.near[:, 1] < begin + len(held_out))]
        begin += len(held_out)
        # What the positives of a part that came with the data are near to, its givers have to answer for.
        counted = counted[sides[counted[:, 0]] & (NEGATIVE if part in collection.given else POSITIVE | NEGATIVE) > 0]
        asked, same = _normal(collection.part(part).queries.values()), _normal(held_out)
        yield {"file": name, "against": part,
               "queries": len(np.intersect1d(queries, asked)),
               "positives": len(np.intersect1d(texts.normal[sides & POSITIVE > 0], same)),
               "negatives": len(np.intersect1d(texts.normal[sides & NEGATIVE > 0], same)),
               "near-duplicates": len(np.unique(counted[:, 1])),
               "own positives as negatives": own, "repeated negatives": repeated}


def _lists(rows, side):
    """Yield, for some rows at a time, the row and the position of each of their passages: two int64 arrays."""
    for chunk in rows.table[side].chunks:
        lengths = np.diff(chunk.offsets.to_numpy())
        yield np.repeat(np.arange(len(lengths)), lengths), chunk.flatten().to_numpy().astype(np.int64)


def _normal(texts):
    """64 bits a text, in which texts agree that count as the same: a uint64 array."""
    return np.fromiter((int(passage_id(text)[1:], 16) for text in texts), dtype=np.uint64)
