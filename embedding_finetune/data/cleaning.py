"""Pairs, whatever their form: one reader each (see readers), and all of them cleaned in the same way.

DATASET is a name that a reader is registered for, a file, a folder in BEIR's layout or of documents, or a data set of
the model hub. CORPUS, in any of these forms, adds passages that answer nothing.
"""

import dataclasses
import importlib.metadata
import os
import re
from collections import Counter
from pathlib import Path

from embedding_finetune.data.collection import BEIR_FILES, Collection, read_collection
from embedding_finetune.data.documents.chunker import chunk_tokens
from embedding_finetune.data.normalize import clean_text, normalize, passage_id, query_id
from embedding_finetune.data.readers import READERS, reader
from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.data.readers.tables import read_passages, read_table
from embedding_finetune.files import UserError, content_hash, sha256
from embedding_finetune.hub import revision_read
from embedding_finetune.settings import path_of

# Pinned in requirements.txt, so that everybody reads the same docstrings.
DOCSTRING_PACKAGES = "numpy scipy scikit-learn pandas networkx sympy matplotlib torch datasets".split()
MSMARCO = "namespace-Pt/msmarco"  # its name on the model hub
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?(:[\w.-]+)?")
SHOWN = 5  # broken rows that are named


def read_pairs(settings):
    """The cleaned pairs of DATASET and the passages of CORPUS as a Collection, and what cleaning did (a Counter).

    Only a set in BEIR's layout has parts; its judgements, ids and texts stay as they are. Prints how many rows are
    broken; raises UserError when they are too many, or when a source cannot be read.
    """
    if settings.document_queries and (_find(settings.dataset)[1] != "folder" or is_beir(settings.dataset)):
        raise UserError(f"DOCUMENT_QUERIES={settings.document_queries} goes with a folder of documents; DATASET={settings.dataset} is "
                        "none")
    more = clean(_passages(settings))[0] if settings.corpus else Collection({}, {}, {})
    if is_beir(settings.dataset):
        collection, counts = _read_beir(settings, more)
    else:
        collection, counts = clean(_sound(settings, settings.dataset, _reader(settings.dataset)(settings)), more)
        sample = collection.sample(settings.max_queries, settings.seed)
        counts["queries left out by MAX_QUERIES"] = len(collection.queries) - len(sample.queries)
        collection = sample
    if not collection.queries:
        raise UserError(f"DATASET={settings.dataset} has no query with a passage that answers it")
    counts |= {"queries kept": len(collection.queries), "passages kept": len(collection.corpus)}
    corpus = {passage: collection.corpus[passage] for passage in sorted(collection.corpus)}
    return dataclasses.replace(collection, corpus=corpus), +counts


def is_beir(name):
    """Whether this is a folder in BEIR's layout."""
    path, kind = _find(name)
    return kind == "folder" and all((path / file).is_file() for file in BEIR_FILES)


def _find(name):
    """The path that a setting names, and what is there: "file", "folder" or ""."""
    try:
        path = path_of(name)
        return path, "folder" if name and path.is_dir() else "file" if path.is_file() else ""
    except (OSError, ValueError, RuntimeError):  # no path can be called so
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
    raise UserError(f"{setting}={name} cannot be read: it must be one of {forms}, the dotted ones being the endings of "
                    f"a file that exists; a folder in BEIR's layout ({', '.join(BEIR_FILES)}, qrels/); or "
                    "NAMESPACE/NAME, NAMESPACE/NAME@REVISION or either with :CONFIG on the model hub")


def _hub_name(name):
    """The name on the hub of the data set that a setting names, or None."""
    path, kind = _find(name)
    on_hub = not kind and HUB_NAME.fullmatch(name) and path.suffix.lower() not in READERS
    return MSMARCO if name == "msmarco" else name if on_hub else None


def _reads_documents(settings):
    return any(_find(name)[1] == "folder" and not is_beir(name) for name in (settings.dataset, settings.corpus))


def source_of(settings):
    """What the data depend on beside the settings: the hashes of the files, the versions of the packages, the commits
    of the hub's data sets. Raises UserError when the hub has to be asked for one and does not answer."""
    packages = DOCSTRING_PACKAGES if "docstrings" in (settings.dataset, settings.corpus) else ()
    hashes = {"sha256": _hash(settings.dataset), "corpus_sha256": _hash(settings.corpus),
              "queries_sha256": _hash(settings.document_queries)}
    for key, name in (("revision", _hub_name(settings.dataset)), ("corpus_revision", _hub_name(settings.corpus))):
        hashes[key] = revision_read(name) if name else None
    if _reads_documents(settings):
        hashes["passages"] = f"{chunk_tokens(settings)} tokens of {settings.base_model}"
    return ({package: importlib.metadata.version(package) for package in packages}
            | {name: value for name, value in hashes.items() if value})


def _hash(name):
    path, kind = _find(name)
    if kind != "folder":
        return sha256(path) if kind else None
    files = sorted(Path(folder) / file for folder, _, names in os.walk(path) for file in names)  # follows no links
    return content_hash({str(file.relative_to(path)): sha256(file) for file in files if file.is_file()})


def _sound(settings, name, rows):
    """The rows that are not broken; says how many are, and raises UserError when they are more than MAX_BAD_ROWS."""
    broken, number, shown = 0, 0, []
    for number, row in enumerate(rows, start=1):
        if row.problem:
            broken += 1
            shown += [f"{row.where.removeprefix(f'{path_of(name)}, ')}: {row.problem}"] if broken <= SHOWN else []
        else:
            yield row
    if broken:
        said = f"{name}: {broken} of {number} rows are broken ({'; '.join(shown)}{'; ...' if broken > SHOWN else ''})"
        if broken > settings.max_bad_rows * number:
            raise UserError(f"{said}, and MAX_BAD_ROWS allows a share of {settings.max_bad_rows}: mend them or raise "
                            "it")
        print(f"{said}: left out")


def _passages(settings):
    """Rows without queries of CORPUS. Of a form that is no table the passages are taken and the queries left."""
    name = f"{settings.corpus}/{BEIR_FILES[0]}" if is_beir(settings.corpus) else settings.corpus
    found = _reader(name, "CORPUS")
    if found is read_table:
        rows = read_passages(name, settings)
    else:
        rows = (dataclasses.replace(row, query=None, id=row.id if row.query is None else None)
                for row in found(dataclasses.replace(settings, dataset=name, document_queries="")))
    return _sound(settings, name, rows)


def clean(rows, more=None):
    """Merge and drop until each query and each passage is there once; returns a Collection and a Counter of what
    happened.

    Empty texts are dropped, and a passage that is nothing but its query; rows of the same query are merged, and all
    their positives kept; of equal passages the first spelling stays, and the first id. Negatives are judged 0, unless
    the query has them as positives, too. `more` is a Collection whose passages come first.
    """
    more = more or Collection({}, {}, {})
    queries, qrels, corpus, source, counts = {}, {}, dict(more.corpus), dict(more.source), Counter()
    named = {passage_id(text): identity for identity, text in corpus.items()}  # those whose id is not their hash
    named = {key: identity for key, identity in named.items() if key != identity}
    ids = {}  # of queries, the same

    def add(text, row):
        key = passage_id(text)
        identity = named.get(key, key)
        if row.query is None and row.id is not None and identity not in corpus:
            identity = named[key] = _one_word(row, counts)
            if identity in corpus:
                raise UserError(f"the id {identity!r} names two passages: {corpus[identity][:80]!r} and {text[:80]!r}; "
                                "make the ids distinct or leave them out (CORPUS_ID_COLUMN=none)")
        corpus.setdefault(identity, text)
        if row.source:
            source.setdefault(identity, clean_text(row.source))
        return identity

    for row in rows:
        counts["rows read"] += 1
        if row.query is None:
            for text in filter(None, map(clean_text, row.positives)):
                add(text, row)
            continue
        query = clean_text(row.query)
        key = query_id(query)
        positives, negatives = ({passage_id(text): text for text in map(clean_text, texts) if text}
                                for texts in (row.positives, row.negatives))
        counts["empty passages dropped"] += sum(not clean_text(text) for text in (*row.positives, *row.negatives))
        same = passage_id(query)
        if positives.pop(same, None) or negatives.pop(same, None):
            counts["passages equal to their query dropped"] += 1
        if not query or not positives:
            counts["rows without query or passage dropped"] += 1
            continue
        identity = ids.get(key, key)
        if identity in queries:
            counts["rows merged with an earlier row of the same query"] += 1
        else:
            if row.id is not None:
                identity = ids[key] = _one_word(row, counts)
            if identity in queries:
                raise UserError(f"the id {identity!r} names two queries: {normalize(queries[identity])[:80]!r} and "
                                f"{normalize(query)[:80]!r}; make the ids distinct or leave them out (ID_COLUMN=none)")
            queries[identity], qrels[identity] = query, {}
        judged = qrels[identity]
        for text in positives.values():
            judged[add(text, row)] = 1
        row.source = None  # which is that of the positives
        for text in negatives.values():
            judged.setdefault(add(text, row), 0)
    counts["queries with several positives"] = sum(sum(judged.values()) > 1 for judged in qrels.values())
    counts["queries with negatives of their own"] = sum(0 in judged.values() for judged in qrels.values())
    return Collection(queries, corpus, qrels, source=source), +counts


def _one_word(row, counts):
    identity = clean_text(row.id if isinstance(row.id, str) else str(row.id))
    if len(identity.split()) != 1:
        raise UserError(f"{row.where or 'row {}'.format(counts['rows read'])}: the id {identity!r} must be one word, "
                        "as TREC files want it")
    return identity


def _read_beir(settings, more):
    """The Collection of a folder in BEIR's layout with the parts that it has, and what is to be known about it."""
    folder = path_of(settings.dataset)
    whole = read_collection(folder, made_by="you")
    given = sorted(set(whole.splits.values()))
    if "train" not in given:
        raise UserError(f"{folder} has no qrels/train.tsv, so nothing to train on; OUT_OF_DOMAIN_SETS={settings.dataset} "
                        "measures on it")
    wrong = [identity for identity in (*whole.queries, *whole.corpus) if len(identity.split()) != 1]
    if wrong:
        raise UserError(f"{folder}: the id {wrong[0]!r} must be one word, as TREC files want it")
    kept = [query for query in whole.splits if whole.positives(query)]
    counts = Counter({"queries read": len(whole.queries), "queries without a positive dropped":
                      len(whole.queries) - len(kept)})
    others = [query for query in kept if whole.splits[query] != "train"]
    train = whole.select_queries([query for query in kept if whole.splits[query] == "train"])
    sample = train.sample(settings.max_queries, settings.seed)
    counts["train queries left out by MAX_QUERIES"] = len(train.queries) - len(sample.queries)
    texts = {normalize(text) for text in sample.queries.values()}
    held_out, positives = whole.select_queries(others), set(sample.positive_pool()[0])
    counts["dev and test queries that are train queries, too"] = sum(
        normalize(text) in texts for text in held_out.queries.values())
    counts["dev and test positives that are train positives, too"] = len(positives & set(held_out.positive_pool()[0]))
    print(f"{settings.dataset}: " + ", ".join(f"{number} {what}" for what, number in counts.items() if "too" in what))
    known = set(map(passage_id, whole.corpus.values())) if more.corpus else ()
    extra = {identity: text for identity, text in more.corpus.items() if passage_id(text) not in known}
    twice = sorted(extra.keys() & whole.corpus.keys())
    if twice:
        raise UserError(f"the id {twice[0]!r} names two passages, one of DATASET and one of CORPUS: make the ids "
                        "distinct or leave them out (CORPUS_ID_COLUMN=none)")
    collection = whole.select_queries([*sample.queries, *others])
    return dataclasses.replace(collection, corpus=whole.corpus | extra, source=more.source | whole.source,
                               predefined=tuple(given)), counts


@reader("docstrings")
def _read_docstrings(settings):
    return read_docstrings(DOCSTRING_PACKAGES)


@reader("msmarco")
def _read_msmarco(settings):
    """The MS MARCO pairs on the model hub."""
    return read_table(dataclasses.replace(settings, dataset=MSMARCO, split="dev", query_column="query",
                                          positive_column="positive", negative_column="none", id_column="none"))
