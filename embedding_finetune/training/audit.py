"""The audit: nothing of the dev and test part is in a training file, as the files are on disk."""

import json

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import MADE_BY, read_data
from embedding_finetune.data.texts import near_duplicates, passage_id, query_id
from embedding_finetune.files import UserError, iter_jsonl


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
    kept, key = {text: text for text in collection.corpus.values()}, {}  # one object and one key a text, not one a row

    def keys(texts):
        new = [kept.get(text, text) for text in texts if text not in key]
        key.update((text, passage_id(text)) for text in new)
        return [key[text] for text in texts]

    queries, positives, negatives, own, repeated = set(), set(), set(), 0, 0
    for row in iter_jsonl(path, required=("query", "pos", "neg"), made_by=MADE_BY):
        pos, neg = keys(row["pos"]), keys(row["neg"])
        queries.add(query_id(row["query"]))
        positives.update(pos)
        negatives.update(neg)
        own += len({*pos} & {*neg})
        repeated += len(neg) - len({*neg})
    held_out = {part: collection.part(part) for part in ("dev", "test")}
    passages = {part: [its.corpus[passage] for passage in its.pool()[0]] for part, its in held_out.items()}
    training = list(key)
    near = near_duplicates([*training, *passages["dev"], *passages["test"]])
    near = near[near[:, 0] < len(training)]
    negative = np.array([key[text] in negatives for text in training], dtype=bool)
    begin = len(training)
    for part, texts in passages.items():
        same, counted = set(map(passage_id, texts)), near[(near[:, 1] >= begin) & (near[:, 1] < begin + len(texts))]
        if part in collection.given:  # what its positives are near to, its givers have to answer for
            counted = counted[negative[counted[:, 0]]]
        begin += len(texts)
        yield {"file": path.name, "against": part,
               "queries": len(queries & set(map(query_id, held_out[part].queries.values()))),
               "positives": len(positives & same), "negatives": len(negatives & same),
               "near-duplicates": len(np.unique(counted[:, 1])),
               "own positives as negatives": own, "repeated negatives": repeated}
