"""Reading and cleaning pairs in any supported form; each form has a reader (see readers).

DATASET is a name with a registered reader, a file, a folder (BEIR layout or documents), or a dataset of the Hugging
Face Hub. CORPUS, in any of these forms, adds passages that are not judged for any query.
"""

import dataclasses
import importlib.metadata
import os
import re
from pathlib import Path

from embedding_finetune.data.collection import BEIR_FILES, Collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.documents.chunker import passage_size
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.data.readers import READERS, Row, beir, reader
from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.data.readers.tables import read_passages, read_table
from embedding_finetune.data.splits import remove_leaks
from embedding_finetune.files import UserError, content_hash, sha256
from embedding_finetune.hub import revision_read
from embedding_finetune.settings import path_of

# Pinned in requirements.txt, so that all installations read the same docstrings.
DOCSTRING_PACKAGES = "numpy scipy scikit-learn pandas networkx sympy matplotlib torch datasets".split()
MSMARCO = "namespace-Pt/msmarco"  # its name on the Hugging Face Hub
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?(:[\w.-]+)?")
SHOWN = 5  # broken rows that the message lists


def read_pairs(settings):
    """The cleaned pairs of DATASET and the passages of CORPUS: a Collection, and a Counter of the cleaning steps.

    Only datasets in BEIR layout come with splits; their judgements, ids and texts are kept as they are. Prints the
    number of broken rows. Raises UserError when there are too many, or when a source cannot be read.
    """
    if settings.document_queries and (_find(settings.dataset)[1] != "folder" or is_beir(settings.dataset)):
        raise UserError(f"DOCUMENT_QUERIES={settings.document_queries} needs a folder of documents, but "
                        f"DATASET={settings.dataset} is not one")
    more = clean(_passages(settings))[0] if settings.corpus else Collection({}, {}, {})
    if is_beir(settings.dataset):
        collection, counts = _read_beir(settings, more)
    else:
        collection, counts = clean(_sound(settings, settings.dataset, _reader(settings.dataset)(settings)), more)
        collection, leaking = remove_leaks(collection, settings.leaking_rows)
        counts |= leaking
        sample = collection.sample(settings.max_queries, settings.rng())
        counts["queries left out by MAX_QUERIES"] = len(collection.queries) - len(sample.queries)
        collection = sample
    if not collection.queries:
        raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")
    counts |= {"queries kept": len(collection.queries), "passages kept": len(collection.corpus),
               "passages with the text of a query, left out of its hits": sum(map(len, collection.copies.values()))}
    corpus = {passage: collection.corpus[passage] for passage in sorted(collection.corpus)}
    return dataclasses.replace(collection, corpus=corpus), +counts


def first_row(settings):
    """The first Row of DATASET that is not broken; prints which columns are read. Raises UserError as read_pairs does.
    """
    if is_beir(settings.dataset):
        collection, _ = beir.read_beir(path_of(settings.dataset), settings.max_bad_rows)
        query = next(iter(collection.queries))
        return Row(collection.queries[query], [collection.corpus[key] for key in collection.positives(query)])
    for row in _sound(settings, settings.dataset, _reader(settings.dataset)(settings)):
        return row
    raise UserError(f"DATASET={settings.dataset} has no query with a relevant passage")


def is_beir(name):
    """Whether this is a folder in BEIR layout, see readers.beir."""
    path, kind = _find(name)
    return kind == "folder" and beir.is_beir(path)


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
    if kind == "folder" and "documents" in READERS:
        return READERS["documents"]
    if _hub_name(name):
        return read_table
    forms = ", ".join(form if form.startswith(".") else f"`{form}`" for form in READERS)
    raise UserError(f"{setting}={name} cannot be read: it must be one of {forms} (a dot marks the extension of an "
                    f"existing file); a folder in BEIR's layout ({', '.join(BEIR_FILES)}, qrels/); or "
                    "NAMESPACE/NAME, NAMESPACE/NAME@REVISION or either with :CONFIG on the Hugging Face Hub")


def _hub_name(name):
    """The dataset of the Hugging Face Hub that a setting names, or None."""
    path, kind = _find(name)
    on_hub = not kind and HUB_NAME.fullmatch(name) and path.suffix.lower() not in READERS
    return MSMARCO if name == "msmarco" else name if on_hub else None


def _reads_documents(settings):
    return any(_find(name)[1] == "folder" and not is_beir(name) for name in (settings.dataset, settings.corpus))


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
        return sha256(path) if kind else None
    files = sorted(Path(folder) / file for folder, _, names in os.walk(path) for file in names)  # no links to folders
    return content_hash({str(file.relative_to(path)): sha256(file) for file in files if file.is_file()})


def _sound(settings, name, rows):
    """Yield the rows that are not broken; prints how many are, and raises UserError above MAX_BAD_ROWS."""
    broken, number, shown = 0, 0, []
    for number, row in enumerate(rows, start=1):
        if row.problem:
            broken += 1
            shown += [f"{row.where.removeprefix(f'{path_of(name)}, ')}: {row.problem}"] if broken <= SHOWN else []
        else:
            yield row
    if broken:
        more = "; ..." if broken > SHOWN else ""
        message = f"{name}: {broken} of {number} rows are broken ({'; '.join(shown)}{more})"
        if broken > settings.max_bad_rows * number:
            raise UserError(f"{message}, and MAX_BAD_ROWS allows a fraction of {settings.max_bad_rows}: fix them or "
                            "raise it")
        print(f"{message}: left out")


def _passages(settings):
    """Rows without queries from CORPUS; of a form with queries only the passages are taken."""
    name = settings.corpus
    if is_beir(name):
        return beir.read_beir_passages(path_of(name), settings.max_bad_rows)
    found = _reader(name, "CORPUS")
    if found is read_table:
        rows = read_passages(name, settings)
    else:
        rows = (dataclasses.replace(row, query=None, id=row.id if row.query is None else None)
                for row in found(dataclasses.replace(settings, dataset=name, document_queries="")))
    return _sound(settings, name, rows)


def _read_beir(settings, more):
    """The Collection of a folder in BEIR layout with its splits, and a Counter of what was read and left out."""
    folder = path_of(settings.dataset)
    whole, counts = beir.read_beir(folder, settings.max_bad_rows)
    if "train" not in whole.predefined:
        raise UserError(f"{folder} has no qrels/train.tsv, so there is nothing to train on; "
                        f"OUT_OF_DOMAIN_SETS={settings.dataset} evaluates on it")
    invalid = [identity for identity in (*whole.queries, *whole.corpus) if len(identity.split()) != 1]
    if invalid:
        raise UserError(f"{folder}: the id {invalid[0]!r} must be one word, as TREC files require")
    whole, leaking = remove_leaks(whole, settings.leaking_rows)
    counts |= leaking
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
                                copies={query: own for query, own in copies.items() if own})
    return whole.select_queries([*sample.queries, *held_out]), counts


@reader("docstrings")
def _read_docstrings(settings):
    return read_docstrings(DOCSTRING_PACKAGES)


@reader("msmarco")
def _read_msmarco(settings):
    """The MS MARCO pairs of the Hugging Face Hub."""
    return read_table(dataclasses.replace(settings, dataset=MSMARCO, split="dev", query_column="query",
                                          positive_column="positive", negative_column="none", id_column="none"))
