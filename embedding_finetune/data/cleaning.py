"""Reading and cleaning pairs in any supported form; each form has a reader (see readers).

DATASET is a name with a registered reader, a file, a folder (BEIR layout or documents), or a dataset of the Hugging
Face Hub. CORPUS, in any of these forms, adds passages that are not judged for any query.
"""

import dataclasses
import importlib.metadata
import os
import re
from collections import Counter
from itertools import chain, islice
from pathlib import Path

from embedding_finetune.data.collection import BEIR_FILES, SHARED, Collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.documents.chunker import passage_size
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.data.readers import READERS, Row, Source, beir, reader
from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.data.readers.files import PACKED, TABLES, table_files
from embedding_finetune.data.readers.tables import read_passages, read_table
from embedding_finetune.data.splits import remove_leaks
from embedding_finetune.files import UserError, content_hash, sha256
from embedding_finetune.hints import missing_file
from embedding_finetune.hub import check_hub, revision_read
from embedding_finetune.settings import path_of

# Pinned in requirements.txt, so that all installations read the same docstrings.
DOCSTRING_PACKAGES = "numpy scipy scikit-learn pandas networkx sympy matplotlib torch datasets".split()
MSMARCO = "namespace-Pt/msmarco"  # its name on the Hugging Face Hub
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?(:[\w.-]+)?")


class Reading(Counter):
    """Counts of the rows that were read and of what became of them; `sources` says how each source was read."""

    def __init__(self, *counts, sources=()):
        super().__init__(*counts)
        self.sources = list(sources)


def read_pairs(settings) -> tuple[Collection, Reading]:
    """The cleaned pairs of DATASET and the passages of CORPUS: a Collection, and the account of the reading.

    Datasets in BEIR layout and tables with SPLIT_COLUMN come with splits; in BEIR layout judgements, ids and texts are
    kept as they are. Prints how each source was read and what became of its rows. Raises UserError when too many are
    broken, or when a source cannot be read.
    """
    if settings.document_queries and (_find(settings.dataset)[1] != "folder" or is_beir(settings.dataset)):
        raise UserError(f"DOCUMENT_QUERIES={settings.document_queries} needs a folder of documents, but "
                        f"DATASET={settings.dataset} is not one")
    sources = []
    more = clean(_passages(settings, sources))[0] if settings.corpus else Collection({}, {}, {})
    if folder := beir_folder(settings.dataset):
        collection, counts = _read_beir(settings, folder, more, sources)
    else:
        collection, counts = clean(_dataset(settings, sources), more)
        _account(counts, sources[-1])
        collection = _without_leaks(settings, collection, counts)
        whole, collection = collection, _sample(collection, settings)
        counts["queries left out by MAX_QUERIES"] = len(whole.queries) - len(collection.queries)
        if not (settings.max_queries and _reads_documents(settings)):  # documents are sampled as they are read
            available = whole.split("train") if whole.splits else whole
            collection = dataclasses.replace(collection, available=len(available.queries))
    if not collection.queries:
        raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")
    counts |= {"queries kept": len(collection.queries), "passages kept": len(collection.corpus),
               "passages with the text of a query, left out of its hits": sum(map(len, collection.copies.values()))}
    corpus = {passage: collection.corpus[passage] for passage in sorted(collection.corpus)}
    return dataclasses.replace(collection, corpus=corpus), Reading(+counts, sources=sources)


def _account(counts, source):
    """Add the rows that were skipped to the counts; prints how the rows were read and what became of each."""
    counts["rows read"] = source.rows
    counts |= {f"rows skipped: {problem}": found["rows"] for problem, found in source.skipped.items()}
    parts = {name.removeprefix("rows "): number for name, number in counts.items()
             if number and name != "rows read" and (name.startswith("rows ") or name == "queries read")}
    assert source.rows == sum(parts.values()), (source.rows, parts)
    print(f"{source.name}: {source.rows} rows = " + " + ".join(f"{number} {name}" for name, number in parts.items()))


def _without_leaks(settings, collection, counts):
    """The collection as LEAKING_ROWS says, see splits.remove_leaks; adds what leaks to the counts."""
    if settings.leaking_rows != "drop" and counts[SHARED]:
        raise UserError(f"{settings.dataset}: {counts[SHARED]} {SHARED}: only LEAKING_ROWS=drop allows that")
    collection, leaking = remove_leaks(collection, settings.leaking_rows)
    counts |= leaking
    return collection


def _sample(collection, settings):
    """The collection with a seeded sample of MAX_QUERIES train queries; given dev and test splits stay whole."""
    if not collection.splits:
        return collection.sample(settings.max_queries, settings.rng())
    if "train" not in collection.splits.values():
        raise UserError(f"DATASET={settings.dataset} has no row in the train split: add some, or set SPLIT_COLUMN=none")
    train = collection.split("train").sample(settings.max_queries, settings.rng())
    return collection.select_queries([query for query, split in collection.splits.items()
                                      if split != "train" or query in train.queries])


def first_row(settings) -> Row:
    """The first Row of DATASET that is not broken; prints how it is read. Raises UserError as read_pairs does."""
    if folder := beir_folder(settings.dataset):
        collection, _ = beir.read_beir(folder, settings.max_bad_rows)
        query = next(iter(collection.queries))
        return Row(collection.queries[query], [collection.corpus[key] for key in collection.positives(query)])
    sources = []
    for row in _dataset(settings, sources):
        if sources[-1].how:
            print(sources[-1])
        return row
    raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")


def check_source(setting: str, name: str) -> str:
    """A phrase on the data that a setting names, which are not read; raises UserError when they are not there."""
    if not is_beir(name):
        _reader(name, setting)
    if hub_name := _hub_name(name):
        check_hub(hub_name.partition(":")[0], "dataset")
        return "on the Hugging Face Hub"
    return _find(name)[1] or ("files" if _tables(name) else "built in")


def has_test_queries_only(settings) -> bool:
    """Whether DATASET is in BEIR's layout and has no training split; a Hub dataset is downloaded."""
    folder = beir_folder(settings.dataset)
    return folder is not None and not beir.has_training_split(folder)


def is_beir(name):
    """Whether this is a folder in BEIR layout, see readers.beir."""
    path, kind = _find(name)
    return kind == "folder" and beir.is_beir(path)


def beir_folder(name: str) -> Path | None:
    """The folder in BEIR's layout that a setting names, None for anything else; a Hub dataset is downloaded."""
    hub_name = _hub_name(name)
    if hub_name and ":" not in hub_name and name != "msmarco":
        return beir.beir_of_hub(hub_name)
    return path_of(name) if is_beir(name) else None


def _find(name):
    """The path that a setting names, and its kind: "file", "folder" or ""."""
    try:
        path = path_of(name)
        return path, "folder" if name and path.is_dir() else "file" if path.is_file() else ""
    except (OSError, ValueError, RuntimeError):  # not a valid path
        return Path(), ""


def _reader(name, setting="DATASET"):
    path, kind = _find(name)
    ending = path.suffix.lower()
    if name in READERS and not name.startswith(".") and name != "documents":
        return READERS[name]
    if kind == "file" and ending in READERS:
        return READERS[ending]
    if _tables(name) or _hub_name(name):
        return read_table
    if kind == "folder" and "documents" in READERS:
        return READERS["documents"]
    if missing := missing_file(name):
        raise UserError(f"{setting}={missing}")
    forms = ", ".join(form if form.startswith(".") else f"`{form}`" for form in (*TABLES, *READERS))
    raise UserError(f"{setting}={name} cannot be read: it must be one of {forms} (a dot marks the extension of an "
                    f"existing file; tables may be compressed ({', '.join(PACKED)}) or several (data/*.parquet)); a "
                    f"folder in BEIR's layout ({', '.join(BEIR_FILES)}, qrels/); or NAMESPACE/NAME, "
                    "NAMESPACE/NAME@REVISION or either with :CONFIG on the Hugging Face Hub")


def _tables(name):
    """The files of tables that a setting names, see readers.files.table_files."""
    try:
        return table_files(name) if name and not is_beir(name) else []
    except (OSError, ValueError, RuntimeError):  # not a valid path
        return []


def _hub_name(name):
    """The dataset of the Hugging Face Hub that a setting names, or None."""
    path, kind = _find(name)
    on_hub = not kind and HUB_NAME.fullmatch(name) and path.suffix.lower() not in (*READERS, *TABLES, *PACKED)
    return MSMARCO if name == "msmarco" else name if on_hub else None


def _reads_documents(settings):
    return any(_find(name)[1] == "folder" and not is_beir(name) and not _tables(name)
               for name in (settings.dataset, settings.corpus))


def source_of(settings):
    """What the data depend on besides the settings: hashes of files, versions of packages, commits of Hub datasets.

    Raises UserError when a commit has to be asked for and the Hub does not answer.
    """
    packages = DOCSTRING_PACKAGES if "docstrings" in (settings.dataset, settings.corpus) else ()
    hashes = {"sha256": _hash(settings.dataset), "corpus_sha256": _hash(settings.corpus),
              "queries_sha256": _hash(settings.document_queries)}
    for key, name in (("revision", _hub_name(settings.dataset)), ("corpus_revision", _hub_name(settings.corpus))):
        hashes[key] = revision_read(name) if name else None
    if _reads_documents(settings):
        hashes["passages"] = passage_size(settings)
    return ({package: importlib.metadata.version(package) for package in packages}
            | {name: value for name, value in hashes.items() if value})


def _hash(name):
    path, kind = _find(name)
    if kind != "folder":
        hashes = {str(file): sha256(file) for file in _tables(name)}
        return content_hash(hashes) if len(hashes) > 1 else sha256(path) if kind else next(iter(hashes.values()), None)
    files = sorted(Path(folder) / file for folder, _, names in os.walk(path) for file in names)  # no links to folders
    return content_hash({str(file.relative_to(path)): sha256(file) for file in files if file.is_file()})


def _sound(settings, name, rows, sources):
    """Yield the rows that are not broken, and add to `sources` how they were read.

    Prints how many are broken, and raises UserError above MAX_BAD_ROWS.
    """
    rows, place = iter(rows), f"{path_of(name)}, "
    first = list(islice(rows, 1))
    source = first.pop() if first and isinstance(first[0], Source) else Source(name)
    sources.append(source)
    yield from source.sound(((row.where.removeprefix(place), row, row.problem) for row in chain(first, rows)),
                            settings.max_bad_rows)
    if source.how:
        print(source)


def _dataset(settings, sources):
    """The sound rows of DATASET."""
    return _sound(settings, settings.dataset, _reader(settings.dataset)(settings.dataset, settings), sources)


def _passages(settings, sources):
    """Rows without queries from CORPUS; of a form with queries only the passages are taken."""
    name = settings.corpus
    if folder := beir_folder(name):
        return beir.read_beir_passages(folder, settings.max_bad_rows, sources)
    found = _reader(name, "CORPUS")
    if found is read_table:
        rows = read_passages(name, settings)
    else:
        rows = (row if isinstance(row, Source) else
                dataclasses.replace(row, query=None, id=row.id if row.query is None else None)
                for row in found(name, dataclasses.replace(settings, document_queries="")))
    return _sound(settings, name, rows, sources)


def _read_beir(settings, folder, more, sources):
    """The Collection of a folder in BEIR layout with its splits, and a Counter of what was read and left out."""
    known = len(sources)  # those of CORPUS
    whole, counts = beir.read_beir(folder, settings.max_bad_rows, sources)
    print(*sources[known:], sep="\n")
    if not {"train", "test"} & {*whole.predefined}:
        raise UserError(f"{folder} has neither qrels/train.tsv nor qrels/test.tsv with a positive")
    invalid = [identity for identity in (*whole.queries, *whole.corpus) if len(identity.split()) != 1]
    if invalid:
        raise UserError(f"{folder}: the id {invalid[0]!r} must be one word, as TREC files require")
    whole = _without_leaks(settings, whole, counts)
    train = whole.split("train")
    sample = train.sample(settings.max_queries, settings.rng())
    counts["train queries left out by MAX_QUERIES"] = len(train.queries) - len(sample.queries)
    held_out = [query for query, part in whole.splits.items() if part != "train"]
    known = set(map(passage_id, whole.corpus.values())) if more.corpus else ()
    extra = {identity: text for identity, text in more.corpus.items() if passage_id(text) not in known}
    duplicates = sorted(extra.keys() & whole.corpus.keys())
    if duplicates:
        raise UserError(f"the id {duplicates[0]!r} names two passages, one of DATASET and one of CORPUS: make the ids "
                        "distinct or leave them out (CORPUS_ID_COLUMN=none)")
    same = {passage_id(text): [identity] for identity, text in extra.items()}
    copies = {query: whole.copies.get(query, []) + same.get(passage_id(text), []) for query, text in
              whole.queries.items()} if extra else whole.copies
    whole = dataclasses.replace(whole, corpus=whole.corpus | extra, source=more.source | whole.source,
                                copies={query: own for query, own in copies.items() if own},
                                available=len(train.queries))
    return whole.select_queries([*sample.queries, *held_out]), counts


@reader("docstrings")
def _read_docstrings(name, settings):
    return read_docstrings(DOCSTRING_PACKAGES)


@reader("msmarco")
def _read_msmarco(name, settings):
    """The MS MARCO pairs of the Hugging Face Hub."""
    return read_table(MSMARCO, dataclasses.replace(
        settings, split="dev", query_column="query", positive_column="positive", negative_column="none",
        id_column="none", label_column="none", split_column="none"))
