"""The collection: queries, corpus, judgements and splits, in memory and on disk in BEIR layout.

In a folder:

    corpus.jsonl       passages: `_id` (and `id`, the same), `title` (empty), `text`, `source` if known
    queries.jsonl      queries: `_id`, `text`, `copies` if the corpus has some (see Collection)
    qrels/SPLIT.tsv    judgements of a split's queries: query-id, corpus-id, score; SPLIT is train, dev or test
    dataset.json       (of an experiment) the record of the files: settings and sources, and a hash of each file

For tools that read other formats, `eval_dataset.json` and `qrels.trec` hold the test split. (Layout: Thakur et al.,
"BEIR", NeurIPS 2021 Datasets and Benchmarks.)
"""

import sys
from dataclasses import MISSING, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from embedding_finetune.artifacts.manifest import file_hashes, read_record, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.data.normalize import is_pseudo_query, passage_id, remove_query
from embedding_finetune.files import (
    UserError,
    atomic_write,
    content_hash,
    iter_jsonl,
    may_overwrite,
    read_lines,
    write_jsonl,
)
from embedding_finetune.hints import missing_hint
from embedding_finetune.settings import DATA, TABLE

SPLITS = ("train", "dev", "test")
SHARED = "judgments dropped, since their query is also in a later split"  # counted when a dataset is read
REVISIONS = ("revision", "corpus_revision")  # of Hub datasets
BEIR_FILES = ("corpus.jsonl", "queries.jsonl")  # a folder with these files is in BEIR layout
FILES = (*BEIR_FILES, *(f"qrels/{part}.tsv" for part in SPLITS))
MADE_BY = "build_train_dataset.ipynb"


@dataclass(frozen=True)
class Collection:
    """Queries and corpus by id, in order, with relevance judgements.

    A passage with a grade above 0 is a positive of the query; grade 0 marks a known negative. Ids are names: a query
    and a passage with the same id have nothing to do with each other. `copies` are the passages whose text is that of
    the query, as in ArguAna and Quora, unless they are judged positive.
    """

    queries: dict  # id -> text
    corpus: dict  # id -> text
    qrels: dict  # query id -> passage id -> grade
    splits: dict = field(default_factory=dict)  # query id -> train, dev or test
    source: dict = field(default_factory=dict)  # passage id -> where it comes from, shown with a hit
    copies: dict = field(default_factory=dict)  # query id -> ids of passages with its text, left out of its hits
    predefined: tuple = ()  # splits that came with the data
    leaking: int = 0  # pairs of a predefined training split that leak (see splits.remove_leaks) and were kept
    available: int = field(default=0, compare=False)  # queries of which MAX_QUERIES took a sample, or all; 0: not known

    def split(self, name):
        """The queries of one split with their judgements, and the whole corpus.

        For evaluation, so in dev and test, the pseudo-queries of both are removed from their positives.
        """
        found = self.select_queries([query for query, part in self.splits.items() if part == name])
        pseudo = [query for query, part in self.splits.items() if part != "train" and is_pseudo_query(query)]
        if name == "train" or not pseudo:
            return found
        texts = dict(self.corpus)
        for query in pseudo:
            texts |= {passage: remove_query(texts[passage], self.queries[query]) for passage in self.positives(query)}
        return replace(found, corpus=texts)

    def select_queries(self, queries):
        """The queries with these ids and their judgements, and the whole corpus."""
        return replace(self, queries={query: self.queries[query] for query in queries},
                       qrels={query: self.qrels[query] for query in queries if query in self.qrels},
                       splits={query: self.splits[query] for query in queries if query in self.splits},
                       copies={query: self.copies[query] for query in queries if query in self.copies})

    def positives(self, query):
        """The ids of the positives of a query."""
        return [passage for passage, grade in self.qrels.get(query, {}).items() if grade > 0]

    def positive_pool(self):
        """The ids of all positives, without repetitions, and for each query the positions of its positives in them."""
        positives = [self.positives(query) for query in self.queries]
        position = {passage: index for index, passage in enumerate(dict.fromkeys(chain.from_iterable(positives)))}
        return list(position), [[position[passage] for passage in passages] for passages in positives]

    def judged_passages(self):
        """The ids of all judged passages: a set."""
        return {passage for passages in self.qrels.values() for passage in passages}

    def growing_corpora(self, steps=5):
        """Yield Collections with the same queries and growing corpora: from the judged passages to all, in `steps`
        equal steps.

        Passages are added in the order of their texts' hashes: a random order that is the same for every model.
        """
        judged = self.judged_passages()
        others = sorted(set(self.corpus) - judged, key=lambda passage: passage_id(self.corpus[passage]))
        for step in range(steps):
            kept = judged | set(others[:round(len(others) * step / (steps - 1))])
            yield replace(self, corpus={passage: text for passage, text in self.corpus.items() if passage in kept})

    def sample(self, number, seed):
        """A seeded sample of the queries, in order, without passages judged only for other queries.

        All queries if `number` is 0.
        """
        if not number or len(self.queries) <= number:
            return self
        ids = list(self.queries)
        chosen = np.sort(np.random.default_rng(seed).choice(len(ids), number, replace=False))
        sample = self.select_queries([ids[index] for index in chosen])
        dropped = self.judged_passages() - sample.judged_passages()
        corpus, source = ({passage: text for passage, text in texts.items() if passage not in dropped}
                          for texts in (self.corpus, self.source))
        copies = {query: own for query, passages in sample.copies.items()
                  if (own := [passage for passage in passages if passage in corpus])}
        return replace(sample, corpus=corpus, source=source, copies=copies)


def read_collection(folder: Path) -> Collection:
    """The Collection that `write_collection` wrote to a folder.

    Raises UserError naming file and line when something is missing or malformed.
    """
    corpus, queries, source, copies, qrels, splits = {}, {}, {}, {}, {}, {}
    for row in _rows(folder / "corpus.jsonl"):
        corpus[row["_id"]] = row["text"]
        source |= {row["_id"]: row["source"]} if "source" in row else {}
    for row in _rows(folder / "queries.jsonl"):
        queries[row["_id"]] = row["text"]
        copies |= {row["_id"]: row["copies"]} if "copies" in row else {}
    for path in [folder / "qrels" / f"{part}.tsv" for part in SPLITS]:
        for number, line in read_lines(path, MADE_BY) if path.is_file() else ():
            query, passage, grade = line.rstrip("\n").split("\t") if line.count("\t") == 2 else ("", "", "")
            if number > 1 and (query not in queries or passage not in corpus or not grade.isdecimal()):
                raise UserError(f"{path}, line {number} is damaged: run {MADE_BY} again")
            if number > 1:
                qrels.setdefault(query, {})[passage] = int(grade)
                splits[query] = path.stem
    return Collection(queries, corpus, qrels, splits, source, copies)


def _rows(path):
    for row in iter_jsonl(path, required=("_id", "text"), made_by=MADE_BY):
        if not all(isinstance(row.get(name, ""), str) for name in ("_id", "text", "source")):
            raise UserError(f"{path}: the row with the `_id` {row['_id']!r} is damaged: run {MADE_BY} again")
        yield row


def write_collection(folder: Path, collection: Collection) -> None:
    """Write corpus, queries and the judgements of each split in BEIR layout."""
    source, copies = ({identity: {name: value} for identity, value in found.items()}
                      for name, found in (("source", collection.source), ("copies", collection.copies)))
    write_jsonl(folder / "corpus.jsonl", ({"_id": identity, "id": identity, "title": "", "text": text}
                                          | source.get(identity, {}) for identity, text in collection.corpus.items()))
    write_jsonl(folder / "queries.jsonl", ({"_id": identity, "text": text} | copies.get(identity, {})
                                           for identity, text in collection.queries.items()))
    for part in SPLITS:
        with atomic_write(folder / "qrels" / f"{part}.tsv") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for query in (query for query, split in collection.splits.items() if split == part):
                file.writelines(f"{query}\t{passage}\t{grade}\n"
                                for passage, grade in collection.qrels.get(query, {}).items())


def write_data(settings, collection, source):
    """Write the experiment's collection and dataset.json; `source` records what it was read from (versions, hashes).

    Raises UserError when DATA_DIR holds data of other settings or sources, since models trained on them could no longer
    be evaluated; OVERWRITE=1 replaces the data.
    """
    folder, record = settings.paths.data, _record(settings)
    inputs = {"settings": settings.as_dict(DATA), "source": source}
    if record and not may_overwrite():
        # Revisions are compared where both are known: offline none is, and earlier versions recorded none.
        recorded = record["inputs"]["source"]
        known = {name: value for name, value in (recorded | source).items() if name in REVISIONS}
        if difference := stale_reason(_effective(record["inputs"], record) | {"source": known | recorded},
                                      _effective(inputs, record) | {"source": known | source}):
            raise UserError(f"{folder} holds the data of other settings ({difference}); choose another DATA_DIR, or "
                            "set OVERWRITE=1 to replace them")
    write_collection(folder, collection)
    write_record(settings.paths.dataset_record, inputs, FILES, predefined=list(collection.predefined),
                 leaking=collection.leaking, available=collection.available)


def read_data(settings):
    """The experiment's collection, its corpus in the order of the ids, as retrievers index it.

    Raises UserError when it is missing, was made with other settings, or changed.
    """
    folder, record = settings.paths.data, _record(settings)
    if record is None:
        what = "is damaged or of an earlier version" if settings.paths.dataset_record.exists() else "does not exist"
        raise UserError(f"{settings.paths.dataset_record} {what}: it is made by {MADE_BY}"
                        f"{missing_hint(settings)}")
    current = record["inputs"] | {"settings": settings.as_dict(DATA)}
    if difference := stale_reason(_effective(record["inputs"], record), _effective(current, record)):
        raise UserError(f"{folder} was made with other settings ({difference}): run {MADE_BY} again, or set the "
                        "settings back")
    if record["files"] != file_hashes(folder, FILES):
        raise UserError(f"the files in {folder} are not those that {MADE_BY} wrote: run it again")
    collection = read_collection(folder)
    return replace(collection, corpus=dict(sorted(collection.corpus.items())), predefined=tuple(record["predefined"]),
                   leaking=record.get("leaking", 0), available=record.get("available", 0))


def _effective(inputs, record):
    """The `inputs` of a collection without the settings that make no difference to the data of a record.

    These are a MAX_QUERIES that is not below the number of queries, the fractions of splits that came with the data,
    and, without documents, how these are chunked.
    """
    unused = {f"{part.upper()}_FRACTION" for part in record.get("predefined", ())}
    if "passages" not in record["inputs"]["source"]:
        unused |= {"CHUNK_TOKENS", "CHUNK_OVERLAP"}
    if 0 < record.get("available", 0) <= (inputs["settings"].get("MAX_QUERIES") or sys.maxsize):
        unused.add("MAX_QUERIES")
    return inputs | {"settings": {name: None if name in unused else value
                                  for name, value in inputs["settings"].items()}}


def data_identity(settings):
    """A hash of the collection's files as they were written, which identifies the data."""
    return content_hash((_record(settings) or {}).get("files"))


def _record(settings):
    """The record of the collection, None if it is missing or damaged; settings that it lacks have their defaults."""
    record = read_record(settings.paths.dataset_record, having=("settings", "source"))
    default = {name: row.default for name, row in TABLE.items() if row.default is not MISSING
               and row.metadata["changes"] == DATA}
    if record:
        record["inputs"]["settings"] = default | record["inputs"]["settings"]
    return record


def write_test_files(settings, collection, query_prompt):
    """Write eval_dataset.json (query, pos, id, prompt) and qrels.trec of the test split."""
    test = collection.split("test")
    write_jsonl(settings.paths.data / "eval_dataset.json", (
        {"query": text, "pos": [collection.corpus[passage] for passage in test.positives(query)], "id": query,
         "prompt": query_prompt} for query, text in test.queries.items()))
    with atomic_write(settings.paths.data / "qrels.trec") as file:
        for query, judged in test.qrels.items():
            file.writelines(f"{query} 0 {passage} {grade}\n" for passage, grade in judged.items())
