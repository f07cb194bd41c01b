"""The audit: nothing of the dev and test part is in a training file, as the files are on disk."""

import json

import pandas as pd

from embedding_finetune.data.collection import MADE_BY, read_data
from embedding_finetune.data.texts import near_duplicates, normalise
from embedding_finetune.files import UserError, read_jsonl


def audit(settings, collection, files):
    """Look for dev and test items in these training files of DATA_DIR; returns a table of how many were found.

    Texts are compared as they count as the same (texts.normalise). `near-duplicates` counts the held-out positives to
    which a passage of the training file is nearly the same; that is a leak, too, unless NEAR_DUPLICATES_TOGETHER is
    off. Raises UserError when anything leaked.
    """
    tables = []
    for name in files:
        rows = read_jsonl(settings.data_dir / name, required=("query", "pos", "neg"), made_by=MADE_BY)
        found = list(_found(name, rows, collection))
        tables.append(pd.DataFrame(found).set_index(["file", "against"]))
        leaks = tables[-1] if settings.near_duplicates_together else tables[-1].drop(columns="near-duplicates")
        if leaks.to_numpy().any():
            raise UserError(f"{settings.data_dir / name} is not clean, a count above 0 is a leak: {json.dumps(found)}; "
                            "run both build notebooks again")
    return pd.concat(tables)


def audit_data(settings, files):
    """The audit of what is on disk, collection and training files."""
    return audit(settings, read_data(settings), files)


def _found(name, rows, collection):
    queries = {normalise(row["query"]) for row in rows}
    positives, negatives = ({normalise(text) for row in rows for text in row[side]} for side in ("pos", "neg"))
    own = sum(len({*map(normalise, row["pos"])} & {*map(normalise, row["neg"])}) for row in rows)
    repeated = sum(len(row["neg"]) - len({*map(normalise, row["neg"])}) for row in rows)
    training = list(dict.fromkeys(text for row in rows for side in ("pos", "neg") for text in row[side]))
    for part in ("dev", "test"):
        held_out = collection.part(part)
        passages = [held_out.corpus[passage] for passage in held_out.pool()[0]]
        same = set(map(normalise, passages))
        near = {other for one, other in near_duplicates(training + passages).tolist() if one < len(training) <= other}
        yield {"file": name, "against": part,
               "queries": len(queries & {normalise(text) for text in held_out.queries.values()}),
               "positives": len(positives & same), "negatives": len(negatives & same), "near-duplicates": len(near),
               "own positives as negatives": own, "repeated negatives": repeated}
