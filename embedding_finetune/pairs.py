"""(query, positives) pairs from one of three sources, cleaned: each query and each passage once, with ids of their own.

A pair is a row `{"id": str, "query": str, "pos": [str, ..]}`: the query's id, its text, the texts of all its positives.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from huggingface_hub.utils import httpx
from tqdm.auto import tqdm

from embedding_finetune.experiment import ROOT
from embedding_finetune.files import ExperimentError, read_jsonl
from embedding_finetune.hub import cannot_load, check_hub

HUB_DATASET, HUB_SPLIT = "namespace-Pt/msmarco", "dev"
HUB_CORPUS = "namespace-Pt/msmarco-corpus"

# Pinned in requirements.txt, so that everybody reads the same docstrings.
DOCSTRING_PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "networkx", "sympy", "matplotlib", "torch", "datasets")
IMPORT_NAMES = {"scikit-learn": "sklearn"}
DOCSTRING_QUERY_WORDS = range(4, 41)      # shorter ones name nothing, longer ones are no question
DOCSTRING_PASSAGE_WORDS = range(10, 65)   # a longer one is cut: a passage, not a page

NEAR_DUPLICATE = 0.8  # containment of word 5-grams from which a passage counts as a near-duplicate of another


def load_pairs(experiment):
    """The cleaned pairs of the experiment's DATASET, and what cleaning did to them (a Counter).

    Raises ExperimentError when the source cannot be read or has too few pairs to split.
    """
    readers = {"msmarco": _read_hub, "docstrings": _read_docstrings}
    local = ROOT / experiment.dataset
    if experiment.dataset not in readers and not local.is_file():
        raise ExperimentError(f"DATASET={experiment.dataset} is neither msmarco nor docstrings nor an existing file: name a JSONL of "
                              '{"query", "pos": [..]}')
    pairs, counts = clean(readers[experiment.dataset]() if experiment.dataset in readers else _read_local(local))
    if experiment.max_pairs and len(pairs) > experiment.max_pairs:
        chosen = np.random.default_rng(experiment.seed).choice(len(pairs), experiment.max_pairs, replace=False)
        counts["queries left out by MAX_PAIRS"] = len(pairs) - len(chosen)
        pairs = [pairs[index] for index in np.sort(chosen)]
    counts["queries kept"] = len(pairs)
    counts["passages kept"] = len({passage_id(text) for pair in pairs for text in pair["pos"]})
    return pairs, counts


def load_distractors(experiment, known):
    """Texts of the experiment's DISTRACTORS by passage id: a seeded sample of those whose id is not in `known`; {} if there are none."""
    if not experiment.distractors:
        return {}
    if experiment.distractors == "msmarco-corpus":
        texts = _load_from_hub(HUB_CORPUS, "train", "content")["content"]
    else:
        texts = (row["text"] for row in read_jsonl(ROOT / experiment.distractors, required=("text",), made_by="you"))
    found = {passage_id(text): text.strip() for text in texts if normalise(text)}
    ids = sorted(set(found) - set(known))
    drawn = np.random.default_rng(experiment.seed).permutation(len(ids))[:experiment.max_distractors]
    return {ids[index]: found[ids[index]] for index in np.sort(drawn)}


def normalise(text):
    """The form in which two texts count as the same: Unicode NFKC, case folded, white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def passage_id(text):
    """An id that depends on nothing but the normalised text, so that it is the same in every file and every run."""
    return "p" + hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def query_id(text):
    """The id of a query whose source gives none."""
    return "q" + hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=20_000)
def word_grams(text, size=5):
    """Set of the runs of `size` words of a text, lower-cased and without punctuation; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[start:start + size]) for start in range(max(1, len(words) - size + 1)))


def containment(grams, others):
    """Share of the smaller set that lies in the other (Broder 1997): 1 when one text is an excerpt of the other."""
    return len(grams & others) / min(len(grams), len(others))


def near_duplicate(text, other):
    """Whether two passages say nearly the same in the same words."""
    return containment(word_grams(text), word_grams(other)) >= NEAR_DUPLICATE


def clean(raw):
    """Merge and drop until each query and each passage is there once.

    `raw` yields (query, positives, id or None). Empty texts are dropped, and a passage that is nothing but its query;
    rows of the same query are merged, and all their positives kept; of equal passages the first spelling stays.
    Returns the pairs and a Counter of what happened.
    """
    counts = Counter()
    spelling = {}   # passage id -> text as first seen
    merged = {}     # normalised query -> pair
    owner = {}      # query id -> normalised query
    for query, positives, given_id in raw:
        counts["rows read"] += 1
        query, key = query.strip(), normalise(query)
        if not key:
            counts["rows dropped: empty query"] += 1
            continue
        texts = {}
        for text in positives:
            if not normalise(text):
                counts["positives dropped: empty"] += 1
            elif normalise(text) == key:
                counts["positives dropped: same as the query"] += 1
            else:
                identity = passage_id(text)
                counts["passages met again"] += identity in spelling
                texts[identity] = spelling.setdefault(identity, text.strip())
        if not texts:
            counts["rows dropped: no positive left"] += 1
            continue
        if key in merged:
            counts["rows merged: same query"] += 1
        else:
            identity = str(given_id) if given_id is not None else query_id(query)
            if owner.setdefault(identity, key) != key:
                raise ExperimentError(f"the id {identity!r} names two queries: {owner[identity]!r} and {key!r}; "
                                      "make the ids distinct or leave them out")
            merged[key] = {"id": identity, "query": query, "pos": {}}
        merged[key]["pos"] |= texts
    pairs = [{**pair, "pos": list(pair["pos"].values())} for pair in merged.values()]
    counts["queries with several positives"] = sum(len(pair["pos"]) > 1 for pair in pairs)
    return pairs, counts


def _read_local(path):
    """Rows of a JSONL file of {"query", "pos": [..]} with an optional "id" that has no white space."""
    for number, row in enumerate(read_jsonl(path, required=("query", "pos"), made_by="you"), start=1):
        positives, identity = row["pos"], row.get("id")
        if not isinstance(row["query"], str):
            raise ExperimentError(f"{path}, row {number}: 'query' must be a text")
        if not isinstance(positives, list) or not all(isinstance(text, str) for text in positives):
            raise ExperimentError(f"{path}, row {number}: 'pos' must be a list of texts")
        if identity is not None and len(str(identity).split()) != 1:
            raise ExperimentError(f"{path}, row {number}: the id {identity!r} must be one word, as TREC files want it")
        yield row["query"], positives, identity


def _read_hub():
    """Rows of the MS MARCO pairs on the model hub."""
    for row in _load_from_hub(HUB_DATASET, HUB_SPLIT, "query", "positive"):
        yield row["query"], row["positive"], None


def _load_from_hub(name, split, *columns):
    """A data set of the hub that has these columns. Raises ExperimentError in one line when it cannot be had."""
    import datasets  # takes seconds to import, and only this needs it
    check_hub(name, "dataset")
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise cannot_load(name, error) from None
    missing = set(columns) - set(rows.column_names)
    if missing:
        raise ExperimentError(f"{name} has no column {missing.pop()!r}; it has {', '.join(rows.column_names)}")
    return rows


def _read_docstrings():
    """Rows of the public docstrings of the pinned packages: the first paragraph asks for the rest.

    The sources are parsed, not imported. A name or a file with a leading underscore is private, tests are left out.
    """
    for package in tqdm(DOCSTRING_PACKAGES, desc="reading docstrings", unit="package"):
        name = IMPORT_NAMES.get(package, package)
        try:
            importlib.metadata.version(package)
            folder = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        except (importlib.metadata.PackageNotFoundError, AttributeError):
            raise ExperimentError(f"the package {package} is not installed, and DATASET=docstrings reads it: "
                                  "pip install -r requirements.txt") from None
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if any(part.startswith("_") and part != "__init__" or part in ("tests", "testing", "conftest") for part in parts):
                continue
            try:
                with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
                    tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # a package may carry files for other interpreters
                continue
            for docstring in _public_docstrings(tree):
                yield from _as_pair(docstring)


def _public_docstrings(node):
    """Docstrings of a module's public classes and functions, methods included, in order."""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            docstring = ast.get_docstring(child)
            if docstring:
                yield docstring
            if isinstance(child, ast.ClassDef):
                yield from _public_docstrings(child)


def _as_pair(docstring):
    """The pair of one docstring, unless a side is too short or too long to be one."""
    query, _, passage = inspect.cleandoc(docstring).partition("\n\n")
    query, words = " ".join(query.split()), passage.split()
    if len(query.split()) in DOCSTRING_QUERY_WORDS and len(words) >= DOCSTRING_PASSAGE_WORDS.start:
        yield query, [" ".join(words[:DOCSTRING_PASSAGE_WORDS.stop - 1])], None
