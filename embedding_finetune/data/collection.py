"""The collection: queries, corpus, judgements and splits, in memory and on disk in BEIR layout.

In a folder:

    corpus.jsonl       passages: `_id` (and `id`, the same), `title` (empty), `text`, `source` if known
    queries.jsonl      queries: `_id`, `text`
    qrels/SPLIT.tsv    judgements of a split's queries: query-id, corpus-id, score; SPLIT is train, dev or test
    dataset.json       (of an experiment) the record of the files: settings and sources, and a hash of each file

For tools that read other formats, `eval_dataset.json` and `qrels.trec` hold the test split. (Layout: Thakur et al.,
"BEIR", NeurIPS 2021 Datasets and Benchmarks.)
"""

from dataclasses import MISSING, dataclass, field, replace
from itertools import chain

import numpy as np

from embedding_finetune.artifacts.earlier import translate_collection_record
from embedding_finetune.artifacts.manifest import file_hashes, read_record, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.data.normalize import clean_text, passage_id
from embedding_finetune.files import (
    UserError,
    atomic_write,
    content_hash,
    iter_jsonl,
    may_overwrite,
    read_lines,
    write_jsonl,
)
from embedding_finetune.settings import DATA, TABLE

SPLITS = ("train", "dev", "test")
REVISIONS = ("revision", "corpus_revision")  # of Hub datasets
BEIR_FILES = ("corpus.jsonl", "queries.jsonl")  # a folder with these files is in BEIR layout
FILES = (*BEIR_FILES, *(f"qrels/{part}.tsv" for part in SPLITS))
MADE_BY = "build_train_dataset.ipynb"


@dataclass(frozen=True)
class Collection:
    """Queries and corpus by id, in order, with relevance judgements.

    A passage with a grade above 0 is a positive of the query; grade 0 marks a known negative.
    """

    queries: dict  # id -> text
    corpus: dict  # id -> text
    qrels: dict  # query id -> passage id -> grade
    splits: dict = field(default_factory=dict)  # query id -> train, dev or test
    source: dict = field(default_factory=dict)  # passage id -> where it comes from, shown with a hit
    predefined: tuple = ()  # splits that came with the data; kept even if they overlap

    def split(self, name):
        """The queries of one split with their judgements, and the whole corpus."""
        return self.select_queries([query for query, part in self.splits.items() if part == name])

    def select_queries(self, queries):
        """The queries with these ids and their judgements, and the whole corpus."""
        return replace(self, queries={query: self.queries[query] for query in queries},
                       qrels={query: self.qrels[query] for query in queries if query in self.qrels},
                       splits={query: self.splits[query] for query in queries if query in self.splits})

    def positives(self, query):
        """The ids of the positives of a query."""
        return [passage for passage, grade in self.qrels.get(query, {}).items() if grade > 0]

    def positive_pool(self):
        """The ids of all positives, deduplicated in order, and for each query the positions of its positives in them.
        """
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
        return replace(sample, corpus=corpus, source=source)


def read_collection(folder, made_by="whoever made this set"):
    """The Collection of a folder in BEIR layout; its splits are those with a file in qrels/.

    A passage's title is put before its text. Raises UserError naming file and line when something is missing, malformed
    or inconsistent.
    """
    texts, source = {"corpus": {}, "queries": {}}, {}
    for name, found in texts.items():
        for row in iter_jsonl(folder / f"{name}.jsonl", required=("_id", "text"), made_by=made_by):
            identity = str(row["_id"])
            if identity in found:
                raise UserError(f"{folder / name}.jsonl has the `_id` {identity!r} twice: make the ids unique")
            found[identity] = clean_text(f"{row.get('title') or ''} {row['text'] or ''}")
            if name == "corpus" and row.get("source"):
                source[identity] = clean_text(str(row["source"]))
    qrels, parts = {}, {}
    for path in [folder / "qrels" / f"{part}.tsv" for part in SPLITS]:
        for number, query, passage, grade in _judgements(path, made_by) if path.is_file() else ():
            if query not in texts["queries"] or passage not in texts["corpus"]:
                raise UserError(f"{path}, line {number}: judges a query or passage that is not in {folder}")
            if parts.setdefault(query, path.stem) != path.stem:
                raise UserError(f"{path}, line {number}: query {query} is also in {parts[query]}.tsv")
            qrels.setdefault(query, {})[passage] = grade
    if not qrels:
        raise UserError(f"{folder / 'qrels'} has no judgements: it must hold test.tsv (or train.tsv, dev.tsv)")
    return Collection(texts["queries"], texts["corpus"], qrels, parts, source)


def _judgements(path, made_by):
    """Yield (line number, query, passage, grade); a first line whose third field is not a number is a header."""
    for number, line in read_lines(path, made_by):
        fields = line.rstrip("\r\n").split("\t")
        try:
            query, passage, grade = fields
            yield number, query, passage, int(grade)
        except ValueError:
            if number > 1 or len(fields) != 3:
                raise UserError(f"{path}, line {number}: expected query-id, corpus-id and score (a whole number), "
                                "separated by tabs") from None


def write_collection(folder, collection):
    """Write corpus, queries and the judgements of each split in BEIR layout."""
    source = {identity: {"source": text} for identity, text in collection.source.items()}
    write_jsonl(folder / "corpus.jsonl", ({"_id": identity, "id": identity, "title": "", "text": text}
                                          | source.get(identity, {}) for identity, text in collection.corpus.items()))
    write_jsonl(folder / "queries.jsonl", ({"_id": identity, "text": text}
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
        if difference := stale_reason(record["inputs"] | {"source": known | recorded},
                                      inputs | {"source": known | source}):
            raise UserError(f"{folder} holds the data of other settings ({difference}); choose another DATA_DIR, or "
                            "set OVERWRITE=1 to replace them")
    write_collection(folder, collection)
    write_record(settings.paths.dataset_record, inputs, FILES, predefined=list(collection.predefined))


def read_data(settings):
    """The experiment's collection, its corpus in the order of the ids, as retrievers index it.

    Raises UserError when it is missing, was made with other settings, or changed.
    """
    folder, record = settings.paths.data, _record(settings)
    if record is None:
        what = "is damaged" if settings.paths.dataset_record.exists() else "does not exist"
        raise UserError(f"{settings.paths.dataset_record} {what}: it is made by {MADE_BY}")
    if difference := stale_reason(record["inputs"], record["inputs"] | {"settings": settings.as_dict(DATA)}):
        raise UserError(f"{folder} was made with other settings ({difference}): run {MADE_BY} again, or set the "
                        "settings back")
    if record["files"] != file_hashes(folder, FILES):
        raise UserError(f"the files in {folder} are not those that {MADE_BY} wrote: run it again")
    collection = read_collection(folder, MADE_BY)
    return replace(collection, corpus=dict(sorted(collection.corpus.items())), predefined=tuple(record["predefined"]))


def data_identity(settings):
    """A hash of the collection's files as they were written, which identifies the data."""
    return content_hash((_record(settings) or {}).get("files"))


def _record(settings):
    """The record of the collection, None if it is missing or damaged; settings that it lacks have their defaults."""
    record = read_record(settings.paths.dataset_record, translate_collection_record, having=("settings", "source"))
    default = {name: row.default for name, row in TABLE.items() if row.default is not MISSING
               and row.metadata["changes"] == DATA}
    if record:
        record["inputs"]["settings"] = default | record["inputs"]["settings"]
    return record


def write_test_files(settings, collection, query_prompt):
    """Write eval_dataset.json (query, pos, id, prompt) and qrels.trec of the test split."""
    test = collection.split("test")
    write_jsonl(settings.paths.data / "eval_dataset.json", (
        {"query": text, "pos": [test.corpus[passage] for passage in test.positives(query)], "id": query,
         "prompt": query_prompt} for query, text in test.queries.items()))
    with atomic_write(settings.paths.data / "qrels.trec") as file:
        for query, judged in test.qrels.items():
            file.writelines(f"{query} 0 {passage} {grade}\n" for passage, grade in judged.items())
