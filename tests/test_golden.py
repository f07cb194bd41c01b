"""Numbers that must not move: the tiny experiment, seeded, in float32 on one thread, from its pairs to its metrics.

A change that moves them has to say why, and writes them anew: WRITE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from finished import evaluate

from embedding_finetune.files import read_json, write_json
from embedding_finetune.finetune import finetune
from embedding_finetune.settings import Settings
from embedding_finetune.training.log import read_log

GOLDEN = Path(__file__).with_name("golden.json")
FILES = ("corpus.jsonl", "queries.jsonl", "eval_dataset.json", "qrels.trec", "qrels/train.tsv", "qrels/dev.tsv",
         "qrels/test.tsv", "training_neg_10.json", "training_neg_50.json")
LOSSES, LABELS = 20, ("bm25", "raw", "neg10")


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(settings):
    """What the experiment gives: the bytes of its data, the first losses, the dev curve, and the metrics."""
    arguments = sys.argv[:]
    finetune(settings, "neg10", one_process=True)
    sys.argv = arguments
    log = read_log(settings.output_dir / "neg10")
    evaluate(settings, *LABELS)
    results = {label: read_json(settings.output_dir / "results" / f"{label}.json") for label in LABELS}
    return {
        "sha256": {name: hashlib.sha256((settings.data_dir / name).read_bytes()).hexdigest() for name in FILES},
        "losses": [row["loss"] for row in log if "loss" in row][:LOSSES],
        "dev": [row["mrr@10"] for row in log if "mrr@10" in row],
        "metrics": {label: result["metrics"] for label, result in results.items()}}


def test_the_golden_run(built, one_thread, monkeypatch):
    changes = {"BASE_POOLING": "mean", "LEARNING_RATE": "2e-4", "EPOCHS": "4", "PRECISION": "fp32"}
    for name, value in (changes | {"LOGGING_STEPS": "1"}).items():
        monkeypatch.setenv(name, value)
    found = measured(Settings.load())
    if os.environ.get("WRITE_GOLDEN"):
        write_json(GOLDEN, found)
    golden = read_json(GOLDEN)
    assert found["sha256"] == golden["sha256"]
    assert len(found["losses"]) == LOSSES and found["losses"] == pytest.approx(golden["losses"], rel=1e-3)
    assert found["dev"] == pytest.approx(golden["dev"], abs=0.06)  # other kernels may swap close passages
    assert found["metrics"]["bm25"] == golden["metrics"]["bm25"]
    for label in ("raw", "neg10"):
        assert found["metrics"][label] == pytest.approx(golden["metrics"][label], abs=0.06)  # one query of nineteen
