"""What do pseudo-pairs buy? The demo's docstrings, with every first paragraph hidden from the training.

    make demo                                 first: the data, and the runs to compare with
    python docs/pseudo_pairs.py [--seeds 3]   trains on spans of the same passages, writes docs/pseudo_pairs.json

The test queries are the demo's, and so are the corpus, the training passages, the settings and the number of steps; the
training and dev queries are spans of their passages. docs/your_data.md says what came out.
"""

import argparse
import dataclasses
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from embedding_finetune.data.collection import read_data, write_data
from embedding_finetune.data.documents.chunker import random_span
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.evaluation import metrics, results, significance, tables
from embedding_finetune.evaluation.evaluate import evaluate_retriever
from embedding_finetune.files import run_command_line, write_json
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import Settings
from embedding_finetune.training import batches
from embedding_finetune.training.train import finetune
from embedding_finetune.training.training_data import make_training_file

OUTPUT, RESULT = ROOT / "output" / "pseudo_pairs", ROOT / "docs" / "pseudo_pairs.json"
DEMO = {"bm25": "bm25", "raw": "raw", "real pairs": "neg10", "raw, mean": "reference"}  # row -> label in the demo
MEAN = {"BASE_POOLING": "mean", "QUERY_PROMPT": ""}  # as the base model was made, where the demo's raw one is not
WAYS = {  # row -> on spans?, how often a span is taken out of its passage in training, settings
    "spans": (True, batches.QUERY_REMOVAL_RATE, {}),
    "spans, mean": (True, batches.QUERY_REMOVAL_RATE, MEAN),
    "real pairs, mean": (False, batches.QUERY_REMOVAL_RATE, MEAN),
    "spans in sight": (True, 0.0, {}),
}
PLANNED = [("spans", "raw"), ("spans", "real pairs"), ("spans", "bm25"), ("spans", "spans in sight"),
           ("spans, mean", "raw, mean"), ("spans, mean", "real pairs, mean")]


def with_spans(collection, seed):
    """The collection with a span of its passage in the place of each training and dev query; the test part stays."""
    queries, qrels, parts = {}, {}, {}
    for query, part in collection.splits.items():
        text, judged = collection.queries[query], collection.qrels[query]
        if part != "test":
            [passage, *_] = collection.positives(query)
            text = random_span(collection.corpus[passage], random.Random(f"{seed} {passage}"))
            query, judged = f"{PSEUDO_QUERY_PREFIX}span-{passage}", {passage: 1}
        if text:
            queries[query], qrels[query], parts[query] = text, judged, part
    return dataclasses.replace(collection, queries=queries, qrels=qrels, splits=parts)


def train_and_measure(demo, row, seed):
    """Each test query's metrics after the training of a row of WAYS; what is finished is not done again."""
    (on_spans, hidden, changed), folder = WAYS[row], OUTPUT / f"{row.replace(', ', '_').replace(' ', '_')}_{seed}"
    os.environ.update(changed | {"SEED": str(seed), "OUTPUT_DIR": str(folder), "DATA_DIR": str(folder / "data")})
    settings, collection = Settings.load("demo"), with_spans(demo, seed) if on_spans else demo
    for name in changed:
        del os.environ[name]
    if not (folder / "results" / "neg10.json").exists():
        write_data(settings, collection, {"queries": row})
        make_training_file(settings, find_recipe(settings, "neg10"), collection)
        batches.QUERY_REMOVAL_RATE = hidden
        if not (folder / "neg10").exists():
            finetune(settings, "neg10", one_process=True)  # in this process, where QUERY_REMOVAL_RATE is set
        evaluate_retriever(settings, collection, System("neg10"))
    return metrics.per_query(demo.split("test").qrels, results.read_measured_run(settings, demo, "neg10"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=list(WAYS), choices=WAYS)
    options, settings = parser.parse_args(), Settings.load("demo")
    seeds = range(42, 42 + options.seeds)
    demo = read_data(settings)
    test = demo.split("test")
    frames = {row: metrics.per_query(test.qrels, results.read_measured_run(settings, demo, label))
              for row, label in DEMO.items()}
    frames |= {row: sum(train_and_measure(demo, row, seed) for seed in seeds) / len(seeds) for row in options.rows}
    rows = [{"label": row, "queries": len(test.queries), "corpus": len(test.corpus),
             "seeds": len(seeds) * (row in WAYS), "metrics": metrics.mean(frame)} for row, frame in frames.items()]
    planned = [pair for pair in PLANNED if set(pair) <= set(frames)]
    rows = significance.add_significance(rows, frames, planned, seed=settings.seed)
    write_json(RESULT, rows)
    for table in (tables.comparison_table(rows), tables.planned_table(rows).set_index("pair")):
        print(table.to_markdown(disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    run_command_line(main)
