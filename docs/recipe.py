"""The recipe ladder: one change at a time, at equal steps; chosen on dev queries, reported on test queries.

    python docs/recipe.py docstrings random-10                    one row: fine-tunes, encodes, measures; keeps what is finished
    python docs/recipe.py docstrings random-10 --seed 43          the same with another seed
    python docs/recipe.py collect                                 docs/recipe.json from all rows that are finished
    python docs/recipe.py list                                    the rows, with their settings
    python docs/recipe.py table                                   docs/recipe.json as tables
    python docs/recipe.py ceiling                                 how many test queries no row answers right, and whether the rows agree on another answer

The set `docstrings` comes with the pinned packages, `msmarco` is a JSONL file that PAIRS names. Each row is an experiment of its own under profiles/demo.env
and the settings below, in output/recipe/SET/ROW, with the data of the set; a fused row costs nothing and belongs to the row it fuses. A row builds on the
best finished one of the rungs below it, so run them in the order of `list`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402

from embedding_finetune import significance, trec  # noqa: E402
from embedding_finetune.experiment import Experiment  # noqa: E402
from embedding_finetune.files import ExperimentError, run_command_line, write_json  # noqa: E402
from embedding_finetune.metrics import mean, per_query  # noqa: E402
from embedding_finetune.training_files import (of_part, read_dev_set, read_pairs, read_test_set, write_eval_files, write_pairs,  # noqa: E402
                                               write_training_file)

OUTPUT = ROOT / "output" / "recipe"
LADDER = ROOT / "docs" / "recipe.json"
SEED = 42
STEPS = 64  # of 64 passages: 2,048 queries at a batch of 32 and a group of 2
COMMON = {"PROFILE": "demo", "DEV_FRACTION": "0.1", "DEV_STEPS": "0.99", "DEV_CORPUS_SIZE": "0", "LOGGING_STEPS": "16", "SEED": str(SEED)}
SETS = {
    "docstrings": {"DATASET": "docstrings", "MAX_PAIRS": "6000"},
    "msmarco": {"DATASET": os.environ.get("PAIRS", ""), "MAX_PAIRS": "0", "PASSAGE_MAX_LEN": "128"},
}
BIG_BATCH = {"BATCH_SIZE": "128", "GRAD_CACHE_CHUNK": "128"}  # four times the queries a step; GradCache keeps them in the memory of 128 texts
# Rung by rung the rows, each with the recipe it trains ("" is that of the row it changes, "_round2" its second round) and its changes.
START = "random-10"
RUNGS = (
    {START: ("neg10", {})},
    {"learning rate 1e-4": ("", {"LEARNING_RATE": "1e-4"}), "learning rate 2e-4": ("", {"LEARNING_RATE": "2e-4"})},
    {"temperature 0.05": ("", {"TEMPERATURE": "0.05"})},
    {"BM25 negatives, unfiltered": ("hard", {"HARD_SOURCE": "bm25", "HARD_FILTER": "none"}),
     "BM25 negatives, filtered": ("hard", {"HARD_SOURCE": "bm25"}),
     "model's negatives, filtered": ("hard", {"HARD_SOURCE": "model"})},
    {"teacher": ("hard_kd", {})},
    {"no instruction": ("", {"QUERY_INSTRUCTION": ""})},
    {"mean pooling": ("", {"BASE_POOLING": "mean"}),
     "mean pooling, no instruction": ("", {"BASE_POOLING": "mean", "QUERY_INSTRUCTION": ""}),
     "mean pooling, no instruction, learning rate 2e-5": ("", {"BASE_POOLING": "mean", "QUERY_INSTRUCTION": "", "LEARNING_RATE": "2e-5"})},
    {"second round": ("_round2", {})},
    {"batch 128": ("", BIG_BATCH), "batch 128, learning rate 1e-4": ("", BIG_BATCH | {"LEARNING_RATE": "1e-4"}),
     "group 8, batch 32": ("", {"TRAIN_GROUP_SIZE": "8", "GRAD_CACHE_CHUNK": "128"})},  # as many passages, as 7 negatives a query
)
# Beside the ladder: questions about its first row, which nothing builds on.
BESIDE = {
    "random-50": ("neg50", {}),
    "group 8, batch 8": ("", {"TRAIN_GROUP_SIZE": "8", "BATCH_SIZE": "8"}),
    "random-10, batch 128": ("", BIG_BATCH),
    "random-10, mean pooling": ("", {"BASE_POOLING": "mean"}),
    "model's negatives, batch 128, learning rate 1e-4": ("hard", BIG_BATCH | {"LEARNING_RATE": "1e-4", "HARD_SOURCE": "model"}),  # CLS to the end
}
ROWS = {row: what for rung in (*RUNGS, BESIDE) for row, what in rung.items()}


def parent_of(row, dev):
    """The row that `row` changes: the best one of the rungs below it, by `dev` (row -> MRR@10 on the dev queries); None for the first."""
    best = None
    for rung in RUNGS:
        if row in rung or best and row in BESIDE:
            return best
        found = [other for other in rung if other in dev]
        candidate = max(found, key=dev.get, default=None)
        if candidate and (best is None or dev[candidate] > dev[best]):
            best = candidate
    return best


def settings_of(row, dev):
    """The settings in which a row differs from COMMON and its set's: those of the row it changes, and its own."""
    parent = parent_of(row, dev)
    return (settings_of(parent, dev) if parent else {}) | ROWS[row][1]


def recipe_of(row, dev):
    """What the fine-tuning calls it: neg10, hard, .."""
    recipe = ROWS[row][0]
    return recipe_of(parent_of(row, dev), dev) + recipe if recipe in ("", "_round2") else recipe


def dev_of(name):
    """Row -> MRR@10 on the dev queries of a set's rows that are finished with the first seed."""
    finished = {row: results_of(name, row, fused=False) for row in ROWS}
    return {row: results[SEED]["dev"]["mrr@10"] for row, results in finished.items() if SEED in results}


def folder_of(name, row):
    """Where a row's model, runs and results are."""
    return OUTPUT / name / row.replace(" ", "_").replace(",", "").replace("'", "")


def environment(name, row=None):
    """Environment variables of a set's data, or of a row but for the settings it changes."""
    if name == "msmarco" and not SETS[name]["DATASET"]:
        raise ExperimentError("PAIRS is not set: it must name the JSONL file of the msmarco pairs")
    folder = OUTPUT / name / "data" if row is None else folder_of(name, row)
    return COMMON | SETS[name] | {"DATA_DIR": str(folder / "data" if row else folder), "OUTPUT_DIR": str(folder)}


def load(name, row=None, **more):
    """The Experiment of a set's data, or of a row; `more` are settings beside those of the set."""
    os.environ.update(environment(name, row) | more)
    return Experiment.load()


def prepare_data(name):
    """Build the data of a set once, by the notebooks that build it everywhere; measure BM25 and the two models without training."""
    from embedding_finetune.run import run_notebook
    experiment = load(name)
    if not (experiment.output_dir / "results" / "reference.json").exists():
        for notebook in ("build_train_dataset.ipynb", "build_eval_dataset.ipynb"):
            run_notebook(ROOT / notebook, experiment.output_dir / "notebooks")  # bm25 is measured by the second one
        for label in ("raw", "reference"):
            evaluate(experiment, label)
    return experiment


def run_row(name, row, seed):
    """Mine, fine-tune and measure one row; the result is in results/LABEL.json of its folder, and of its fusion with BM25."""
    dev = dev_of(name)
    if row != START and parent_of(row, dev) is None:
        raise ExperimentError(f"{row} changes a row of the rungs below it, and none of them is finished: python docs/recipe.py {name} {START} comes first")
    base, folder = prepare_data(name), folder_of(name, row)
    recipe, parent, settings = recipe_of(row, dev), parent_of(row, dev), settings_of(row, dev)
    label = recipe + ("" if seed == SEED else f"_seed{seed}")
    print(f"{name}, {row}, seed {seed}: changes {parent}, trains {recipe} with {settings}", flush=True)
    experiment = load(name, row, **settings)
    if not (experiment.data_dir / "qrels.trec").exists():  # the base's data, but for the instruction they are written with
        pairs, parts = read_pairs(base)
        write_pairs(experiment, pairs, parts)
        for number in (10, 50):
            write_training_file(experiment, pairs, parts, number)
        write_eval_files(experiment, pairs, parts)
        (folder / "cache").symlink_to(base.output_dir / "cache")  # vectors are found by their content, whoever computed them
    first_round, earlier = recipe.removesuffix("_round2"), row
    if first_round != recipe and not (folder / first_round).exists():
        while recipe_of(earlier, dev) != first_round:
            earlier = parent_of(earlier, dev)
        (folder / first_round).symlink_to(folder_of(name, earlier) / first_round)
    train = len(of_part(*read_pairs(experiment), "train"))
    epochs = str((STEPS - 0.5) / (train // experiment.batch_size))  # the steps are rounded up
    experiment = load(name, row, **settings, EPOCHS=epochs)
    started = time.monotonic()
    if not (folder / label).exists() and subprocess.run(["bash", ROOT / "embedding_finetune" / "finetune.sh", label], check=False).returncode:
        raise ExperimentError(f"the fine-tuning of {row} failed, its own messages are above")
    minutes = (time.monotonic() - started) / 60
    evaluate(experiment, label, row=row, changes=parent, by=ROWS[row][1], seed=seed, steps=STEPS, minutes=round(minutes, 2))


def evaluate(experiment, label, **facts):
    """Rank the test corpus for test and dev queries, alone and fused with BM25; save both with the dev metrics beside."""
    from embedding_finetune.embedder import Embedder
    from embedding_finetune.hybrid import choose_weight, fuse_scores
    from embedding_finetune.index import bm25_run, dense_run
    from embedding_finetune.report import save_result
    use = experiment.model(label)
    embedder = Embedder(use, cache=experiment.output_dir / "cache")
    test, dev = read_test_set(experiment), read_dev_set(experiment)
    passages = embedder.encode_passages(test.corpus.values())
    runs = [dense_run(part, embedder.encode_queries(part.queries.values()), passages) for part in (test, dev)]
    lexical = [bm25_run(part) for part in (test, dev)]
    weight = choose_weight(dev.qrels, lexical[1], runs[1])
    fused = [fuse_scores(words, run, weight) for words, run in zip(lexical, runs)]
    for name, (on_test, on_dev) in ((label, runs), (f"hybrid_{label}", fused)):
        used = asdict(use) | ({"weight": weight} if name != label else {})
        save_result(experiment, test, name, on_test, model=use.title, used=used, dev=mean(per_query(dev.qrels, on_dev)), **facts)
        print(f"{name}: {({key: round(value, 4) for key, value in mean(per_query(test.qrels, on_test)).items()})}")


def frame_of(name, row, label, test_set):
    """Metrics for each test query from the run file of a label."""
    folder = folder_of(name, row) if row else OUTPUT / name / "data"
    return per_query(test_set.qrels, trec.read_run(folder / "runs" / f"{label}.trec"))


def results_of(name, row, fused):
    """Seed -> result of a row, as far as they are there."""
    found = {}
    for path in (folder_of(name, row) / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["label"].startswith("hybrid_") == fused:
            found[result["seed"]] = result
    return dict(sorted(found.items()))


def collect(name):
    """The rows of a set that are finished, as docs/recipe.json has them.

    Test metrics are means over the seeds; `dev` is that of the first seed, which decided. `against` is the paired difference to the row that this one
    `changes` (over the seeds that both have), `baselines` that to BM25, the reference and the first row.
    """
    experiment = load(name)
    test_set, dev, rows, frames = read_test_set(experiment), dev_of(name), [], {}
    for label in ("bm25", "raw", "reference", "hybrid_raw", "hybrid_reference"):
        result = json.loads((experiment.output_dir / "results" / f"{label}.json").read_text(encoding="utf-8"))
        frames[label] = {None: frame_of(name, None, label, test_set)}
        rows.append(_entry(name, label, result, frames, {"seeds": 0, "steps": 0, "minutes": 0, "dev": result.get("dev", {}).get("mrr@10")}))
    for fused in (False, True):
        for row in ROWS:
            results = results_of(name, row, fused)
            if not results:
                continue
            first, label = next(iter(results.values())), f"{row} + hybrid" if fused else row
            frames[label] = {seed: frame_of(name, row, result["label"], test_set) for seed, result in results.items()}
            rows.append(_entry(name, label, first, frames, {
                "seeds": len(results), "steps": first["steps"], "minutes": round(sum(result["minutes"] for result in results.values()) / len(results), 1),
                "dev": first["dev"]["mrr@10"], "recall@1 by seed": {str(seed): result["metrics"]["recall@1"] for seed, result in results.items()},
                "changes": row if fused else parent_of(row, dev), "by": {} if fused else ROWS[row][1], "weight": first["used"].get("weight"),
                "settings": {key: value for key, value in first["settings"].items() if key not in ("DATA_DIR", "OUTPUT_DIR", "DATASET")}}))
    return rows


def _entry(name, label, result, frames, facts):
    models, _ = significance.compare({label: _mean(frames[label])}, seed=SEED)
    metrics = models.set_index("metric")
    entry = {"set": name, "label": label, "queries": result["queries"], "corpus": result["corpus"],
             **{metric: metrics.loc[metric, "mean"] for metric in ("recall@1", "recall@10", "mrr@10")},
             "ci95": metrics.loc["recall@1", ["low", "high"]].tolist(), **facts}
    if facts.get("changes"):
        entry["against"] = {"row": facts["changes"], **_paired(frames[label], frames[facts["changes"]])}
    if facts["seeds"]:
        entry["baselines"] = {other: _paired(frames[label], frames[other]) for other in ("bm25", "reference", "hybrid_reference", START)
                              if other != label}
    return entry


def _mean(frames):
    return sum(frames.values()) / len(frames)


def _paired(ours, theirs):
    """Difference of recall@1 with interval and (uncorrected) p-value, query by query, over the seeds that both have; a baseline has no seeds."""
    seeds = ours.keys() & theirs.keys()
    both = {"ours": _mean({seed: ours[seed] for seed in seeds} or ours), "theirs": _mean({seed: theirs[seed] for seed in seeds} or theirs)}
    _, pairs = significance.compare(both, seed=SEED)
    pair = pairs[pairs["metric"] == "recall@1"].iloc[0]
    return {"difference": pair["difference"], "ci95": [pair["low"], pair["high"]], "p_value": pair["p_raw"]}


def table(rows):
    """Rows of docs/recipe.json as a frame of text, one line a row: means with intervals, and the paired difference to the row that it changes."""

    def line(row):
        difference = {"changes": "", "difference": "", "p": ""}
        if row.get("against"):
            low, high = row["against"]["ci95"]
            difference = {"changes": row["against"]["row"], "difference": f"{row['against']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                          "p": f"{row['against']['p_value']:.3f}"}
        return {"row": row["label"], "recall@1": "{:.3f} [{:.3f}, {:.3f}]".format(row["recall@1"], *row["ci95"]), **difference,
                "dev": "" if row["dev"] is None else f"{row['dev']:.3f}", **{key: row[key] for key in ("seeds", "steps", "minutes")}}

    return pd.DataFrame(map(line, rows)).set_index("row")


def ceiling(name):
    """One line on the test queries that no finished row ranks right at the first place, fused or not: no choice among these models gets further.

    Where more than half of the rows have the same other passage first, the label is to be doubted before the models are.
    """
    test_set, first = read_test_set(load(name)), {}
    for path in OUTPUT.glob(f"{name}/*/runs/*.trec"):
        for query, ranking in trec.read_run(path).items():
            first.setdefault(query, Counter())[max(ranking, key=ranking.get)] += 1
    missed = [query for query in test_set.qrels if not first[query].keys() & test_set.qrels[query].keys()]
    agreed = sum(first[query].most_common(1)[0][1] * 2 > first[query].total() for query in missed)
    return (f"{name}: of {len(test_set.qrels)} test queries {len(missed)} are answered right by no run, so that recall@1 ends at "
            f"{1 - len(missed) / len(test_set.qrels):.3f}; for {agreed} of them most runs agree on the same other passage")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=(*SETS, "collect", "list", "table", "ceiling"))
    parser.add_argument("row", nargs="?")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    finished = [name for name in SETS if (OUTPUT / name / "data" / "results" / "reference.json").exists()]
    if options.set == "list":
        for row, (recipe, changes) in ROWS.items():
            print(f"{row:50} {recipe:10} {' '.join(f'{key}={value}' for key, value in changes.items())}")
    elif options.set == "ceiling":
        print(*map(ceiling, finished), sep="\n")
    elif options.set == "collect":
        kept = [row for row in json.loads(LADDER.read_text(encoding="utf-8")) if row["set"] not in finished]
        write_json(LADDER, kept + [row for name in finished for row in collect(name)])
    elif options.set == "table":
        rows = json.loads(LADDER.read_text(encoding="utf-8"))
        for name in SETS:
            print(f"\n{name}\n\n{table([row for row in rows if row['set'] == name]).to_markdown(disable_numparse=True)}")
    elif options.row not in ROWS:
        raise ExperimentError(f"there is no row {options.row!r}: one of {', '.join(ROWS)}")
    else:
        run_row(options.set, options.row, options.seed)


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    run_command_line(main)
