"""The files between the stages: what FlagEmbedding trains on, what the evaluation reads, and the audit that no test item leaked.

In DATA_DIR:

    dataset.json            the settings that made the files beside it
    pairs.jsonl             every cleaned pair, with its part: train, dev or test
    training_neg_N.json     train queries with their positives and N random negatives each; those of mined ones are in mining
    dev_dataset.json        dev queries with their positives
    eval_dataset.json       test queries with their positives
    corpus.jsonl            every passage, of all parts, and the distractors, by id
    qrels.trec              the test queries' judgements
"""

import json
import os
from dataclasses import dataclass

import pandas as pd

from embedding_finetune import trec
from embedding_finetune.experiment import RECIPES, ROOT
from embedding_finetune.files import ExperimentError, read_jsonl, write_json, write_jsonl
from embedding_finetune.negatives import sample_random
from embedding_finetune.pairs import load_distractors, passage_id

NEGATIVES = (10, 50)
FINE_TUNED = tuple(f"neg{number}" for number in NEGATIVES)
MINING_SETTINGS = ("HARD_SOURCE", "HARD_MODEL", "HARD_FILTER", "HARD_DEPTH", "HARD_NEGATIVES", "TEACHER", "TEACHER_TEMPERATURE", "SEED",
                   "QUERY_INSTRUCTION", "BASE_MODEL", "BASE_POOLING", "REFERENCE_MODEL", "REFERENCE_POOLING", "REFERENCE_INSTRUCTION",
                   "REFERENCE_MAX_LEN", "QUERY_MAX_LEN", "PASSAGE_MAX_LEN", "EXTRA_MODELS")
DATA_SETTINGS = ("DATASET", "MAX_PAIRS", "TEST_FRACTION", "DEV_FRACTION", "SEED", "QUERY_INSTRUCTION",
                 "DISTRACTORS", "MAX_DISTRACTORS")


@dataclass(frozen=True)
class TestSet:
    """What the evaluation needs: queries (id -> text), corpus (id -> text) and qrels (query id -> passage id -> 1)."""

    queries: dict
    corpus: dict
    qrels: dict

    __test__ = False  # no test case, whatever its name says

    def subsets(self, steps=5):
        """Corpora of growing size with the same queries: from the positives alone to the whole, in `steps` equal steps.

        Yields (TestSet, positions of its passages in the whole corpus). Passages are added in the order of their ids, which are hashes:
        a random order that is the same for every model.
        """
        judged = {passage for passages in self.qrels.values() for passage in passages}
        ids = list(self.corpus)
        others = sorted(set(ids) - judged)
        for step in range(steps):
            kept = judged | set(others[:round(len(others) * step / (steps - 1))])
            positions = [index for index, passage in enumerate(ids) if passage in kept]
            yield TestSet(self.queries, {ids[index]: self.corpus[ids[index]] for index in positions}, self.qrels), positions


def write_pairs(experiment, pairs, parts):
    """Write pairs.jsonl and dataset.json.

    Raises ExperimentError when DATA_DIR holds files that were made with other settings, unless OVERWRITE=1 allows it:
    models trained on them could not be evaluated any more.
    """
    made_with = _made_with(experiment)
    if made_with not in (None, _data_settings(experiment)) and os.environ.get("OVERWRITE") != "1":
        raise ExperimentError(f"{experiment.data_dir} holds the data of other settings ({_difference(experiment, made_with)}); "
                              "choose another DATA_DIR, or set OVERWRITE=1 to replace them")
    write_jsonl(experiment.data_dir / "pairs.jsonl", ({**pair, "part": part} for pair, part in zip(pairs, parts)))
    write_json(experiment.data_dir / "dataset.json", _data_settings(experiment))


def read_pairs(experiment):
    """Read pairs.jsonl back: a list of pairs and a list of their parts. Raises ExperimentError when the settings differ."""
    check_data_settings(experiment)
    rows = read_jsonl(experiment.data_dir / "pairs.jsonl", required=("id", "query", "pos", "part"),
                      made_by="build_train_dataset.ipynb")
    parts = [row.pop("part") for row in rows]
    return rows, parts


def write_training_file(experiment, pairs, parts, number):
    """Write training_neg_N.json, N = `number` random negatives a query out of the train part's passages; returns its rows."""
    train = of_part(pairs, parts, "train")
    texts, positives = passage_pool(train)
    drawn = sample_random(positives, len(texts), number, seed=[experiment.seed, number])
    rows = list(training_rows(experiment, train, texts, drawn))
    write_jsonl(training_path(experiment, f"neg{number}"), rows)
    return rows


def passage_pool(train):
    """The distinct passages of the train pairs, and for each pair the positions of its positives among them."""
    pool = {passage_id(text): text for pair in train for text in pair["pos"]}
    position = {identity: index for index, identity in enumerate(pool)}
    return list(pool.values()), [[position[passage_id(text)] for text in pair["pos"]] for pair in train]


def training_rows(experiment, train, texts, drawn):
    """Yield the row of each train pair, its negatives being the passages of the pool `texts` at the positions in its row of `drawn`."""
    for pair, positions in zip(train, drawn):
        yield {"query": pair["query"], "pos": pair["pos"], "neg": [texts[index] for index in positions], "id": pair["id"],
               "prompt": experiment.query_instruction}


def recipe_of(label):
    """The recipe of a fine-tuned model: `neg10` of `neg10` and of its repetition with another seed, `neg10_seed43`."""
    return label.partition("_seed")[0]


def is_mined(label):
    """Whether a fine-tuned model's negatives are mined."""
    return recipe_of(label) in RECIPES


def with_teacher(label):
    """Whether a fine-tuned model learns from a teacher's scores, too."""
    return "_kd" in recipe_of(label)


def mining_settings(experiment, label):
    """The settings that the training file of a mined recipe depends on, as a dict; {} for the other recipes."""
    return {name: value for name, value in experiment.as_dict().items()
            if is_mined(label) and name in MINING_SETTINGS and (with_teacher(label) or not name.startswith("TEACHER"))}


def training_path(experiment, label):
    """The training file of a fine-tuned model: training_neg_10.json of `neg10`, training_hard.json of `hard`, whatever the seed."""
    return experiment.data_dir / f"training_{recipe_of(label).replace('neg', 'neg_')}.json"


def read_training_file(path, teacher=False):
    """The rows of a training file; with `teacher`, each text of `pos` and `neg` must have its score.

    Raises ExperimentError naming file and row when it cannot be trained on.
    """
    rows = read_jsonl(path, required=("query", "pos", "neg"), made_by="build_train_dataset.ipynb")
    for number, row in enumerate(rows, start=1):
        for side in ("pos", "neg"):
            texts, scores = row[side], row.get(f"{side}_scores")
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise ExperimentError(f"{path}, row {number}: {side!r} must be a list of at least one text; "
                                      "run build_train_dataset.ipynb again")
            if teacher and not (isinstance(scores, list) and len(scores) == len(texts)
                                and all(isinstance(score, int | float) for score in scores)):
                raise ExperimentError(f"{path}, row {number}: a teacher needs '{side}_scores', one number for each text of {side!r}")
    return rows


def write_eval_files(experiment, pairs, parts):
    """Write dev_dataset.json, eval_dataset.json, corpus.jsonl (every passage, and the DISTRACTORS) and qrels.trec."""
    for name, part in (("dev_dataset.json", "dev"), ("eval_dataset.json", "test")):
        write_jsonl(experiment.data_dir / name, ({"query": pair["query"], "pos": pair["pos"], "id": pair["id"],
                                                  "prompt": experiment.query_instruction} for pair in of_part(pairs, parts, part)))
    corpus = {passage_id(text): text for pair in pairs for text in pair["pos"]}
    corpus |= load_distractors(experiment, known=corpus)
    write_jsonl(experiment.data_dir / "corpus.jsonl", ({"id": identity, "text": corpus[identity]} for identity in sorted(corpus)))
    trec.write_qrels(experiment.data_dir / "qrels.trec", {pair["id"]: {passage_id(text): 1 for text in pair["pos"]}
                                                          for pair in of_part(pairs, parts, "test")})


def read_test_set(experiment):
    """The TestSet that build_eval_dataset.ipynb wrote. Raises ExperimentError when files are missing or do not fit together."""
    queries, corpus = _read_queries_and_corpus(experiment, "eval_dataset.json")
    return _checked(experiment, TestSet({row["id"]: row["query"] for row in queries}, corpus,
                                        trec.read_qrels(experiment.data_dir / "qrels.trec")))


def read_dev_set(experiment):
    """The dev queries on the same corpus, for choosing what must not be chosen on test queries; raises as read_test_set does."""
    queries, corpus = _read_queries_and_corpus(experiment, "dev_dataset.json")
    return _checked(experiment, TestSet({row["id"]: row["query"] for row in queries}, corpus,
                                        {row["id"]: {passage_id(text): 1 for text in row["pos"]} for row in queries}))


def _read_queries_and_corpus(experiment, name):
    read_pairs(experiment)
    made_by = "build_eval_dataset.ipynb"
    return (read_jsonl(experiment.data_dir / name, required=("query", "pos", "id"), made_by=made_by),
            {row["id"]: row["text"] for row in read_jsonl(experiment.data_dir / "corpus.jsonl", required=("id", "text"), made_by=made_by)})


def _checked(experiment, test_set):
    judged = {passage for passages in test_set.qrels.values() for passage in passages}
    if set(test_set.queries) != set(test_set.qrels) or not judged <= set(test_set.corpus):
        raise ExperimentError(f"queries, judgements and corpus in {experiment.data_dir} do not belong together: "
                              "run build_eval_dataset.ipynb again")
    return test_set


def read_beir(folder):
    """The TestSet of a folder in BEIR's layout: corpus.jsonl, queries.jsonl (`_id`, `text`, perhaps `title`), qrels/test.tsv.

    Raises ExperimentError when a file is missing or broken. (Thakur et al., "BEIR", NeurIPS 2021 Datasets and Benchmarks.)
    """
    folder = ROOT / folder
    texts = {name: {str(row["_id"]): f"{row.get('title', '')} {row['text']}".strip() for row in
                    read_jsonl(folder / f"{name}.jsonl", required=("_id", "text"), made_by="whoever made this BEIR set")}
             for name in ("queries", "corpus")}
    qrels = {}
    path = folder / "qrels" / "test.tsv"
    if not path.is_file():
        raise ExperimentError(f"{path} does not exist: EVAL_SETS wants folders in BEIR's layout")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        try:
            query, passage, relevance = line.split("\t")
            if int(relevance) > 0:
                qrels.setdefault(query, {})[passage] = 1
        except ValueError:
            raise ExperimentError(f"{path}, line {number}: expected query-id, corpus-id and score, separated by tabs") from None
    if not qrels.keys() <= texts["queries"].keys() or not {p for judged in qrels.values() for p in judged} <= texts["corpus"].keys():
        raise ExperimentError(f"{path} judges queries or passages that {folder} does not have")
    return TestSet({query: texts["queries"][query] for query in qrels}, texts["corpus"], qrels)


def of_part(pairs, parts, part):
    """The pairs of one part."""
    return [pair for pair, where in zip(pairs, parts) if where == part]


def audit(experiment, labels=FINE_TUNED):
    """Look for test and dev items in the training files of these labels, as they are on disk; returns a table of how many were found.

    Texts are compared as they count as the same (by passage_id). Raises ExperimentError when anything leaked.
    """
    held_out = {}
    for part, name in (("dev", "dev_dataset.json"), ("test", "eval_dataset.json")):
        others = read_jsonl(experiment.data_dir / name, made_by="build_eval_dataset.ipynb")
        held_out[part] = _identities(row["query"] for row in others), _identities(text for row in others for text in row["pos"])
    tables = []
    for label in labels:
        path = training_path(experiment, label)
        rows, found = read_training_file(path), []
        queries = _identities(row["query"] for row in rows)
        positives = _identities(text for row in rows for text in row["pos"])
        negatives = _identities(text for row in rows for text in row["neg"])
        own = sum(len(_identities(row["pos"]) & _identities(row["neg"])) for row in rows)
        repeated = sum(len(row["neg"]) - len(_identities(row["neg"])) for row in rows)
        for part, (other_queries, other_positives) in held_out.items():
            found.append({"file": path.name, "against": part, "queries": len(queries & other_queries),
                          "positives": len(positives & other_positives), "negatives": len(negatives & other_positives),
                          "own positives as negatives": own, "repeated negatives": repeated})
        tables.append(pd.DataFrame(found).set_index(["file", "against"]))
        if tables[-1].to_numpy().any():
            raise ExperimentError(f"{path} is not clean, a count above 0 is a leak: {json.dumps(found)}; run both build "
                                  "notebooks again")
    return pd.concat(tables)


def _identities(texts):
    return {passage_id(text) for text in texts}


def _data_settings(experiment):
    return {name: value for name, value in experiment.as_dict().items() if name in DATA_SETTINGS}


def check_data_settings(experiment):
    """Raise ExperimentError when the files in DATA_DIR were made with other settings, such as another QUERY_INSTRUCTION."""
    made_with = _made_with(experiment)
    if made_with not in (None, _data_settings(experiment)):
        raise ExperimentError(f"{experiment.data_dir} was made with other settings ({_difference(experiment, made_with)}): "
                              "run build_train_dataset.ipynb again, or set the settings back")


def _made_with(experiment):
    path = experiment.data_dir / "dataset.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _difference(experiment, made_with):
    settings = _data_settings(experiment)
    return ", ".join(f"{name}={made_with.get(name)}, now {settings[name]}" for name in settings if made_with.get(name) != settings[name])
