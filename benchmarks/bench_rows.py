"""Training rows by id: what writing, keeping and opening them costs, compared with FlagEmbedding's format.

    python benchmarks/bench_rows.py [--queries 500000] [--words 12]

The collection is made up: each query has two passages of some random words, 2 % of the queries are dev and test ones.
Each measurement is a process of its own, whose peak memory counts all that it holds, the collection included. Written
are the rows of neg10 and neg50, audit and all, without the export; then neg10 is exported, and opened as the training
opens it, against its JSON lines read into dicts, as it was done before. Each runs on one thread, so that its CPU time
is what it takes on a machine where nothing else runs. The last line of standard output is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from inputs import ROOT, peak_gb

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.row_store import PASSAGES, read_rows, write_for_flagembedding
from embedding_finetune.files import read_jsonl
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.settings import Settings
from embedding_finetune.training.batches import TrainingSet
from embedding_finetune.training.training_data import export_path, make_training_file, training_path

PASSAGES_A_QUERY, HELD_OUT = 2, 0.01  # of the queries, for dev and for test each


def collection(queries, words):
    """A made-up Collection: so many training queries, and the held-out ones."""
    held_out = max(1, round(HELD_OUT * queries))
    parts = {f"q{number}": part for number, part in enumerate(
        part for part, size in (("train", queries), ("dev", held_out), ("test", held_out)) for _ in range(size))}
    drawn = np.random.default_rng(0).integers(0, 20_000, size=(PASSAGES_A_QUERY * len(parts), words))
    vocabulary = np.array([f"word{number}" for number in range(20_000)], dtype=object)
    corpus = {f"p{number}": f"{number} {' '.join(vocabulary[row])}" for number, row in enumerate(drawn)}
    texts = {query: f"what is {query} about" for query in parts}
    qrels = {query: {f"p{PASSAGES_A_QUERY * number + place}": 1 for place in range(PASSAGES_A_QUERY)}
             for number, query in enumerate(parts)}
    return Collection(texts, corpus, qrels, parts)


def settings_of(folder):
    """The demo's settings, with data in a folder."""
    return dataclasses.replace(Settings.load("demo"), data_dir=Path(folder), training_export=False)


def task(name, settings, label, queries, words):
    """What one process measures: {"seconds", "cpu" (seconds, too), "gb": its peak memory, "gb_before": that when the
    seconds began}."""
    recipe, made = find_recipe(settings, label), collection(queries, words) if name == "make" else None
    path, export, before = training_path(settings, recipe), export_path(settings, recipe), peak_gb()
    began, used = time.perf_counter(), time.process_time()
    if name == "make":
        make_training_file(settings, recipe, made)
    elif name == "export":
        write_for_flagembedding(export, read_rows(path), "")
    elif name == "open":
        TrainingSet(read_rows(path), base_encoder_config(settings), settings.train_group_size, seed=0)[0, 0]
    else:
        read_jsonl(export, required=("query", "pos", "neg"))
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used, "gb": peak_gb(),
            "gb_before": before}


def figures(measured, folder):
    """What `measured(name, folder, label)` finds, one task after another, and the sizes of the files in MB."""
    few, many, exported, opened, read = (measured(name, folder, label) for name, label in (
        ("make", "neg10"), ("make", "neg50"), ("export", "neg10"), ("open", "neg10"), ("read", "neg10")))
    size = {path.name: path.stat().st_size / 1e6 for path in Path(folder).iterdir()}
    print(*(f"{name:26} {megabytes:9.1f} MB" for name, megabytes in sorted(size.items())), sep="\n")
    by_id = [size[PASSAGES] + size[f"training_neg_{number}.arrow"] for number in (10, 50)]
    return {"write_seconds": few["seconds"], "write_cpu_seconds": few["cpu"], "write_gb": few["gb"],
            "collection_gb": few["gb_before"], "write_seconds_50": many["seconds"],
            "write_cpu_seconds_50": many["cpu"], "write_gb_50": many["gb"], "export_seconds": exported["seconds"],
            "mb": by_id[0], "mb_50": by_id[1], "mb_export": size["training_neg_10.json"],
            "open_seconds": opened["seconds"], "open_cpu_seconds": opened["cpu"], "open_gb": opened["gb"],
            "read_json_seconds": read["seconds"], "read_json_cpu_seconds": read["cpu"], "read_json_gb": read["gb"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--words", type=int, default=12, help="of a passage")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, folder, label = options.task
        return print(json.dumps(task(name, settings_of(folder), label, options.queries, options.words)))

    def measured(*words):
        command = [sys.executable, __file__, "--queries", str(options.queries), "--words", str(options.words), "--task"]
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{words[0]:8} {words[2]:6} {found['seconds']:7.2f} s, {found['cpu']:.2f} of the CPU; "
              f"{found['gb']:.2f} GB at the peak ({found['gb_before']:.2f} before)", flush=True)
        return found

    print(f"{options.queries:,} queries, {PASSAGES_A_QUERY * options.queries:,} passages of {options.words} words")
    with tempfile.TemporaryDirectory() as folder:
        found = figures(measured, folder)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
