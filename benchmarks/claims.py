"""Public fine-tuning results, measured again under one protocol: `make claims CLAIM=financial_qa`.

    python benchmarks/claims.py                    all claims whose data are in CLAIMS_DATA
    python benchmarks/claims.py financial_qa [SYSTEM ..]
    python benchmarks/claims.py scifact --published-split --seeds 3

A claim is a file in benchmarks/claims: what was published and where, which data, which settings and systems. Its data
are read from a folder of CLAIMS_DATA and compared with the number of rows and the first test query in the file. Each
system is trained if necessary, and evaluated as in the notebooks; finished parts are kept in output/claims. Training
pairs that share a query or passage with the test split are dropped, unless --published-split keeps them.

The rows go to benchmarks/claims/results.json; `python docs/result_tables.py` makes the tables from them.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
from inputs import ROOT, hardware

from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.collection import read_data, write_data
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.evaluation.evaluate import evaluate
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.results import read_measured_run, read_result, result_stale_reason
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.files import (
    UserError,
    atomic_write,
    read_json,
    read_jsonl,
    run_command_line,
    write_json,
    write_jsonl,
)
from embedding_finetune.hub import model_size
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.known_systems import find_system
from embedding_finetune.settings import Settings
from embedding_finetune.training.train import finetune

CLAIMS = Path(__file__).resolve().parent / "claims"
RESULTS, RECIPES = CLAIMS / "results.json", CLAIMS / "recipes.toml"
PROFILE = "laptop"  # the base model as it was published; a claim's [settings] come before it
SHOWN = "ndcg@10", "mrr@10", "recall@10", "recall@1", "hit@1", "hit@5", "hit@10"
REQUIRED = {"title": str, "source": str, "license": str, "rows": int, "passages": int, "first_test_query": str,
            "baseline": str, "settings": dict, "systems": dict, "published": list}


def claim_names():
    """The names of the claims; the other files of the folder hold recipes."""
    return sorted(path.stem for path in CLAIMS.glob("*.toml") if "title" in tomllib.loads(path.read_text("utf-8")))


def read_claim(name):
    """The claim of a name: a dict. Raises UserError when there is no such claim, or a key is missing or unknown."""
    path = CLAIMS / f"{name}.toml"
    if name not in claim_names():
        raise UserError(f"there is no claim {name!r}: choose one of {', '.join(claim_names())}")
    claim = tomllib.loads(path.read_text(encoding="utf-8"))
    for key, kind in REQUIRED.items():
        if not isinstance(claim.get(key), kind):
            raise UserError(f"{path}: {key} is missing, or not a {kind.__name__}")
    for row in claim["published"]:
        if unknown := set(row["metrics"]) - set(SHOWN):
            raise UserError(f"{path}: the runs do not provide {', '.join(sorted(unknown))}, only {', '.join(SHOWN)}")
    return {"name": name, "folder": "", "recipes": RECIPES.name, "split": {}} | claim


def settings_of(claim, published_split, seeds):
    """The Settings of a claim, which do not depend on the environment; raises UserError if its data are missing."""
    name, data = claim["name"], os.environ.get("CLAIMS_DATA", "")
    folder = Path(data or "CLAIMS_DATA", claim["folder"])
    if claim["folder"] and not (data and folder.exists()):
        raise UserError(f"the data of {name} are not in {folder}: set CLAIMS_DATA to the folder that holds "
                        f"{claim['folder']} ({claim['license']})")
    given = {key: str(value).replace("CLAIMS_DATA", data) for key, value in claim["settings"].items()}
    output = ROOT / "output" / "claims" / name / ("published_split" if published_split else "leak_free")
    dataset, split = folder, claim["split"]
    if split:
        dataset = with_split(folder / split["file"], output / "rows.jsonl", split)
    return Settings.load(PROFILE, {"DATASET": str(dataset), "RECIPE_FILE": str(CLAIMS / claim["recipes"]),
                                   "LEAKING_ROWS": "keep" if published_split else "drop", "SEEDS": str(seeds),
                                   "DATA_DIR": str(output / "data"), "OUTPUT_DIR": str(output), **given})


def with_split(source, path, split):
    """Write the rows of a JSON Lines file with the split that train_test_split of `datasets` gives them.

    `split` has the `seed` and the fraction `test`. Returns the path.
    """
    rows = list(read_jsonl(source, required=("query", "pos"), made_by="you"))
    order = np.random.default_rng(split["seed"]).permutation(len(rows))
    test = math.ceil(split["test"] * len(rows))
    parts = dict.fromkeys(order[:test].tolist(), "test")
    write_jsonl(path, (rows[place] | {"split": parts.get(place, "train")} for place in order.tolist()))
    return path


def build(claim, settings):
    """Read the data of a claim and write its collection. Raises UserError when they are not those of the claim."""
    pairs, counts = read_pairs(settings)
    first = next((text for query, text in pairs.queries.items() if pairs.splits.get(query) == "test"),
                 next(iter(pairs.queries.values())))
    found = {"rows": counts["rows read"] or counts["queries read"], "passages": len(pairs.corpus),
             "first_test_query": hashlib.sha256(first.encode()).hexdigest()}
    for key, value in found.items():
        if value != claim[key]:
            raise UserError(f"{settings.dataset} is not the data of {claim['name']}: {key} is {value}, not "
                            f"{claim[key]}")
    collection = assign_splits(pairs, test_fraction=settings.test_fraction, dev_fraction=settings.dev_fraction,
                               seed=settings.seed, together=settings.group_near_duplicates)
    write_data(settings, collection, source_of(settings))


def repetitions(settings, label):
    """The System of a label with each seed: only the models that are trained here have repetitions."""
    system, recipes = find_system(settings, label), all_recipes(settings)

    def with_seed(model, number):
        return f"{model}_seed{settings.seed + number}" if number and model in recipes else model

    numbers = range(settings.seeds if {system.retriever, system.reranker_model} & set(recipes) else 1)
    return [replace(system, retriever=with_seed(system.retriever, number),
                    reranker_model=with_seed(system.reranker_model, number)) for number in numbers]


def measure(settings, system):
    """Train what a system needs, and evaluate it; a current result is kept."""
    for model in {system.retriever, system.reranker_model} & set(all_recipes(settings)):
        if not settings.paths.model(model).exists():
            began = time.monotonic()
            finetune(settings, model)
            minutes = read_json(settings.output_dir / "minutes.json") or {}
            write_json(settings.output_dir / "minutes.json", minutes | {model: (time.monotonic() - began) / 60})
    if not settings.paths.result(system.label).exists() or result_stale_reason(
            settings, read_result(settings, system.label)):
        if system.reranker:  # a fusion is evaluated with its retriever
            measure(settings, system.first_stage)
        evaluate(settings, system.label)


def rows_of(claim, settings, labels):
    """Rows of results.json for the systems with these labels: means over seeds, with paired differences to the
    claim's baseline.
    """
    test, minutes = read_data(settings).split("test"), read_json(settings.output_dir / "minutes.json") or {}
    systems = {label: repetitions(settings, label) for label in dict.fromkeys([*labels, claim["baseline"]])}
    frames = {}
    for label, some in systems.items():
        frames[label] = sum(per_query(test.qrels, read_measured_run(settings, test, one.label)) for one in some)
        frames[label] /= len(some)
    compared = add_significance([{"label": label} for label in systems], frames, planned=[])
    return [_row(claim, settings, row, systems[row["label"]], frames[row["label"]].mean(), minutes)
            for row in compared if row["label"] in labels]


def _row(claim, settings, row, repeated, means, minutes):
    results = [read_result(settings, system.label) for system in repeated]
    models = [label for label in dict.fromkeys((repeated[0].retriever, repeated[0].reranker_model))
              if label and repeated[0].has_model]
    trained, first = [label for label in models if label in all_recipes(settings)], results[0]
    sizes = {label: model_size(load_encoder_config(settings, label).name)["weights"] for label in models}
    baseline = row["against"].get(claim["baseline"], {})
    return {"claim": claim["name"], "label": row["label"], "system": claim["systems"][row["label"]],
            "trained": bool(trained), "parameters": sum(size // 4 for size in set(sizes.values())),  # float32
            "leak_free": settings.leaking_rows == "drop", "seeds": len(repeated) * bool(trained),
            "queries": first["queries"], "corpus": first["corpus"],
            "dev": sum(result["dev"]["mrr@10"] for result in results) / len(results),
            "metrics": {name: round(float(means[name]), 6) for name in SHOWN},
            "ci95": {name: row["ci95"][name] for name in SHOWN},
            "against": {name: baseline[name] for name in SHOWN if name in baseline},
            "by_training": first["by_training"],
            "minutes": round(sum(minutes.get(label, 0) for label in trained), 1),
            "ms_per_query": first.get("ms_per_query"), "bytes_per_passage": first.get("bytes_per_passage"),
            "hardware": hardware(settings.gpus), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def commit():
    """The commit of the checkout, with -dirty if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def published_rows(claim):
    """What was published, as rows of results.json."""
    return [{"claim": claim["name"], "published": True, "source": claim["source"], "label": None, **row}
            for row in claim["published"]]


def save(rows):
    """Add rows to results.json, a row per line; earlier rows of the same system are replaced."""
    def key(row):
        return row["claim"], row["label"] or row["system"], row.get("leak_free")

    new = {key(row): row for row in rows}
    kept = {key(row): row for row in read_json(RESULTS) or []} | new
    with atomic_write(RESULTS) as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in kept.values()) + "\n]\n")


def main():
    """Measure the claims that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claim", nargs="?", help="default: all whose data are there")
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="labels; default: all of the claim")
    parser.add_argument("--published-split", action="store_true", help="keep training pairs that leak")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    names = [options.claim] if options.claim else claim_names()
    for claim in map(read_claim, names):
        settings = settings_of(claim, options.published_split, options.seeds)
        labels = options.systems or list(claim["systems"])
        if unknown := set(labels) - set(claim["systems"]):
            raise UserError(f"{claim['name']} has no system {', '.join(sorted(unknown))}: add a line to [systems]")
        if not settings.paths.dataset_record.exists():
            build(claim, settings)
        for label in dict.fromkeys(["bm25", claim["baseline"], *labels]):
            for system in repetitions(settings, label):
                measure(settings, system)
        rows = rows_of(claim, settings, labels)
        save(published_rows(claim) + rows)
        for row in rows:
            values = "  ".join(f"{name} {value:.3f}" for name, value in row["metrics"].items())
            print(f"{row['system']}: {values}  dev {row['dev']:.3f}  {row['minutes']} min")


if __name__ == "__main__":
    run_command_line(main)
