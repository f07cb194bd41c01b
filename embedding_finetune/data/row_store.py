"""Store of training rows: passages by position in one memory-mapped file, so each text is stored once.

In DATA_DIR, as Arrow IPC files (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format):

    passages.arrow           text and key (text_hash) of each training passage: each text once, for all recipes
    training_LABEL.arrow     id, query, query_key, pos and neg of each training query, the last two as positions in
                             passages.arrow, whose identity it records; with a teacher pos_scores and neg_scores

Files in FlagEmbedding's format, JSON Lines with the text of each passage, can be written from these and read in their
place.
"""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_finetune.files import UserError, atomic_write, iter_jsonl, one_line, write_jsonl

PASSAGES = "passages.arrow"
BATCH = 10_000  # rows in memory at once while a file is written
STORE = pa.schema({"text": pa.large_string(), "key": pa.int64()})
ROWS = pa.schema({"id": pa.string(), "query": pa.string(), "query_key": pa.int64(), "pos": pa.list_(pa.int32()),
                  "neg": pa.list_(pa.int32())})
SCORES = {"pos_scores": pa.list_(pa.float64()), "neg_scores": pa.list_(pa.float64())}
ROWS_WITH_SCORES = pa.schema([*ROWS, *pa.schema(SCORES)])
MADE_BY = "build_train_dataset.ipynb or finetune_hard.sh"


def text_hash(text):
    """A signed 64-bit hash of a text, which processes can exchange in a tensor."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Rows:
    """A sequence of training rows: row i is a dict of query, pos, neg and id, with a teacher also pos_scores and
    neg_scores.

    Texts are looked up on access. `table` has the rows and `passages` the store (Arrow tables), `keys` the passages'
    keys (int64 array). Pickling stores the paths only; another process maps the files again.
    """

    def __init__(self, paths, teacher, passages, table):
        self.paths, self.teacher, self.passages, self.table = paths, teacher, passages, table
        self.keys, self._texts = passages["key"].to_numpy(), passages["text"]
        self._columns = {name: table[name] for name in table.column_names}

    def __reduce__(self):
        return read_rows, (self.paths, self.teacher)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, number):
        names = ("query", "pos", "neg", "id", *SCORES)
        row = {name: self.value(name, number) for name in names if name in self._columns}
        return row | {side: list(map(self.text, row[side])) for side in ("pos", "neg")}

    def value(self, name, number):
        """The value of a column in a row; passages are given as positions."""
        return self._columns[name][number].as_py()

    def text(self, position):
        """The text of a passage; raises UserError when it is damaged."""
        try:
            return self._texts[position].as_py()
        except UnicodeDecodeError:
            raise _damaged(", ".join(map(str, self.paths)), f"passage {position} is not valid text") from None


def read_rows(paths, teacher=False):
    """The Rows of training files (.arrow or FlagEmbedding's format), with a teacher's scores or without.

    Raises UserError naming file and row when a file is missing, damaged or not trainable.
    """
    passages, tables, offset = [], [], 0
    for path in map(Path, paths):
        store, table = (_stored if path.suffix == ".arrow" else _converted)(path, teacher)
        tables.append(_moved(table, offset))
        passages.append(store)
        offset += len(store)
    return Rows(paths, teacher, pa.concat_tables(passages), pa.concat_tables(tables))


def _moved(table, by):
    """Rows with the positions of their passages increased by `by`."""
    for name in ("pos", "neg") if by else ():
        lists = [pa.ListArray.from_arrays(chunk.offsets, pc.add(chunk.values, pa.scalar(by, pa.int32())))
                 for chunk in table[name].chunks]
        table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(lists))
    return table


def _stored(path, teacher):
    """(store, rows) of a file written by write_rows, validated without reading the texts."""
    table, store = _mapped(path, ROWS, ROWS_WITH_SCORES), path.with_name(PASSAGES)
    passages = _mapped(store, STORE)
    if teacher and not table.schema.equals(ROWS_WITH_SCORES):
        raise UserError(f"{path} has no teacher scores: it is made by {MADE_BY}")
    named = (table.schema.metadata or {}).get(b"passages")
    if store_identity(passages["key"].to_numpy()).encode() != named:
        raise UserError(f"{path} does not belong to the passages of {store}: run {MADE_BY} again to build both")
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _damaged(path, one_line(error)) from None
    ends = [np.frombuffer(chunk.buffers()[1], dtype=np.int64, count=len(chunk) + 1) for chunk in
            passages["text"].chunks]
    if any((np.diff(end) < 0).any() for end in ends):
        raise _damaged(store, "its texts overlap")
    for side in ("pos", "neg"):
        bounds = pc.min_max(pc.list_flatten(table[side])).as_py()
        if not len(table) or bounds["min"] is None or bounds["min"] < 0 or bounds["max"] >= len(passages):
            raise _damaged(path, f"{side!r} refers to passages that do not exist")
    return passages, table.select((ROWS_WITH_SCORES if teacher else ROWS).names).replace_schema_metadata()


def _mapped(path, *schemas):
    """The memory-mapped Arrow table of a file that has one of these schemas."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it is made by {MADE_BY}") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, one_line(error)) from None
    if not any(map(table.schema.equals, schemas)):
        raise _damaged(path, "it has unexpected columns")
    return table


def _damaged(path, why):
    return UserError(f"{path} is damaged ({why}): run {MADE_BY} again")


def _converted(path, teacher):
    """(store, rows) of a file in FlagEmbedding's format, in memory, each text once."""
    position = {}

    def rows():
        for number, row in enumerate(iter_jsonl(path, required=("query", "pos", "neg"), made_by=MADE_BY), start=1):
            if not isinstance(row["query"], str):
                raise UserError(f"{path}, row {number}: 'query' must be a text; build the file again")
            for side in ("pos", "neg"):
                texts, scores = row[side], row.get(f"{side}_scores")
                if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                    raise UserError(f"{path}, row {number}: {side!r} must be a list of at least one text; "
                                    "build the file again")
                if teacher and not (isinstance(scores, list) and len(scores) == len(texts)
                                    and all(isinstance(score, int | float) for score in scores)):
                    raise UserError(f"{path}, row {number}: a teacher needs '{side}_scores', one number per text of "
                                    f"{side!r}")
                row[side] = [position.setdefault(text, len(position)) for text in texts]
            yield row | {"id": str(row["id"]) if "id" in row else None}

    schema = ROWS_WITH_SCORES if teacher else ROWS
    try:
        table = pa.Table.from_batches(_batches(_with_key(rows()), schema), schema)
        return pa.Table.from_batches(_batches(_passages(position), STORE), STORE), table
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a text has an unpaired surrogate ({error.object[error.start]!r}), which is not "
                        "a valid character; remove it") from None


def write_passages(path, texts):
    """Write the store of these texts; returns its identity, which files of rows record."""
    _write(path, STORE, _batches(_passages(texts), STORE))
    return store_identity(_mapped(path, STORE)["key"].to_numpy())


def write_rows(path, rows, store, teacher=False):
    """Write training rows for the store with this identity.

    Rows are dicts of id, query, pos and neg (positions), with a teacher also pos_scores and neg_scores.
    """
    schema = ROWS_WITH_SCORES if teacher else ROWS
    _write(path, schema.with_metadata({"passages": store}), _batches(_with_key(rows), schema))


def _write(path, schema, batches):
    with atomic_write(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(rows, schema):
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield pa.RecordBatch.from_pydict({name: [row[name] for row in batch] for name in schema.names}, schema)


def _passages(texts):
    return ({"text": text, "key": text_hash(text)} for text in texts)


def _with_key(rows):
    return (row | {"query_key": text_hash(row["query"])} for row in rows)


def write_for_flagembedding(path, rows, prompt):
    """Write Rows in the format of FlagEmbedding's trainer: JSON Lines of query, pos, neg, id and prompt, with a teacher
    also pos_scores and neg_scores.

    FlagEmbedding prefers a row's prompt to the prompt in its flags.
    """
    order = dict.fromkeys(("query", "pos", "neg", "id", "prompt"))
    write_jsonl(path, (order | row | {"prompt": prompt} for row in rows))


def store_identity(keys):
    """The identity of a store: a hash of its passages' keys in order."""
    return hashlib.sha256(keys.tobytes()).hexdigest()


def rows_identity(rows):
    """The identity of Rows: a hash of everything that is trained on, so of all columns but ids.

    It does not depend on the positions of the passages in their store.
    """
    digest = hashlib.sha256(rows.table["query_key"].to_numpy().tobytes())
    for name in ("pos", "neg", *SCORES):
        if name in rows.table.column_names:
            digest.update(f"{name} {pc.list_value_length(rows.table[name]).to_numpy().tobytes().hex()}".encode())
            for chunk in rows.table[name].chunks:
                values = chunk.flatten().to_numpy()
                digest.update((values if name in SCORES else rows.keys[values]).tobytes())
    return digest.hexdigest()
