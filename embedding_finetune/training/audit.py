"""The audit: nothing of the dev and test part is in a training file, as the files are on disk."""

import json
from array import array

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import MADE_BY, read_data
from embedding_finetune.data.texts import near_duplicates, passage_id
from embedding_finetune.files import UserError, iter_jsonl

POSITIVE, NEGATIVE = 1, 2  # bits: on which side of a training row a text was seen


def audit(settings, collection, files):
    """Look for dev and test items in these training files of DATA_DIR; returns a table of how many were found.

    Texts are compared as they count as the same (texts.normalise). `near-duplicates` counts the held-out positives to
    which a passage of the training file is nearly the same; that is a leak, too, unless NEAR_DUPLICATES_TOGETHER is
    off. A part that came with the data may share queries and positives with the training part, but no negative may be
    one of its positives, or nearly. Raises UserError when anything leaked.
    """
    tables = []
    for name in files:
        found = list(_found(settings.data_dir / name, collection))
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


def _found(path, collection):
    texts = list(dict.fromkeys(collection.corpus.values()))
    place = {text: number for number, text in enumerate(texts)}  # one object and one key a text, not one a row
    keys, sides, queries, own, repeated = array("Q", bytes(8 * len(texts))), bytearray(len(texts)), array("Q"), 0, 0

    def seen(row, side):
        found = []
        for text in row:
            number = place.setdefault(text, len(texts))
            if number == len(texts):
                texts.append(text)
                keys.append(0)
                sides.append(0)
            keys[number] = keys[number] or _key(text)
            sides[number] |= side
            found.append(keys[number])
        return found

    for row in iter_jsonl(path, required=("query", "pos", "neg"), made_by=MADE_BY):
        queries.append(_key(row["query"]))
        pos, neg = seen(row["pos"], POSITIVE), seen(row["neg"], NEGATIVE)
        own += len({*pos} & {*neg})
        repeated += len(neg) - len({*neg})
    del place
    sides, keys = np.frombuffer(sides, dtype=np.uint8), np.array(keys)
    training, negative = [text for text, side in zip(texts, sides) if side], sides[sides > 0] & NEGATIVE > 0
    held_out = {part: collection.part(part) for part in ("dev", "test")}
    passages = {part: [its.corpus[passage] for passage in its.pool()[0]] for part, its in held_out.items()}
    near = near_duplicates([*training, *passages["dev"], *passages["test"]])
    near = near[near[:, 0] < len(training)]
    begin = len(training)
    for part, texts in passages.items():
        counted = near[(near[:, 1] >= begin) & (near[:, 1] < begin + len(texts))]
        if part in collection.given:  # what its positives are near to, its givers have to answer for
            counted = counted[negative[counted[:, 0]]]
        begin += len(texts)
        asked, same = (np.fromiter(map(_key, some), dtype=np.uint64)
                       for some in (held_out[part].queries.values(), texts))
        yield {"file": path.name, "against": part,
               "queries": len(np.intersect1d(queries, asked)),
               "positives": len(np.intersect1d(keys[sides & POSITIVE > 0], same)),
               "negatives": len(np.intersect1d(keys[sides & NEGATIVE > 0], same)),
               "near-duplicates": len(np.unique(counted[:, 1])),
               "own positives as negatives": own, "repeated negatives": repeated}


def _key(text):
    """64 bits in which texts agree that count as the same."""
    return int(passage_id(text)[1:], 16)
