"""The ablation of recipes: one change at a time, at equal steps; chosen on dev queries, reported on test queries.

    python docs/recipe.py docstrings mined [--seed 43]    one row: mines, fine-tunes, measures; continues what is there
    python docs/recipe.py collect (or: table)             docs/recipe.json from all finished rows (or: as tables)

A row is an entry of docs/ladder_SET.toml, trained under profiles/demo.env and the settings below in output/ladder/SET,
and measured by the notebooks that measure every model. One that mines with another one's model needs that one first.
"""

import argparse
import json
import os
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from embedding_finetune import pipeline, recipes
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation import metrics, results, significance
from embedding_finetune.files import read_json, run_command_line, write_json
from embedding_finetune.settings import Settings
from embedding_finetune.training import train as training

OUTPUT, LADDER, SEED, STEPS = ROOT / "output" / "ladder", ROOT / "docs" / "recipe.json", 42, 64
COMMON = {"PROFILE": "demo", "SEED": str(SEED), "DEV_FRACTION": "0.1", "DEV_STEPS": "0.99", "DEV_CORPUS_SIZE": "0"}
SETS = {"docstrings": {"DATASET": "docstrings", "MAX_QUERIES": "6000"},  # PAIRS: a file in place of the Hub's pairs
        "msmarco": {"DATASET": os.environ.get("PAIRS", "msmarco"), "MAX_QUERIES": "0", "PASSAGE_MAX_LEN": "128"}}
BEFORE = "build_train_dataset", "build_eval_dataset", "eval_raw_bert", "eval_bge_m3"  # they make the data and BASELINES
BASELINES = "bm25", "reference", "hybrid_reference", "random-10"


def settings_of(name, **more):
    """The settings of a set's ablation; they are put into the environment, where the notebooks find them."""
    own = {"RECIPE_FILE": f"docs/ladder_{name}.toml", "OUTPUT_DIR": OUTPUT / name, "DATA_DIR": OUTPUT / name / "data"}
    os.environ.update({key: str(value) for key, value in (COMMON | SETS[name] | own | more).items()})
    return Settings.load()


def run_row(name, label, seed):
    """Mine, fine-tune and measure one row, alone and fused with BM25."""
    settings = settings_of(name, SEEDS=seed - SEED + 1)
    label, output = label if seed == SEED else f"{label}_seed{seed}", settings.output_dir
    batch = settings.with_overrides(recipes.find_recipe(settings, label).settings).batch_size
    for notebook in () if (output / "results" / "hybrid_reference.json").exists() else BEFORE:
        pipeline.run_notebook(ROOT / f"{notebook}.ipynb", output / "notebooks")
    steps_an_epoch = len(read_data(settings).split("train").queries) // batch
    settings = settings_of(name, EPOCHS=(STEPS - 0.5) / steps_an_epoch)  # the steps are rounded up
    if not (output / label).exists():
        started, minutes = time.monotonic(), read_json(output / "minutes.json") or {}
        training.finetune(settings, label)
        write_json(output / "minutes.json", minutes | {label: (time.monotonic() - started) / 60})
    pipeline.run_notebook(ROOT / "eval_train_hard.ipynb", output / "notebooks", label)


def collect(name):
    """The finished rows of a set: means over the seeds of each, and paired differences of these means in recall@1."""
    settings, found = settings_of(name), {}
    minutes, test = read_json(settings.output_dir / "minutes.json") or {}, read_data(settings).split("test")
    ladder, (fitting, left_out) = tomllib.loads(settings.recipe_file.read_text()), results.load_results(settings)
    print(results.left_out_line(left_out), file=sys.stderr)
    for result in fitting:
        label, of = result["label"], results.system_of(result).encoder
        entry, seed = ladder.get(of.partition("_seed")[0]), of.partition("_seed")[2] or str(SEED)
        values = metrics.per_query(test.qrels, results.read_measured_run(settings, test, label))
        result |= {"entry": entry or {}, "seed": seed, "minutes": minutes.get(of, 0), "values": values}
        found.setdefault(entry["description"] + " + hybrid" * (of != label) if entry else label, []).append(result)
    means = {row: sum(result["values"] for result in found[row]) / len(found[row]) for row in found}
    compared = significance.add_significance([{"label": row} for row in means], means, planned=[], seed=SEED)
    rows = [{"set": name, **_row(row, found[row["label"]], means[row["label"]].mean(), ladder)} for row in compared]
    return sorted(rows, key=lambda row: row["seeds"] > 0)  # what is not trained here comes first


def _row(row, seeds, means, ladder):
    against = {other: pair["recall@1"] for other, pair in row["against"].items()}
    label, first, entry = row["label"], seeds[0], seeds[0]["entry"]
    base = label.removesuffix(" + hybrid")  # a fusion changes the row that it fuses
    changes, own = (ladder.get(entry.get("extends"), {}).get("description"), entry) if base == label else (base, {})
    by = {key: own[key] for key in own if key not in ("description", "extends", "file", "settings")}
    return {"label": label, "queries": first["queries"], "corpus": first["corpus"], "dev": first["dev"]["mrr@10"],
            **means[["recall@1", "recall@10", "mrr@10"]], "ci95": row["ci95"]["recall@1"], "changes": changes,
            "by": by | own.get("settings", {}), "seeds": len(seeds) * bool(entry), "steps": STEPS * bool(entry),
            "weight": first["parameters"].get("bm25_weight"),
            "minutes": round(sum(result["minutes"] for result in seeds) / len(seeds), 1),
            "recall@1 by seed": {result["seed"]: result["metrics"]["recall@1"] for result in seeds if entry},
            "against": {"row": changes, **against[changes]} if changes in against else None,
            "baselines": {other: against[other] for other in BASELINES if entry and other in against}}


def table(rows):
    """Rows of docs/recipe.json as a frame of text: means with intervals, and the difference to the row changed."""
    return pd.DataFrame([{
        "row": row["label"], "recall@1": "{:.3f} [{:.3f}, {:.3f}]".format(row["recall@1"], *row["ci95"]),
        "changes": against["row"] if against else "",
        "difference": "{difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**against) if against else "",
        "dev": row["dev"] and f"{row['dev']:.3f}", **{key: row[key] for key in ("seeds", "steps", "minutes")}}
        for row in rows for against in [row.get("against")]]).fillna("").set_index("row")


def write(rows):
    """docs/recipe.json, a row a line."""
    LADDER.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*SETS, "collect", "table"))
    parser.add_argument("label", nargs="?", default="neg10")
    parser.add_argument("--seed", type=int, default=SEED)
    options, everything = parser.parse_args(), read_json(LADDER)
    rows = [row for row in everything if "ladder" not in row]  # those of second_ladder.py have it
    if options.what in SETS:
        return run_row(options.what, options.label, options.seed)
    if options.what == "collect":
        finished = [name for name in SETS if (OUTPUT / name / "minutes.json").exists()]
        rows = [row for row in rows if row["set"] not in finished] + [row for name in finished for row in collect(name)]
        write(rows + [row for row in everything if "ladder" in row])
    for name in SETS:
        print(table(row for row in rows if row["set"] == name).to_markdown(disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    run_command_line(main)
