"""Rows from tables: CSV, TSV, JSON, Parquet, and datasets of the Hugging Face Hub.

Tables are read row by row, whatever their size. An error in one row is that row's `problem`; an error in the file is a
UserError. Lines are counted from 1 as in the file.
"""

import codecs
import contextlib
import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import pyarrow
from pyarrow.parquet import ParquetFile

from embedding_finetune.data.readers import Row, reader
from embedding_finetune.files import UserError, one_line
from embedding_finetune.hub import load_data_set
from embedding_finetune.settings import path_of

BATCH = 1000  # rows of Parquet and Hub datasets converted to Python values at once
LONGEST = 2**26  # maximum characters of a CSV field; longer ones result from a missing quote
PEEK = 100  # leading JSON rows whose keys define the columns

# Column names that are recognized if a table has exactly one match.
QUERY = "query|queries|question|questions|anchor"
POSITIVES = "pos|positives?|passages?|answers?|documents?|docs?|texts?|contents?|contexts?|responses?"
NEGATIVES = r"(hard[-_]?)?neg(ative)?s?([-_]\d+)?"
QUERY_ID = "_?id|qid|query[-_]?id"
TEXT = "text|passage|document|doc|content|contents|body"
TITLE = "title"
TEXT_ID = "_?id|pid|doc[-_]?id|passage[-_]?id|corpus[-_]?id"
SOURCE = "source|url"


@dataclass(frozen=True)
class Table:
    """A table, read lazily.

    `records(columns)` yields (line or row number, column -> value), or (number, problem) with a str for a broken row.
    """

    name: str
    columns: list
    records: Callable
    unit: str = "line"


@reader(".csv", ".tsv", ".jsonl", ".json", ".parquet")
def read_table(settings):
    """Rows of DATASET, a file or a Hub dataset, by QUERY_COLUMN, POSITIVE_COLUMN, NEGATIVE_COLUMN and ID_COLUMN."""
    table = _open(settings.dataset, settings.split, "SPLIT")
    chosen = _choose(table, settings, QUERY_COLUMN=QUERY, POSITIVE_COLUMN=POSITIVES, NEGATIVE_COLUMN=NEGATIVES,
                     ID_COLUMN=QUERY_ID)

    def row(values):
        query = "".join(_texts(values, chosen["QUERY_COLUMN"])[:1])
        positives, negatives = (_texts(values, chosen[name]) for name in ("POSITIVE_COLUMN", "NEGATIVE_COLUMN"))
        if not query.strip() or not any(text.strip() for text in (*positives, *negatives)):
            raise ValueError("no query" if not query.strip() else "no relevant passage")
        return Row(query, positives, _id(values, chosen["ID_COLUMN"]), negatives, _texts(values, chosen["source"])[:1])

    yield from _rows(table, chosen, row)


def read_passages(name, settings):
    """Rows without queries of `name`, a file or a Hub dataset.

    The text is CORPUS_TITLE_COLUMN followed by CORPUS_TEXT_COLUMN, the id CORPUS_ID_COLUMN.
    """
    table = _open(name, settings.corpus_split, "CORPUS_SPLIT")
    chosen = _choose(table, settings, CORPUS_TEXT_COLUMN=TEXT, CORPUS_TITLE_COLUMN=TITLE, CORPUS_ID_COLUMN=TEXT_ID)

    def row(values):
        texts = _texts(values, chosen["CORPUS_TITLE_COLUMN"])[:1] + _texts(values, chosen["CORPUS_TEXT_COLUMN"])
        if not any(text.strip() for text in texts):
            raise ValueError("no text")
        return Row(None, [" ".join(texts)], _id(values, chosen["CORPUS_ID_COLUMN"]),
                   source=_texts(values, chosen["source"])[:1])

    yield from _rows(table, chosen, row)


def read_records(path, columns):
    """Yield (file and row, column -> value) for the existing `columns`; raises UserError at a broken row."""
    table = _open(path, "", "")
    for number, values in table.records([column for column in columns if column in table.columns]):
        if isinstance(values, str):
            raise UserError(f"{path}, {table.unit} {number}: {values}")
        yield f"{path}, {table.unit} {number}", values


def _rows(table, chosen, row):
    columns = list(dict.fromkeys(column for names in chosen.values() for column in names))
    for number, values in table.records(columns):
        where = f"{table.name}, {table.unit} {number}"
        try:
            if isinstance(values, str):
                raise ValueError(values)
            found = row(values)
            found.source, found.where = found.source[0] if found.source else None, where
            yield found
        except ValueError as error:
            yield Row(None, [], where=where, problem=str(error))


def _texts(values, columns):
    """The texts in these columns, concatenated; a value is a text, a list of texts, or None."""
    found = []
    for column in columns:
        value = values.get(column)
        texts = value if isinstance(value, list) else [value]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(f"{column!r} must be a text or a list of texts")
        found += [text for text in texts if text is not None]
    return found


def _id(values, columns):
    value = values.get(columns[0]) if columns else None
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError(f"{columns[0]!r} must be an id: a word or a whole number")
    return str(value) if value not in (None, "") else None


def _choose(table, settings, **usual):
    """The columns to read, setting -> list: those that the settings name, else those recognized by name.

    Prints the guesses. Raises UserError when a column does not exist, or when the first of `usual` or POSITIVE_COLUMN
    is ambiguous.
    """
    listed = ", ".join(repr(str(column)[:40]) for column in table.columns[:30]) or "none"
    chosen, guessed, doubts = {"source": _alike(SOURCE, table.columns)[:1]}, [], []
    for number, (setting, names) in enumerate(usual.items()):
        value = getattr(settings, setting.lower())
        needed = number == 0 or setting == "POSITIVE_COLUMN"
        if value in table.columns:
            chosen[setting] = [value]
        elif value not in ("auto", "none") or value == "none" and needed:
            raise UserError(f"{setting}={value}: {table.name} has no such column; it has {listed}")
        else:
            found = _alike(names, table.columns) if value == "auto" else []
            unambiguous = len(found) == 1 or setting == "NEGATIVE_COLUMN"
            chosen[setting] = found if unambiguous else []
            doubts += [setting] if needed and not unambiguous else []
            guessed += [f"{setting}={', '.join(found)}"] if chosen[setting] else []
            guessed += [f"{setting}=none (or {' or '.join(found)}?)"] if found and not unambiguous else []
    if doubts:
        raise UserError(f"{table.name} has the columns {listed}: set {' and '.join(doubts)} to the right ones")
    if guessed:
        print(f"{table.name}: guessed from the column names: {'; '.join(guessed)}")
    return chosen


def _alike(names, columns):
    found = [column for column in columns if re.fullmatch(names, str(column).strip().lower())]
    return [column for column in found if column != "id" or "_id" not in found]  # BEIR files have both


def _open(name, split, setting):
    path = path_of(name)
    if not path.is_file():
        return _hub(name, split, setting)
    with _readable(path):
        table = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _json)(path)
    duplicates = sorted({column for column in table.columns if table.columns.count(column) > 1})
    if duplicates:
        raise UserError(f"{path} has the column {duplicates[0]!r} twice: rename one of them")
    if not table.columns:
        raise UserError(f"{path} is empty: it has no rows")
    return table


@contextlib.contextmanager
def _readable(path):
    """Turn what libraries raise about a file into a one-line UserError that names it."""
    try:
        yield
    except (OSError, ValueError, RecursionError, csv.Error, pyarrow.ArrowException) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise UserError(f"cannot read {path}: {reason}") from None


def _text_of(path):
    """The file opened as text; invalid UTF-8 is kept as surrogates and reported per row."""
    with open(path, "rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return open(path, encoding="utf-16" if wide else "utf-8-sig", errors="surrogateescape", newline="")


def _is_text(text):
    """Whether a text from `_text_of` was valid UTF-8."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def _csv(path):
    csv.field_size_limit(LONGEST)
    with _text_of(path) as file:
        first = file.readline(LONGEST)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        file.seek(0)
        columns = next(filter(None, csv.reader(file, delimiter=delimiter, strict=True)), [])

    def records(wanted):
        place = [(column, columns.index(column)) for column in wanted]
        with _readable(path), _text_of(path) as file:
            rows, header = csv.reader(file, delimiter=delimiter, strict=True), True
            while True:
                start = rows.line_num + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "unexpected end" in str(error):
                        raise UserError(f"{path}, line {start}: a quote opens here and is never closed, so the rest of "
                                        "the file is one field: close or double it") from None
                    yield from ((line, f"a stray quote ({error})") for line in range(start, rows.line_num + 1))
                    continue
                if not row or header:
                    header = header and not row
                elif len(row) != len(columns):
                    yield start, f"{len(row)} fields, but the first line has {len(columns)}"
                else:
                    values = {column: row[index] for column, index in place}
                    yield start, values if all(map(_is_text, values.values())) else "not UTF-8: save the file as UTF-8"

    return Table(str(path), columns, records)


def _json(path):
    def records(wanted=None):
        with _readable(path), _text_of(path) as file:
            start = next((character for line in file for character in line.lstrip()[:1]), "")
            file.seek(0)
            yield from _elements(path, file.read()) if start == "[" else _lines(file)

    columns = (key for _, values in islice(records(), PEEK) if isinstance(values, dict) for key in values)
    return Table(str(path), list(dict.fromkeys(columns)), records)


def _lines(file):
    """The objects of a JSON Lines file."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                values = json.loads(line) if _is_text(line) else "not UTF-8: save the file as UTF-8"
                yield number, values if isinstance(values, dict | str) else "not a JSON object"
            except (ValueError, RecursionError) as error:
                yield number, f"not valid JSON ({getattr(error, 'msg', 'nested too deeply, or a number too long')})"


def _elements(path, text):
    """The elements of a JSON list, decoded one by one; decoding all at once takes many times the file's size in memory.
    """
    decode, line, counted = json.JSONDecoder().raw_decode, 1, 0
    place, blank = text.index("[") + 1, re.compile(r"[\s,]*")
    while place < len(text):
        place = blank.match(text, place).end()
        line, counted = line + text.count("\n", counted, place), place
        if text[place:place + 1] == "]":
            return
        try:
            values, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: not valid JSON ({getattr(error, 'msg', 'nested too deeply')}); fix "
                            "it, or write one object per line") from None
        yield line, values if isinstance(values, dict) else "not a JSON object"
    raise UserError(f"{path} ends within its list: the file is truncated")


def _parquet(path):
    file = ParquetFile(path)

    def records(wanted):
        with _readable(path):
            batches = file.iter_batches(BATCH, columns=wanted)
            yield from enumerate((values for batch in batches for values in batch.to_pylist()), start=1)

    return Table(str(path), file.schema_arrow.names, records, "row")


def _hub(name, split, setting):
    """A dataset of the Hugging Face Hub, named as for load_data_set; raises UserError when it cannot be loaded."""
    splits, name = load_data_set(name), name.partition(":")[0]
    if (split or len(splits) > 1) and split not in splits:
        raise UserError(f"{name} has the splits {', '.join(splits)}: set {setting} to one of them")
    rows = splits[split or next(iter(splits))]

    def records(wanted):
        batches = rows.select_columns(wanted).with_format("arrow").iter(BATCH)
        yield from enumerate((values for batch in batches for values in batch.to_pylist()), start=1)

    return Table(name, rows.column_names, records, "row")
