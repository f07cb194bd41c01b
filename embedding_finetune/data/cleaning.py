"""Reading and cleaning pairs in any supported form; each form has a reader (see readers).

DATASET is a name with a registered reader, a file, a folder (BEIR layout or documents), or a dataset of the Hugging
Face Hub. CORPUS, in any of these forms, adds passages that are not judged for any query.
"""

import dataclasses
import importlib.metadata
import os
import re
from collections import Counter
from pathlib import Path

from embedding_finetune.data.collection import BEIR_FILES, Collection, read_collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.documents.chunker import passage_size
from embedding_finetune.data.normalize import normalize, passage_id
from embedding_finetune.data.readers import READERS, Row, Source, reader
from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.data.readers.files import PACKED, TABLES, table_files
from embedding_finetune.data.readers.tables import read_passages, read_table
from embedding_finetune.files import UserError, content_hash, sha256
from embedding_finetune.hub import revision_read
from embedding_finetune.settings import path_of

# Pinned in requirements.txt, so that all installations read the same docstrings.
DOCSTRING_PACKAGES = "numpy scipy scikit-learn pandas networkx sympy matplotlib torch datasets".split()
MSMARCO = "namespace-Pt/msmarco"  # its name on the Hugging Face Hub
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?(:[\w.-]+)?")
SHOWN = 5  # broken rows that the message lists


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
    if is_beir(settings.dataset):
        collection, counts = _read_beir(settings, more)
    else:
        collection, counts = clean(_dataset(settings, sources), more)
        _account(counts, sources[-1])
        sample = _sample(collection, settings)
        counts["queries left out by MAX_QUERIES"] = len(collection.queries) - len(sample.queries)
        collection = sample
    if not collection.queries:
        raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")
    counts |= {"queries kept": len(collection.queries), "passages kept": len(collection.corpus)}
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
    if is_beir(settings.dataset):
        collection = read_collection(path_of(settings.dataset), made_by="you")
        query = next(iter(collection.queries))
        return Row(collection.queries[query], [collection.corpus[key] for key in collection.positives(query)])
    sources = []
    for row in _dataset(settings, sources):
        print(sources[-1])
        return row
    raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")


def is_beir(name):
    """Whether this is a folder in BEIR layout."""
    path, kind = _find(name)
    return kind == "folder" and all((path / file).is_file() for file in BEIR_FILES)


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
    source, shown = Source(name), []
    sources.append(source)
    for row in rows:
        if isinstance(row, Source):
            source = sources[-1] = row
            continue
        source.rows += 1
        if row.problem:
            where = row.where.removeprefix(f"{path_of(name)}, ")
            found = source.skipped.setdefault(row.problem, {"rows": 0, "first": []})
            found["rows"] += 1
            found["first"] += [where] if len(found["first"]) < SHOWN else []
            shown += [f"{where}: {row.problem}"] if len(shown) < SHOWN else []
        else:
            yield row
    broken = sum(found["rows"] for found in source.skipped.values())
    if broken:
        more = "; ..." if broken > SHOWN else ""
        message = f"{name}: {broken} of {source.rows} rows are broken ({'; '.join(shown)}{more})"
        if broken > settings.max_bad_rows * source.rows:
            raise UserError(f"{message}, and MAX_BAD_ROWS allows a fraction of {settings.max_bad_rows}: fix them or "
                            "raise it")
        print(f"{message}: left out")
    print(source)


def _dataset(settings, sources):
    """The sound rows of DATASET."""
    return _sound(settings, settings.dataset, _reader(settings.dataset)(settings.dataset, settings), sources)


def _passages(settings, sources):
    """Rows without queries from CORPUS; of a form with queries only the passages are taken."""
    name = f"{settings.corpus}/{BEIR_FILES[0]}" if is_beir(settings.corpus) else settings.corpus
    found = _reader(name, "CORPUS")
    if found is read_table:
        rows = read_passages(name, settings)
    else:
        rows = (row if isinstance(row, Source) else
                dataclasses.replace(row, query=None, id=row.id if row.query is None else None)
                for row in found(name, dataclasses.replace(settings, document_queries="")))
    return _sound(settings, name, rows, sources)


def _read_beir(settings, more):
    """The Collection of a folder in BEIR layout with its splits, and a Counter of what was read and left out."""
    folder = path_of(settings.dataset)
    whole = read_collection(folder, made_by="you")
    splits = sorted(set(whole.splits.values()))
    if "train" not in splits:
        raise UserError(f"{folder} has no qrels/train.tsv, so there is nothing to train on; "
                        f"OUT_OF_DOMAIN_SETS={settings.dataset} evaluates on it")
    invalid = [identity for identity in (*whole.queries, *whole.corpus) if len(identity.split()) != 1]
    if invalid:
        raise UserError(f"{folder}: the id {invalid[0]!r} must be one word, as TREC files require")
    kept = [query for query in whole.splits if whole.positives(query)]
    counts = Counter({"queries read": len(whole.queries), "queries without a positive dropped":
                      len(whole.queries) - len(kept)})
    held_out_ids = [query for query in kept if whole.splits[query] != "train"]
    train = whole.select_queries([query for query in kept if whole.splits[query] == "train"])
    sample = train.sample(settings.max_queries, settings.rng())
    counts["train queries left out by MAX_QUERIES"] = len(train.queries) - len(sample.queries)
    texts = {normalize(text) for text in sample.queries.values()}
    held_out, positives = whole.select_queries(held_out_ids), set(sample.positive_pool()[0])
    counts["dev and test queries that are also train queries"] = sum(
        normalize(text) in texts for text in held_out.queries.values())
    counts["dev and test positives that are also train positives"] = len(positives & set(held_out.positive_pool()[0]))
    print(f"{settings.dataset}: " + ", ".join(f"{number} {what}" for what, number in counts.items() if "also" in what))
    known = set(map(passage_id, whole.corpus.values())) if more.corpus else ()
    extra = {identity: text for identity, text in more.corpus.items() if passage_id(text) not in known}
    duplicates = sorted(extra.keys() & whole.corpus.keys())
    if duplicates:
        raise UserError(f"the id {duplicates[0]!r} names two passages, one of DATASET and one of CORPUS: make the ids "
                        "distinct or leave them out (CORPUS_ID_COLUMN=none)")
    collection = whole.select_queries([*sample.queries, *held_out_ids])
    return dataclasses.replace(collection, corpus=whole.corpus | extra, source=more.source | whole.source,
                               predefined=tuple(splits)), counts


@reader("docstrings")
def _read_docstrings(name, settings):
    return read_docstrings(DOCSTRING_PACKAGES)


@reader("msmarco")
def _read_msmarco(name, settings):
    """The MS MARCO pairs of the Hugging Face Hub."""
    return read_table(MSMARCO, dataclasses.replace(
        settings, split="dev", query_column="query", positive_column="positive", negative_column="none",
        id_column="none", label_column="none", split_column="none"))
