"""What few pairs cost the recommendation: the distance of the recommended system to the best one.

    SETS="NAME=DATASET[,CORPUS] .." python benchmarks/bench_selection.py [--sizes 100 300] [--seeds 5] [--folder FOLDER]

A data set is reduced to a few pairs, whose passages are the corpus, and split as PROFILE=laptop does. One recipe,
neg10, is trained. Then the whole test part of the data set, in a corpus of at most 2,000 passages, tells how good each
system is. Regret is the nDCG@10 of the best one minus that of the system taken: `max_dev` takes the best of all on dev,
with weights tuned there, `default` is always BM25 and the untrained model, `rule` is what this package recommends.
Texts are cut at 128 tokens and dev is evaluated once an epoch, to save time. FOLDER keeps what is finished.
The last line of standard output is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import inputs  # noqa: F401  (finds the package)
import numpy as np

from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.data.collection import write_data
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.evaluation.selection import MIN_QUERIES, select, selection_queries
from embedding_finetune.evaluation.significance import add_significance, outcome
from embedding_finetune.evaluation.tuning import choose_weight, rerank_run, tune_reranking
from embedding_finetune.files import read_json, run_command_line, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.late_interaction import LateInteraction
from embedding_finetune.retrieval.rerank import DEPTHS, candidate_union
from embedding_finetune.settings import SELECTION_METRIC, Settings
from embedding_finetune.training.train import finetune

READY = "bm25", "reference", "hybrid_reference", "late_reference", "hybrid_late_reference"
TRAINED = "neg10", "hybrid_neg10"
DEFAULTS = "hybrid_reference", "hybrid_neg10"
METRIC, TEST_PASSAGES = "ndcg@10", 2000
LENGTHS = {"QUERY_MAX_LEN": "64", "PASSAGE_MAX_LEN": "128", "REFERENCE_MAX_LEN": "128", "DEV_STEPS": "0.34"}


def settings_of(folder, dataset, corpus="", seed=42):
    given = {"DATASET": dataset, "CORPUS": corpus, "SEED": str(seed), "MAX_QUERIES": "2000",
             "DATA_DIR": f"{folder}/data", "OUTPUT_DIR": f"{folder}/output"}
    return Settings.load("laptop", LENGTHS | given)


def reduced(whole, number, settings):
    """`number` pairs of the train and dev splits with their passages, split anew."""
    pairs = whole.select_queries([query for query, part in whole.splits.items() if part != "test"])
    pairs = dataclasses.replace(pairs.sample(number, settings.seed), splits={}, source={}, predefined=())
    judged = pairs.judged_passages()
    corpus = {passage: text for passage, text in pairs.corpus.items() if passage in judged}
    return assign_splits(dataclasses.replace(pairs, corpus=corpus, copies={}), test_fraction=settings.test_fraction,
                         dev_fraction=settings.dev_fraction, seed=settings.seed)


def test_part(whole, settings):
    """The test queries of a data set, with their positives and other passages up to TEST_PASSAGES as corpus."""
    test = whole.split("test")
    judged = test.judged_passages()
    others = sorted(set(test.corpus) - judged)
    more = settings.rng().permutation(len(others))[:max(0, TEST_PASSAGES - len(judged))]
    kept = judged | {others[place] for place in more}
    return dataclasses.replace(test, corpus={passage: text for passage, text in test.corpus.items() if passage in kept})


def searched(settings, collection, cache):
    """Label -> run of all queries of a collection: BM25, both models, and late interaction of their union."""
    queries, corpus, runs = collection.queries, collection.corpus, {}
    runs["bm25"] = make_retriever("bm25", settings).index(corpus).search(queries)
    reference = Encoder(load_encoder_config(settings, "reference"), cache=cache)
    late = LateInteraction(reference).index(corpus)  # first, since its pass stores the vectors as well
    for label, encoder in (("reference", reference), ("neg10", Encoder(load_encoder_config(settings, "neg10")))):
        runs[label] = Dense(encoder).index(corpus).search(queries)
    candidates = candidate_union(runs["reference"], runs["bm25"], depth=max(DEPTHS))
    return runs | {"late": late.score(queries, candidates)}


def tuned(part, runs, at_least):
    """The weights of the three systems that have some, tuned on the queries of `part` if there are `at_least` so many;
    late interaction alone has the depth of the fusion with it."""
    of_part = {label: {query: run[query] for query in part.queries} for label, run in runs.items()}
    bm25, reference, neg10, late = (of_part[label] for label in ("bm25", "reference", "neg10", "late"))
    return {"hybrid_reference": choose_weight(part, bm25, reference, at_least=at_least),
            "hybrid_neg10": choose_weight(part, bm25, neg10, at_least=at_least),
            "hybrid_late_reference": tune_reranking(part, bm25, reference, late, at_least=at_least)}


def systems(runs, weights):
    """Label -> run of all systems."""
    bm25, reference, neg10, late = (runs[label] for label in ("bm25", "reference", "neg10", "late"))
    alone = {"bm25_weight": 0.0, "rerank_weight": None, "depth": weights["hybrid_late_reference"]["depth"]}
    return {"bm25": bm25, "reference": reference, "neg10": neg10,
            "hybrid_reference": weighted_sum_fusion(bm25, reference, weights["hybrid_reference"]),
            "hybrid_neg10": weighted_sum_fusion(bm25, neg10, weights["hybrid_neg10"]),
            "late_reference": rerank_run(bm25, reference, late, **alone),
            "hybrid_late_reference": rerank_run(bm25, reference, late, **weights["hybrid_late_reference"])}


def values_of(part, runs, labels):
    """Label -> values of the selection metric, one per query."""
    return {label: per_query(part.qrels, {query: runs[label][query] for query in part.queries})[
        SELECTION_METRIC].to_numpy() for label in labels}


def recommended(collection, runs):
    """What the package recommends: the selected untrained system, or the trained one if test finds it better."""
    ready, trained = (select(values_of(part := selection_queries(collection, group is TRAINED), runs, group), default)
                      for group, default in zip((READY, TRAINED), DEFAULTS))
    test = collection.split("test")
    labels = list(dict.fromkeys(["bm25", "reference", "neg10", ready.label, trained.label]))
    frames = {label: per_query(test.qrels, {query: runs[label][query] for query in test.queries}) for label in labels}
    planned = [("neg10", "bm25"), ("neg10", "reference"), (trained.label, ready.label)]
    rows = {row["label"]: row for row in add_significance([{"label": label} for label in labels], frames, planned)}
    found = outcome(rows[trained.label]["against"][ready.label]["recall@1"])
    better = found.significant and found.word == "better"
    return trained.label if better else ready.label, ready, trained


def experiment(settings, whole, number, cache):
    """Train on `number` pairs; the systems taken, and the metric of all systems on the whole test part."""
    pairs, test = reduced(whole, number, settings), test_part(whole, settings)
    write_data(settings, pairs, {"pairs": number})
    if not settings.paths.model("neg10").exists():
        finetune(settings, "neg10", one_process=True)
    here, there = searched(settings, pairs, cache), searched(settings, test, cache)
    dev = pairs.split("dev")
    weights = {"max_dev": tuned(dev, here, at_least=1), "rule": tuned(dev, here, at_least=MIN_QUERIES)}
    untrained = tuned(selection_queries(pairs, trained=False), here, at_least=MIN_QUERIES)
    weights["rule"] |= {label: untrained[label] for label in READY if label in untrained}
    selected = {name: systems(here, values) for name, values in weights.items()}
    on_dev = {label: float(values.mean().round(9)) for label, values in
              values_of(dev, selected["max_dev"], READY + TRAINED).items()}
    taken, ready, trained = recommended(pairs, selected["rule"])
    return {"pairs": number, "seed": settings.seed, "dev_queries": len(dev.queries),
            "taken": {"max_dev": max(on_dev, key=on_dev.get), "default": DEFAULTS[0], "rule": taken},
            "selections": [dataclasses.asdict(ready), dataclasses.asdict(trained)], "dev": on_dev, "weights": weights,
            "test_queries": len(test.queries),
            "test": {name: {label: mean(per_query(test.qrels, run))[METRIC] for label, run in
                            systems(there, values).items()} for name, values in weights.items()}}


def regrets(found):
    """Way of taking a system -> regret in an experiment."""
    best = max(max(values.values()) for values in found["test"].values())
    return {name: best - found["test"].get(name, found["test"]["rule"])[label] for name, label in
            found["taken"].items()}


def figures(experiments):
    """Mean, spread over the experiments and largest regret per number of pairs and way of taking a system."""
    found = {}
    for number in sorted({one["pairs"] for one in experiments}):
        some = [regrets(one) for one in experiments if one["pairs"] == number]
        for name in some[0]:
            values = np.array([one[name] for one in some])
            found |= {f"{name}_{number}": round(float(values.mean()), 4),
                      f"{name}_{number}_std": round(float(values.std(ddof=1)) if len(values) > 1 else 0.0, 4),
                      f"{name}_{number}_worst": round(float(values.max()), 4)}
        found[f"experiments_{number}"] = len(some)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir() + "/bench_selection")
    options, experiments, collections = parser.parse_args(), [], {}
    sets = [entry.partition("=")[::2] for entry in os.environ.get("SETS", "docstrings=docstrings").split()]
    for seed in range(options.seeds):
        for name, sources in sets:
            home = Path(options.folder).resolve() / name
            if name not in collections:
                settings = settings_of(home, *sources.split(","))
                collections[name] = assign_splits(read_pairs(settings)[0], test_fraction=settings.test_fraction,
                                                  dev_fraction=settings.dev_fraction, seed=settings.seed)
            for number in options.sizes:
                path = home / f"{number}_{seed}.json"
                if not path.exists():
                    settings = settings_of(home / f"{number}_{seed}", *sources.split(","), seed=seed)
                    found = experiment(settings, collections[name], number, home / "cache")
                    write_json(path, {"data": name} | found)
                experiments.append(read_json(path))
                print(name, number, seed, experiments[-1]["taken"], regrets(experiments[-1]), flush=True)
    print(json.dumps(figures(experiments)))


if __name__ == "__main__":
    run_command_line(main)
