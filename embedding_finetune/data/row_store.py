"""Store of training rows: passages by position in one memory-mapped file, so each text is stored once.

In DATA_DIR, as Arrow IPC files (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format):

    passages.arrow           text and key (text_hash) of each training passage: each text once, for all recipes
    training_LABEL.arrow     id, query, query_key, pos and neg of each training query, the last two as positions in
                             passages.arrow, whose identity it records; with a teacher pos_scores and neg_scores

FlagEmbedding's format, JSON Lines with the text of each passage, is written from these.
"""

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_finetune.files import UserError, atomic_write, one_line, write_jsonl

PASSAGES = "passages.arrow"
BATCH = 10_000  # rows in memory at once while a file is written
STORE = pa.schema({"text": pa.large_string(), "key": pa.int64()})
ROWS = pa.schema({"id": pa.string(), "query": pa.string(), "query_key": pa.int64(), "pos": pa.list_(pa.int32()),
                  "neg": pa.list_(pa.int32())})
SCORES = {"pos_scores": pa.list_(pa.float64()), "neg_scores": pa.list_(pa.float64())}
ROWS_WITH_SCORES = pa.schema([*ROWS, *pa.schema(SCORES)])
MADE_BY = "build_train_dataset.ipynb or finetune_hard.sh"


def text_hash(text: str) -> int:
    """A signed 64-bit hash of a text, which processes can exchange in a tensor."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Rows:
    """A sequence of training rows: row i is a dict of query, pos, neg and id, with a teacher also pos_scores and
    neg_scores.

    Texts are looked up on access. `table` has the rows and `passages` the store (Arrow tables), `keys` the passages'
    keys (int64 array). Pickling stores the path only; another process maps the files again.
    """

    def __init__(self, path: str | Path, teacher: bool, passages: pa.Table, table: pa.Table):
        self.path, self.teacher, self.passages, self.table = path, teacher, passages, table
        self.keys, self._texts = passages["key"].to_numpy(), passages["text"]
        self._columns = {name: table[name] for name in table.column_names}

    def __reduce__(self):
        return read_rows, (self.path, self.teacher)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, number):
        names = ("query", "pos", "neg", "id", *SCORES)
        row = {name: self.value(name, number) for name in names if name in self._columns}
        return row | {side: list(map(self.text, row[side])) for side in ("pos", "neg")}

    def value(self, name: str, number: int) -> Any:
        """The value of a column in a row; passages are given as positions."""
        return self._columns[name][number].as_py()

    def text(self, position: int) -> str:
        """The text of a passage."""
        return self._texts[position].as_py()


def read_rows(path: str | Path, teacher: bool = False) -> Rows:
    """The Rows of a file written by write_rows, with a teacher's scores or without.

    Raises UserError when the file or its passages are missing or damaged, or do not belong together.
    """
    path = Path(path)
    table, store = _mapped(path, ROWS, ROWS_WITH_SCORES), path.with_name(PASSAGES)
    passages = _mapped(store, STORE)
    if teacher and table.schema.equals(ROWS):
        raise UserError(f"{path} has no teacher scores: it is made by {MADE_BY}")
    if (table.schema.metadata or {}).get(b"passages") != store_identity(passages["key"].to_numpy()).encode():
        raise UserError(f"{path} does not belong to the passages of {store}: run {MADE_BY} again to build both")
    for side in ("pos", "neg"):
        places = table[side].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if not len(places) or not (places.min() >= 0 and places.max() < len(passages)):  # NaN if a position is missing
            raise _damaged(path, f"{side!r} refers to passages that do not exist")
    return Rows(path, teacher, passages, table.select((ROWS_WITH_SCORES if teacher else ROWS).names))


def _mapped(path: Path, *schemas: pa.Schema) -> pa.Table:
    """The memory-mapped Arrow table of a file that has one of these schemas, fully validated."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if not any(map(table.schema.equals, schemas)):
            raise _damaged(path, "it has unexpected columns")
        table.validate(full=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it is made by {MADE_BY}") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, one_line(error)) from None
    return table


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}): run {MADE_BY} again")


def write_passages(path: Path, texts: Iterable[str]) -> str:
    """Write the store of these texts; returns its identity, which files of rows record."""
    _write(path, STORE, ({"text": text, "key": text_hash(text)} for text in texts))
    return store_identity(_mapped(path, STORE)["key"].to_numpy())


def write_rows(path: Path, rows: Iterable[dict], store: str, teacher: bool = False) -> None:
    """Write training rows for the store with this identity.

    Rows are dicts of id, query, pos and neg (positions), with a teacher also pos_scores and neg_scores.
    """
    schema = ROWS_WITH_SCORES if teacher else ROWS
    _write(path, schema.with_metadata({"passages": store}),
           (row | {"query_key": text_hash(row["query"])} for row in rows))


def _write(path: Path, schema: pa.Schema, rows: Iterable[dict]) -> None:
    rows = iter(rows)
    with atomic_write(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def write_for_flagembedding(path: Path, rows: Rows, prompt: str) -> None:
    """Write Rows in the format of FlagEmbedding's trainer: JSON Lines of query, pos, neg, id and prompt, with a teacher
    also pos_scores and neg_scores.

    FlagEmbedding prefers a row's prompt to the prompt in its flags.
    """
    order = dict.fromkeys(("query", "pos", "neg", "id", "prompt"))
    write_jsonl(path, (order | row | {"prompt": prompt} for row in rows))


def store_identity(keys: np.ndarray) -> str:
    """The identity of a store: a hash of its passages' keys in order."""
    return hashlib.sha256(keys.tobytes()).hexdigest()


def rows_identity(rows: Rows) -> str:
    """The identity of Rows: a hash of everything that is trained on, so of all columns but ids.

    It does not depend on the positions of the passages in their store.
    """
    digest = hashlib.sha256(rows.table["query_key"].to_numpy().tobytes())
    for name in ("pos", "neg", *SCORES):
        if name in rows.table.column_names:
            lists = rows.table[name].combine_chunks()
            digest.update(f"{name} {lists.value_lengths().to_numpy().tobytes().hex()}".encode())
            values = lists.flatten().to_numpy()
            digest.update((values if name in SCORES else rows.keys[values]).tobytes())
    return digest.hexdigest()
