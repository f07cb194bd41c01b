"""The ablation of reranking: what token vectors bring, untrained and trained, and at what cost.

    python docs/second_ladder.py docstrings late_tokens    one system: trains what it needs, and measures it
    python docs/second_ladder.py docstrings msmarco_dense  a model that another set has trained, out of domain
    python docs/second_ladder.py costs                     ms a query of all that is finished, one by one
    python docs/second_ladder.py collect (or: table)       docs/recipe.json from all that is finished

A system is a recipe of docs/ladder_second.toml, tokens_seed43 with another seed, or a reranker of such models, as
late_tokens_seed43_on_dense. All models begin with the bundled one, used as it was made. PAIRS is a file of MS MARCO's
pairs in place of the Hub's, DOCSTRINGS one of docstrings in place of the installed packages', COVIDQA a folder with
pairs.jsonl and corpus.jsonl. The sets sympy and torch are the docstrings of one package each: what one has trained
meets the other's.
"""

import argparse
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import recipe as ladder

from embedding_finetune import pipeline, recipes
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.evaluation import metrics, results, significance
from embedding_finetune.files import read_json, run_command_line, write_json, write_jsonl
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config, pretrained
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.known_systems import find_system, make_reranker
from embedding_finetune.retrieval.rerank import candidate_union
from embedding_finetune.settings import Settings
from embedding_finetune.training import train as training
from embedding_finetune.training.log import read_log

OUTPUT, SEED = ladder.ROOT / "output" / "second_ladder", ladder.SEED
COMMON = {"PROFILE": "demo", "RECIPE_FILE": "docs/ladder_second.toml", "BASE_POOLING": "auto",
          "QUERY_PROMPT": "auto", "DEV_FRACTION": "0.1", "DEV_STEPS": "0.5", "DEV_CORPUS_SIZE": "0",
          "OUT_OF_DOMAIN_SETS": "", "RERANKERS": "", "SEEDS": "3"}
LARGE_BATCH = {"BATCH_SIZE": "128", "GRAD_CACHE_CHUNK": "128", "LEARNING_RATE": "1e-4", "EPOCHS": "2"}
PACKAGES = "sympy", "torch"
COVIDQA = Path(os.environ.get("COVIDQA", "covidqa"))
SETS = {  # batches and rates are the best on dev for single-vector in docs/results.md
    "docstrings": {"DATASET": os.environ.get("DOCSTRINGS", "docstrings"), "MAX_QUERIES": "6000", **LARGE_BATCH},
    "msmarco": {"DATASET": os.environ.get("PAIRS", "msmarco"), "MAX_QUERIES": "0", "PASSAGE_MAX_LEN": "128",
                "LEARNING_RATE": "2e-5", "EPOCHS": "0.5"},
    "covidqa": {"DATASET": COVIDQA / "pairs.jsonl", "CORPUS": COVIDQA / "corpus.jsonl", "MAX_QUERIES": "0",
                "PASSAGE_MAX_LEN": "256", **LARGE_BATCH},
    **{package: {"DATASET": OUTPUT / f"{package}.jsonl", "MAX_QUERIES": "2000", "TEST_FRACTION": "0.3", **LARGE_BATCH}
       for package in PACKAGES}}
BUILD = "build_train_dataset", "build_eval_dataset"
BASELINES = "bm25", "reference", "hybrid_reference", "late_reference", "hybrid_late_reference"
TRAVEL = "dense", "tokens"  # models that are measured on the other sets as well
TIMED = 100  # queries


def settings_of(name, **more):
    """The settings of a set's ablation; they are put into the environment, where the notebooks find them."""
    own = {"OUTPUT_DIR": OUTPUT / name, "DATA_DIR": OUTPUT / name / "data",
           "EXTRA_MODELS": " ".join(f"{label}={folder}" for label, folder in travelled(name).items())}
    for key in {key for settings in SETS.values() for key in settings}:  # of the set before
        os.environ.pop(key, None)
    os.environ.update({key: str(value) for key, value in (COMMON | SETS[name] | own | more).items()})
    return Settings.load()


def travelled(name):
    """Label -> folder of the models that other sets have trained, as msmarco_dense or msmarco_dense_seed43."""
    folders = sorted(folder for other in SETS if other != name for folder in OUTPUT.glob(f"{other}/*"))
    return {f"{folder.parent.name}_{folder.name}": folder for folder in folders
            if without_seed(folder.name)[0] in TRAVEL and (folder / "config.json").exists()}


def run_system(name, label):
    """Train and measure a recipe or a reranker, after the models that it needs; what is there is kept."""
    if name in PACKAGES and not (OUTPUT / f"{name}.jsonl").exists():
        rows = read_docstrings([name])
        write_jsonl(OUTPUT / f"{name}.jsonl", ({"query": row.query, "pos": row.positives} for row in rows))
    settings = settings_of(name)
    output = settings.output_dir
    if (output / "results" / f"{label}.json").exists():
        return
    for notebook in () if (settings.data_dir / "corpus.jsonl").exists() else BUILD:
        pipeline.run_notebook(ladder.ROOT / f"{notebook}.ipynb", output / "notebooks")
    if label in pretrained(settings):
        evaluate(name, label, "eval_bge_m3.ipynb")
    elif label in recipes.all_recipes(settings):
        train(settings, name, label)
    else:
        for model in models_of(find_system(settings, label)):
            run_system(name, model)
        pipeline.run_notebook(ladder.ROOT / "rerank.ipynb", output / "notebooks", label)


def models_of(system):
    """Labels of the models of a system, that of the reranker first."""
    return list(dict.fromkeys(filter(None, (system.reranker_model, system.encoder))))


def train(settings, name, label):
    """Train a recipe after its teacher, and measure it, unless it is a reranker, which has nothing to search with."""
    found, output = recipes.find_recipe(settings, label), settings.output_dir
    if found.teacher:
        run_system(name, found.teacher)
    if not (output / label).exists():
        started = time.monotonic()
        training.finetune(settings, label)
        minutes = read_json(output / "minutes.json") or {}  # read late: another system may be trained meanwhile
        write_json(output / "minutes.json", minutes | {label: (time.monotonic() - started) / 60})
    if found.kind == "bi_encoder":
        evaluate(name, label, "eval_train_hard.ipynb")


def evaluate(name, label, notebook):
    """Measure the single-vector part, alone and fused with BM25; token vectors are kept in the same pass."""
    settings = settings_of(name, RERANKERS=f"late_{label}")
    pipeline.run_notebook(ladder.ROOT / notebook, settings.output_dir / "notebooks", label)
    settings_of(name)


def costs(name):
    """Milliseconds of each finished system for one query alone, and of its parts, into costs.json, but for those that
    are there: an idle machine.
    """
    settings = settings_of(name)
    test, found = read_data(settings).split("test"), read_json(settings.output_dir / "costs.json") or {}
    queries = dict(list(test.queries.items())[:TIMED + 1])
    words = make_retriever("bm25", settings).index(test.corpus)
    dense = Dense(make_encoder(settings, load_encoder_config(settings, "reference"))).index(test.corpus)
    dense.encoder.cache = None  # a query is encoded anew
    bm25, quick = timed(words.search, queries)
    vector, slow = timed(dense.search, queries)
    found = {"bm25": quick, "one vector": slow} | found
    for result in results.load_results(settings)[0]:
        label, system = result["label"], results.system_of(result)
        if system.reranker and not system.fused and label not in found:
            stage = make_reranker(settings, system.reranker, system.reranker_model).index(test.corpus)
            seen = candidate_union(vector, bm25, depth=result["parameters"]["depth"])
            found[label] = timed(partial(stage.score, candidates=seen), queries)[1]
    write_json(settings.output_dir / "costs.json", found)


def timed(search, queries):
    """The runs of the queries (id -> text), asked one by one, and milliseconds a query without the first one's."""
    (first, text), *others = queries.items()
    runs = search({first: text})
    began = time.perf_counter()
    for query, text in others:
        runs |= search({query: text})
    return runs, 1000 * (time.perf_counter() - began) / len(others)


def collect(name):
    """The finished systems of a set: means over seeds, their paired differences in recall@1, and what they cost."""
    settings, found = settings_of(name), {}
    test, ms = read_data(settings).split("test"), read_json(settings.output_dir / "costs.json") or {}
    trained = {label: trained_by(settings, label) for label in (*recipes.all_recipes(settings), *travelled(name))}
    fitting, left_out = results.load_results(settings)
    print(results.left_out_line(left_out), file=sys.stderr)
    for result in fitting:
        label, seed = without_seed(result["label"])
        values = metrics.per_query(test.qrels, results.read_measured_run(settings, test, result["label"]))
        found.setdefault(label, []).append(result | {"seed": seed, "values": values})
    means = {label: sum(result["values"] for result in found[label]) / len(found[label]) for label in found}
    compared = significance.add_significance([{"label": label} for label in means], means, planned=[], seed=SEED)
    vector = 4 * found["reference"][0]["size"]["vector"]  # bytes
    return [_row(settings, row, found[row["label"]], means[row["label"]].mean(), trained, ms, vector)
            for row in compared]


def without_seed(label):
    """(label of the first seed's system, the seed)."""
    seeds = re.findall(r"_seed(\d+)", label)
    return re.sub(r"_seed\d+", "", label), seeds[0] if seeds else str(SEED)


def trained_by(settings, label):
    """What trained the model of a label, here or on another set, as in a row: about, share, steps and minutes."""
    folder = travelled(settings.output_dir.name).get(label, settings.output_dir / label)
    recipe, log = recipes.find_recipe(settings, folder.name), read_log(folder)
    there = "" if folder.parent == settings.output_dir else f", on {folder.parent.name}"
    return {"about": recipe.description + there, "share": recipe.train_fraction, "steps": log[-1]["step"] if log else 0,
            "minutes": (read_json(folder.parent / "minutes.json") or {}).get(folder.name)}


def _row(settings, row, seeds, means, trainings, ms, vector):
    label, first = row["label"], seeds[0]
    system, parameters = results.system_of(first), first["parameters"]
    trained = [trainings[model] for model in models_of(system) if model in trainings]
    minutes = [model["minutes"] for model in trained]  # None: not known on this machine
    parts = ["one vector"] * system.has_model + [label.removeprefix("hybrid_")] * bool(system.reranker)
    parts += ["bm25"] * (not system.has_model or not system.is_single)
    against = {other: pair["recall@1"] for other, pair in row["against"].items()}
    return {"ladder": "second", "set": settings.output_dir.name, "label": label,
            "trained": [model["about"] for model in trained], "queries": first["queries"], "corpus": first["corpus"],
            "dev": sum(result["dev"]["mrr@10"] for result in seeds) / len(seeds),
            **means[["recall@1", "recall@10", "mrr@10"]], "ci95": row["ci95"]["recall@1"],
            "share": min((model["share"] for model in trained), default=0), "seeds": len(seeds) * bool(trained),
            "steps": sum(model["steps"] for model in trained),
            "minutes": None if None in minutes else round(sum(minutes), 1),
            "ms_per_query": round(sum(ms[part] for part in parts), 1) if set(parts) <= set(ms) else None,
            "bytes_per_passage": system.has_model * vector + first.get("bytes_per_passage", 0),
            "depth": parameters.get("depth"), "weight": parameters.get("bm25_weight"),
            "rerank_weight": parameters.get("rerank_weight"),
            "recall@1 by seed": {result["seed"]: result["metrics"]["recall@1"] for result in seeds if trained},
            "baselines": {other: against[other] for other in BASELINES if other in against}}


def with_new(rows, found):
    """The rows of recipe.json with those that were found here, unless they were there before, of as many seeds: another
    machine has other last digits.
    """
    def key(row):
        return row.get("ladder"), row["set"], row["label"]

    seeds = {key(row): row.get("seeds", 0) for row in rows}
    better = {key(row): row for row in found if row["seeds"] > seeds.get(key(row), -1)}
    return [row for row in rows if key(row) not in better] + list(better.values())


def table(rows):
    """Rows of docs/recipe.json as a frame of text, what costs least first."""
    def shown(low, high, value, form="{:.3f} [{:.3f}, {:.3f}]"):
        return form.format(value, low, high)

    frame = pd.DataFrame([{
        "system": row["label"], "trained": ", ".join(row["trained"]), "dev": row["dev"] and f"{row['dev']:.3f}",
        "recall@1": shown(*row["ci95"], row["recall@1"]),
        "compared with hybrid_reference": against and shown(*against["ci95"], against["difference"],
                                                     "{:+.3f} [{:+.3f}, {:+.3f}]"),
        **{key: row[key] for key in ("seeds", "minutes", "ms_per_query", "bytes_per_passage")}}
        for row in rows for against in [row["baselines"].get("hybrid_reference")]])
    return frame.astype(object).fillna("").set_index("system")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*SETS, "costs", "collect", "table"))
    parser.add_argument("label", nargs="?", default="late_reference")
    options, rows = parser.parse_args(), read_json(ladder.LADDER)
    finished = [name for name in SETS if (OUTPUT / name / "results").exists()]
    if options.what in SETS:
        return run_system(options.what, options.label)
    if options.what == "costs":
        return [costs(name) for name in finished]
    if options.what == "collect":
        ladder.write(with_new(rows, [row for name in finished for row in collect(name)]))
    for name in SETS:
        some = [row for row in read_json(ladder.LADDER) if row.get("ladder") == "second" and row["set"] == name]
        print(name, table(some).to_markdown(disable_numparse=True) if some else "-", sep="\n", end="\n\n")


if __name__ == "__main__":
    run_command_line(main)
