"""Datasets with judgments, in the layouts of BEIR and of MTEB's datasets on the Hugging Face Hub.

A folder with

    corpus       passages: `_id` (or `id`), `text`, and `title` and `source` if known; the title is put before the text
    queries      `_id` (or `id`), `text`
    qrels/SPLIT  judgments: `query-id`, `corpus-id`, `score` (a whole number); SPLIT is train, dev (or validation) or
                 test

The first two are NAME.jsonl, .parquet, .csv or .tsv, or all such files in a folder NAME. Judgments are in qrels/,
default/ or data/, in SPLIT.tsv or SPLIT-*.tsv (with a header or without), .jsonl, .parquet, or TREC's format
(.trec, .txt: lines `query 0 passage grade`). A single file qrels.tsv, qrels.trec or qrels.txt has no splits: all its
queries are training queries, of which the other splits are taken.

Broken rows, and judgments of a missing query or passage, are left out, counted and named. Of two judgments of a pair
the higher grade counts. Grades below 0 count as 0.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow.parquet import ParquetFile

from embedding_finetune.data.collection import SHARED, SPLITS, Collection
from embedding_finetune.data.normalize import clean_text, normalize
from embedding_finetune.data.readers import Row, Source
from embedding_finetune.data.readers.tables import read_records
from embedding_finetune.files import UserError, one_line, read_lines

TEXT_FORMS = (".jsonl", ".parquet", ".csv", ".tsv")
JUDGMENT_FORMS = (".tsv", ".jsonl", ".parquet", ".trec", ".txt")
JUDGMENT_FOLDERS = ("qrels", "default", "data")
FILE_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
ROLES = {"_id": "id", "id": "id", "title": "title", "text": "text", "source": "source"}


def is_beir(folder: Path) -> bool:
    """Whether this is a folder in one of these layouts."""
    return folder.is_dir() and all(_files(folder, name) for name in ("corpus", "queries"))


def has_training_split(folder: Path) -> bool:
    """Whether a folder in one of these layouts has judgments of training queries."""
    return any(part == "train" for part, _ in _judgment_files(folder))


def read_beir(folder: Path, max_bad_rows: float, sources: list[Source] | None = None) -> tuple[Collection, Counter]:
    """The Collection of a folder, and a Counter of what was left out. Its queries are those with a positive.

    `predefined` lists its splits. A query in several splits belongs to the last of train, dev and test. Prints what was
    left out; adds to `sources` how each file was read. Raises UserError when a file is missing or has more than a
    fraction of `max_bad_rows` broken rows.
    """
    reading = _Reading(max_bad_rows, [] if sources is None else sources)
    for name in ("corpus", "queries"):
        if not _files(folder, name):
            raise UserError(f"{folder / name}.jsonl does not exist")
    queries, corpus, source, copies, asked = {}, {}, {}, {}, {}
    for query, text, _ in _texts(folder, "queries", reading, queries):
        asked.setdefault(normalize(text), []).append(query)
    for passage, text, origin in _texts(folder, "corpus", reading, corpus):
        for query in {*asked.get(normalize(text), ()), *asked.get(normalize(corpus[passage]), ())}:  # title or not
            copies.setdefault(query, []).append(passage)
        source |= {passage: origin} if origin else {}
    whole, counts = _judged(folder, Collection(queries, corpus, {}, source=source), reading)
    kept = [query for query in whole.splits if queries[query] and whole.positives(query)]
    counts |= {"queries read": len(queries), "queries without text or positive dropped": len(queries) - len(kept)}
    copies = {query: own for query in kept
              if (own := [passage for passage in copies.get(query, ()) if whole.qrels[query].get(passage, 0) <= 0])}
    predefined = tuple(sorted({whole.splits[query] for query in kept}))
    return dataclasses.replace(whole, copies=copies, predefined=predefined).select_queries(kept), counts


def read_beir_passages(folder: Path, max_bad_rows: float, sources: list[Source]) -> Iterator[Row]:
    """Rows without queries of the passages of a folder; adds to `sources` how they were read."""
    corpus = {}
    for passage, _, origin in _texts(folder, "corpus", _Reading(max_bad_rows, sources), corpus):
        yield Row(None, [corpus[passage]], passage, source=origin)


def _files(folder, name, forms=TEXT_FORMS):
    """The files of a table: NAME with one of the endings, or those in the folder NAME."""
    single = [path for form in forms if (path := folder / f"{name}{form}").is_file()]
    return single[:1] or sorted(path for path in (folder / name).glob("*") if path.suffix in forms)


def _judged(folder, whole, reading):
    """The Collection `whole` with the judgments of a folder, and a Counter of those that are left out."""
    qrels, splits, counts = {}, {}, Counter()
    for part, path in _judgment_files(folder):
        for query, passage, grade in reading.sound(path, _judgments(path), lambda row: _known(row, whole)):
            judged = qrels.setdefault(query, {})
            if splits.setdefault(query, part) != part:
                counts[SHARED] += 1
            else:
                counts["repeated judgments of a pair, of which the highest grade counts"] += passage in judged
                judged[passage] = max(grade, judged.get(passage, grade))
    if not qrels:
        raise UserError(f"{folder / 'qrels'} has no judgements: it must hold test.tsv (or train.tsv, dev.tsv)")
    if +counts:
        print(f"{folder}: " + ", ".join(f"{number} {what}" for what, number in (+counts).items()))
    splits = {query: part for name in SPLITS for query, part in splits.items() if part == name}
    return dataclasses.replace(whole, qrels=qrels, splits=splits), +counts


def _judgment_files(folder):
    """(split, file) of the judgments of a folder, of the test split first. Prints which files are not read."""
    files = [(part, path) for part in reversed(SPLITS) for place in JUDGMENT_FOLDERS for name in FILE_NAMES[part]
             for path in sorted((folder / place).glob(f"{name}[-.]*")) if path.suffix in JUDGMENT_FORMS]
    single = [path for form in (".tsv", ".trec", ".txt") if (path := folder / f"qrels{form}").is_file()]
    read = files or [("train", path) for path in single[:1]]
    others = [path for place in JUDGMENT_FOLDERS[:2] for path in sorted((folder / place).glob("*"))]
    used = {path for _, path in read}
    unread = [str(path.relative_to(folder)) for path in (*others, *single) if path not in used]
    if unread:
        print(f"{folder}: not read: {', '.join(unread)}")
    return read


def _known(judgment, whole):
    query, passage, grade = judgment
    if query not in whole.queries or passage not in whole.corpus:
        what, name = ("query", query) if query not in whole.queries else ("passage", passage)
        raise ValueError(f"judges the {what} {name!r}, which does not exist")
    return query, passage, _grade(grade)


def _grade(value):
    if not _is_number(value) or not float(value).is_integer():
        raise ValueError(f"the grade {value!r} is not a whole number")
    return max(0, int(float(value)))  # TREC grades junk below 0


def _is_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _texts(folder, name, reading, found):
    """Yield (id, text without title, source) of the rows of a table; adds id -> text with title to `found`."""
    def parse(row):
        identity, title, text, source = _text(row)
        with_title = clean_text(f"{title} {text}")
        if found.get(identity, with_title) != with_title:
            raise UserError(f"{folder / name} has the `_id` {identity!r} twice, with different texts: make the ids "
                            "unique")
        if identity in found:
            raise ValueError(f"repeats the row with the `_id` {identity!r}")
        found[identity] = with_title
        return identity, text, source

    for path in _files(folder, name):
        yield from reading.sound(path, _rows(path), parse)


def _text(row):
    identity = row.get("_id", row.get("id"))
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError("has no `_id` that is a word or a whole number")
    if "text" not in row:
        raise ValueError("has no `text`")
    values = [row.get(key) for key in ("title", "text", "source")]
    for key, value in zip(("title", "text"), values):
        if not isinstance(value, str | None):
            raise ValueError(f"its {key} is {type(value).__name__}, not text")
    return str(identity), *(clean_text(str(value)) if value is not None else "" for value in values)


def _judgments(path):
    """Yield (line or row, (query, passage, grade) or the reason why there is none)."""
    if path.suffix in (".jsonl", ".parquet"):
        names = ("query-id", "corpus-id", "score")
        for number, row in _rows(path):
            values = [row.get(name) for name in names] if isinstance(row, dict) else []
            missing = f"has no {names[values.index(None)]!r}" if None in values else ""
            yield number, missing or (str(values[0]), str(values[1]), values[2]) if values else row
        return
    for number, line in read_lines(path, "you"):
        fields = line.split("\t") if "\t" in line else line.split()
        fields = [field.strip() for field in fields]
        query, *_, passage, grade = fields if len(fields) in (3, 4) else ["", "", ""]
        if line.strip() and not (number == 1 and len(fields) == 3 and not _is_number(grade)):  # not a header
            wanted = "expected query-id, corpus-id and score, separated by tabs, or `query 0 passage grade`"
            yield number, (query, passage, grade) if query else wanted


def _rows(path):
    """Yield (line or row, its values or the reason why it is broken)."""
    if path.suffix == ".parquet":
        try:
            rows = (row for batch in ParquetFile(path).iter_batches(1000) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} cannot be read ({one_line(error)})") from None
    elif path.suffix == ".jsonl":
        for number, line in read_lines(path, "you"):
            if line.strip():
                yield number, _parsed(line)
    else:
        names = ("_id", "id", "title", "text", "source")
        yield from enumerate((values for _, values in read_records(path, names)), start=1)


def _parsed(line):
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({getattr(error, 'msg', 'too deep')})"
    return row if isinstance(row, dict) else f"expected an object, found {type(row).__name__}"


class _Reading:
    """Reads the rows of files that are not broken, and keeps account of them in `sources`."""

    def __init__(self, max_bad_rows, sources):
        self.max_bad_rows, self.sources = max_bad_rows, sources

    def sound(self, path, rows, parse):
        """Yield `parse(row)` of the rows (number, row) that are not broken: `row` is a str, or a ValueError is raised.

        At the end prints how many are broken; raises UserError if these are too many.
        """
        source = Source(str(path), {"format": path.suffix[1:]})
        self.sources.append(source)
        for number, row in rows:
            source.rows += 1
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                if isinstance(row, dict):
                    source.columns |= {key: ROLES.get(key, "") for key in row if key not in source.columns}
                found = parse(row)
            except ValueError as error:
                source.skip("broken", f"{number}: {error}")
                continue
            yield found
        first = source.skipped.get("broken", {"first": []})["first"]
        source.leave_out_skipped("lines are broken", f"line {'; '.join(first)}", self.max_bad_rows)
