"""Where pairs come from: one reader for each form of DATASET, all of them cleaned in the same way.

A reader takes the settings and yields `Row`s; `@reader` says for which value of DATASET, or for which ending of a
file's name. A new form is one such function, and nothing else changes.
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.utils import httpx
from tqdm.auto import tqdm

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.texts import normalise, passage_id, query_id, tidy
from embedding_finetune.files import UserError, read_jsonl, sha256
from embedding_finetune.hub import cannot_load, check_hub
from embedding_finetune.settings import path_of

HUB_DATASET, HUB_SPLIT = "namespace-Pt/msmarco", "dev"
HUB_CORPUS = "namespace-Pt/msmarco-corpus"

# Pinned in requirements.txt, so that everybody reads the same docstrings.
DOCSTRING_PACKAGES = "numpy scipy scikit-learn pandas networkx sympy matplotlib torch datasets".split()
IMPORT_NAMES = {"scikit-learn": "sklearn"}
HIDDEN = ("tests", "testing", "conftest")
DOCSTRING_QUERY_WORDS = range(4, 41)      # shorter ones name nothing, longer ones are no question
DOCSTRING_PASSAGE_WORDS = range(10, 65)   # a longer one is cut: a passage, not a page

READERS = {}  # value of DATASET, or ending of a file's name -> function


@dataclass
class Row:
    """What a reader yields: a query, the texts that answer it, and the query's id where the source has one."""

    query: str
    positives: list
    id: str | None = None


def reader(*names):
    """Register the decorated function for these values of DATASET or endings such as ".jsonl"."""
    def register(function):
        READERS.update(dict.fromkeys(names, function))
        return function
    return register


def read_pairs(settings):
    """The cleaned pairs of DATASET as a Collection without parts, and what cleaning did to them (a Counter).

    Raises UserError when the source cannot be read.
    """
    collection, counts = clean(_reader(settings)(settings))
    sample = collection.sample(settings.max_pairs, settings.seed)
    if len(sample.queries) < len(collection.queries):
        counts["queries left out by MAX_PAIRS"] = len(collection.queries) - len(sample.queries)
    counts |= {"queries kept": len(sample.queries), "passages kept": len(sample.corpus)}
    return sample, counts


def _reader(settings):
    path = path_of(settings.dataset)
    found = READERS.get(settings.dataset) or (READERS.get(path.suffix.lower()) if path.is_file() else None)
    if found:
        return found
    forms = ", ".join(name if name.startswith(".") else f"`{name}`" for name in READERS)
    raise UserError(f"DATASET={settings.dataset} cannot be read: it must be one of {forms}, the dotted ones being the "
                    "endings of a file that exists")


def source_of(settings):
    """What the data depend on beside the settings: the hashes of the files, the versions of the packages read."""
    packages = DOCSTRING_PACKAGES if settings.dataset == "docstrings" else ()
    files = {"sha256": path_of(settings.dataset), "distractors_sha256": path_of(settings.distractors)}
    return ({package: importlib.metadata.version(package) for package in packages}
            | {name: sha256(path) for name, path in files.items() if path.is_file()})


def clean(rows):
    """Merge and drop until each query and each passage is there once; returns a Collection and a Counter of what
    happened.

    Empty texts are dropped, and a passage that is nothing but its query; rows of the same query are merged, and all
    their positives kept; of equal passages the first spelling stays.
    """
    ids, owner, counts = {}, {}, Counter()  # normalised query -> id and back
    queries, corpus, qrels = {}, {}, {}
    for row in rows:
        counts["rows read"] += 1
        query, key = tidy(row.query), normalise(tidy(row.query))
        texts = {passage_id(text): text for text in map(tidy, row.positives) if text}
        counts["empty passages dropped"] += len(row.positives) - sum(bool(tidy(text)) for text in row.positives)
        if texts.pop(passage_id(query), None):
            counts["passages equal to their query dropped"] += 1
        if not query or not texts:
            counts["rows without query or passage dropped"] += 1
            continue
        if key in ids:
            counts["rows merged with an earlier row of the same query"] += 1
        else:
            identity = ids[key] = query_id(query) if row.id is None else tidy(str(row.id))
            if len(identity.split()) != 1:
                raise UserError(f"row {counts['rows read']}: the id {identity!r} must be one word, as TREC files want "
                                "it")
            if owner.setdefault(identity, key) != key:
                raise UserError(f"the id {identity!r} names two queries: {owner[identity]!r} and {key!r}; "
                                "make the ids distinct or leave them out")
            queries[identity], qrels[identity] = query, {}
        for passage, text in texts.items():
            corpus.setdefault(passage, text)
            qrels[ids[key]][passage] = 1
    counts["queries with several positives"] = sum(len(judged) > 1 for judged in qrels.values())
    return Collection(queries, corpus, qrels), +counts


def read_distractors(settings, known):
    """Texts of DISTRACTORS by passage id: a seeded sample of those whose id is not in `known`; {} if there are none."""
    if not settings.distractors:
        return {}
    if settings.distractors == "msmarco-corpus":
        texts = _load_from_hub(HUB_CORPUS, "train", "content")["content"]
    else:
        path = path_of(settings.distractors)
        texts = [row["text"] for row in read_jsonl(path, required=("text",), made_by="you")]
        wrong = [number for number, text in enumerate(texts, start=1) if not isinstance(text, str)]
        if wrong:
            raise UserError(f"{path}, row {wrong[0]}: 'text' must be a text")
    found = {passage_id(text): text for text in map(tidy, texts) if text}
    ids = sorted(set(found) - set(known))
    drawn = np.random.default_rng(settings.seed).permutation(len(ids))[:settings.max_distractors]
    return {ids[index]: found[ids[index]] for index in np.sort(drawn)}


@reader(".jsonl", ".json")
def _read_jsonl(settings):
    """Rows of {"query", "pos": [..]} with an optional "id" that has no white space, one JSON object a line."""
    path = path_of(settings.dataset)
    for number, row in enumerate(read_jsonl(path, required=("query", "pos"), made_by="you"), start=1):
        positives = row["pos"]
        if not isinstance(row["query"], str):
            raise UserError(f"{path}, row {number}: 'query' must be a text")
        if not isinstance(positives, list) or not all(isinstance(text, str) for text in positives):
            raise UserError(f"{path}, row {number}: 'pos' must be a list of texts")
        yield Row(row["query"], positives, row.get("id"))


@reader("msmarco")
def _read_msmarco(settings):
    """Rows of the MS MARCO pairs on the model hub."""
    for row in _load_from_hub(HUB_DATASET, HUB_SPLIT, "query", "positive"):
        yield Row(row["query"], row["positive"])


def _load_from_hub(name, split, *columns):
    """A data set of the hub that has these columns. Raises UserError in one line when it cannot be had."""
    import datasets  # takes seconds to import, and only this needs it
    check_hub(name, "dataset")
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise cannot_load(name, error) from None
    missing = set(columns) - set(rows.column_names)
    if missing:
        raise UserError(f"{name} has no column {missing.pop()!r}; it has {', '.join(rows.column_names)}")
    return rows


@reader("docstrings")
def _read_docstrings(settings, packages=None):
    """Rows of the public docstrings of the pinned packages: the first paragraph asks for the rest.

    The sources are parsed, not imported. A name or a file with a leading underscore is private, tests are left out.
    """
    for package in tqdm(packages or DOCSTRING_PACKAGES, desc="reading docstrings", unit="package"):
        name = IMPORT_NAMES.get(package, package)
        try:
            importlib.metadata.version(package)
            folder = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        except (importlib.metadata.PackageNotFoundError, AttributeError):
            raise UserError(f"the package {package} is not installed, and DATASET=docstrings reads it: "
                            "pip install -r requirements.txt") from None
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if any(part.startswith("_") and part != "__init__" or part in HIDDEN for part in parts):
                continue
            try:
                with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
                    tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # a package may carry files for other interpreters
                continue
            for docstring in _public_docstrings(tree):
                yield from _as_row(docstring)


def _public_docstrings(node):
    """Docstrings of a module's public classes and functions, methods included, in order."""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            docstring = ast.get_docstring(child)
            if docstring:
                yield docstring
            if isinstance(child, ast.ClassDef):
                yield from _public_docstrings(child)


def _as_row(docstring):
    """The row of one docstring, unless a side is too short or too long to be one."""
    query, _, passage = inspect.cleandoc(docstring).partition("\n\n")
    query, words = " ".join(query.split()), passage.split()
    if len(query.split()) in DOCSTRING_QUERY_WORDS and len(words) >= DOCSTRING_PASSAGE_WORDS.start:
        yield Row(query, [" ".join(words[:DOCSTRING_PASSAGE_WORDS.stop - 1])])
