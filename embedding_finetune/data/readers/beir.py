"""Datasets with judgments, in the layouts of BEIR and of MTEB's datasets on the Hugging Face Hub.

A folder with

    corpus       passages: `_id` (or `id`), `text`, and `title` and `source` if known; the title is put before the text
    queries      `_id` (or `id`), `text`
    qrels/SPLIT  judgments: `query-id`, `corpus-id`, `score` (a whole number); SPLIT is train, dev (or validation) or
                 test

The first two are NAME.jsonl, .jsonl.gz, .parquet, .csv or .tsv, or all such files in a folder NAME. Judgments are in
qrels/, default/ or data/, in SPLIT.tsv or SPLIT-*.tsv (with a header or without), .jsonl, .parquet, or TREC's format
(.trec, .txt: lines `query 0 passage grade`). A single file qrels.tsv, qrels.trec or qrels.txt has no splits: all its
queries are training queries, of which the other splits are taken. A dataset of the Hub in this layout is downloaded.

Broken rows, and judgments of a missing query or passage, are left out, counted and named. Of two judgments of a pair
the higher grade counts. Grades below 0 count as 0.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from embedding_finetune.data.collection import SHARED, SPLITS, Collection
from embedding_finetune.data.normalize import clean_text, normalize
from embedding_finetune.data.readers import Row, Source, Table
from embedding_finetune.data.readers.formats import open_table
from embedding_finetune.data.readers.values import MISSING, id_of, number_of
from embedding_finetune.files import UserError, read_lines
from embedding_finetune.hub import data_set_folder

TEXTS = {"corpus", "queries"}
TEXT_FORMS = (".jsonl", ".jsonl.gz", ".parquet", ".csv", ".tsv")
JUDGMENT_FORMS = (".tsv", ".jsonl", ".parquet", ".trec", ".txt")
JUDGMENT_FOLDERS = ("qrels", "default", "data")
FILE_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
ROLES = {"_id": "id", "id": "id", "title": "title", "text": "text", "source": "source"}
JUDGMENT = {"query-id": "query", "corpus-id": "passage", "score": "grade"}


def is_beir(folder: Path) -> bool:
    """Whether this is a folder in one of these layouts."""
    return folder.is_dir() and all(_files(folder, name) for name in TEXTS)


def beir_of_hub(name: str) -> Path | None:
    """The folder of a Hub dataset in one of these layouts, which is downloaded; None for other datasets."""
    def wanted(files):
        return {Path(file).parts[0].partition(".")[0] for file in files if file.endswith(TEXT_FORMS)} >= TEXTS

    folder = data_set_folder(name, [f"{place}*" for place in (*TEXTS, *JUDGMENT_FOLDERS)], wanted)
    return folder if folder and is_beir(folder) else None


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
    for name in sorted(TEXTS):
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


def _files(folder, name):
    """The files of a table: NAME with one of the endings, or those in the folder NAME."""
    single = [path for form in TEXT_FORMS if (path := folder / f"{name}{form}").is_file()]
    return single[:1] or sorted(path for path in (folder / name).glob("*") if path.name.endswith(TEXT_FORMS))


def _judged(folder, whole, reading):
    """The Collection `whole` with the judgments of a folder, and a Counter of those that are left out."""
    qrels, splits, counts = {}, {}, Counter()
    for part, path in _judgment_files(folder):
        for query, passage, grade in reading.sound(
                _judgments(path), JUDGMENT, lambda row: _known(row, whole)):
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


def _known(row, whole):
    """(query, passage, grade) of a row of judgments; raises ValueError when it has none, or names what is missing."""
    missing = [name for name in JUDGMENT if row.get(name) is None]
    if missing:
        raise ValueError(f"has no {missing[0]!r}")
    query, passage, grade = (str(row[name]) for name in JUDGMENT)
    if query not in whole.queries or passage not in whole.corpus:
        what = f"query that does not exist: {query!r}" if query not in whole.queries else (
            f"passage that does not exist: {passage!r}")
        raise ValueError(f"judges a {what}")
    number = number_of(grade)
    if number is None or not number.is_integer():
        raise ValueError(f"the grade is not a whole number: {grade!r}")
    return query, passage, max(0, int(number))  # TREC grades junk below 0


def _texts(folder, name, reading, found):
    """Yield (id, text without title, source) of the rows of a table; adds id -> text with title to `found`."""
    def parse(row):
        identity, title, text, source = _text(row)
        with_title = clean_text(f"{title} {text}")
        if found.get(identity, with_title) != with_title:
            raise UserError(f"{folder / name} has the `_id` {identity!r} twice, with different texts: make the ids "
                            "unique")
        if identity in found:
            raise ValueError(f"repeats a row with the same `_id`: {identity!r}")
        found[identity] = with_title
        return identity, text, source

    for path in _files(folder, name):
        yield from reading.sound(open_table(path), ROLES, parse)


def _text(row):
    identity = id_of(row, ["_id" if "_id" in row else "id"])
    if identity is None:
        raise ValueError("has no `_id`")
    if "text" not in row:
        raise ValueError("has no `text`")
    values = [row.get(key) for key in ("title", "text", "source")]
    for key, value in zip(("title", "text", "source"), values):
        if not isinstance(value, str | None):
            raise ValueError(f"its {key} is {type(value).__name__}, not text")
    if values[1] in MISSING:
        raise ValueError("its text is a missing value written as text")
    return identity, *(clean_text(value or "") for value in values)


def _judgments(path):
    """The Table of a file of judgments."""
    if path.suffix in (".jsonl", ".parquet"):
        return open_table(path)

    def records(_):
        for number, line in read_lines(path, "you"):
            fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
            complete = len(fields) in (3, 4) and fields[0]
            header = number == 1 and len(fields) == 3 and number_of(fields[2]) is None
            if line.strip() and not header:
                yield number, (dict(zip(JUDGMENT, (fields[0], *fields[-2:]))) if complete else
                               "expected query-id, corpus-id and score, separated by tabs, or `query 0 passage grade`")

    return Table(str(path), list(JUDGMENT), records, how={"format": path.suffix[1:].upper()})


class _Reading:
    """Reads the rows of files that are not broken, and keeps account of them in `sources`."""

    def __init__(self, max_bad_rows, sources):
        self.max_bad_rows, self.sources = max_bad_rows, sources

    def sound(self, table, roles, parse):
        """Yield `parse(row)` of the rows for which it raises no ValueError; the others are broken, see Source.sound."""
        source = Source(table.name, table.how, {key: roles.get(key, "") for key in table.columns})
        self.sources.append(source)

        def rows():
            for number, row in table.records(table.columns):
                value, problem = None, row
                if isinstance(row, dict):
                    source.columns |= {key: roles.get(key, "") for key in row if key not in source.columns}
                    try:
                        value, problem = parse(row), ""
                    except ValueError as error:
                        problem = str(error)
                yield f"{table.unit} {number}", value, problem

        yield from source.sound(rows(), self.max_bad_rows)
