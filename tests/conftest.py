"""What the tests share: an experiment on tiny pairs and a tiny model, in a folder of its own."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from tiny import tiny_bert, tiny_pairs, tiny_texts  # noqa: E402
from tiny_training import passages, trainable_bert, training_rows, write_rows  # noqa: E402

from embedding_finetune.experiment import Experiment  # noqa: E402


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """Environment variables of an experiment on 120 rows and a random BERT; DATA_DIR and OUTPUT_DIR are still empty."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = tiny_pairs(120)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(tiny_bert(folder / "model", tiny_texts(rows)))
    return {"PROFILE": "demo", "DATASET": str(folder / "pairs.jsonl"), "DATA_DIR": str(folder / "data"), "OUTPUT_DIR": str(folder / "output"),
            "BASE_MODEL": model, "REFERENCE_MODEL": model, "BATCH_SIZE": "4", "LOGGING_STEPS": "2", "LEARNING_RATE": "1e-3"}


@pytest.fixture
def experiment(tiny_settings, tmp_path, monkeypatch):
    """The tiny experiment with folders that no other test writes to."""
    for name, value in {**tiny_settings, "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "output")}.items():
        monkeypatch.setenv(name, value)
    return Experiment.load()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with the models `bert` and `bert_dropout`, and `train.json`, `train_scores.json`, `dev.json`, `corpus.jsonl`."""
    folder = tmp_path_factory.mktemp("training")
    trainable_bert(folder / "bert")
    trainable_bert(folder / "bert_dropout", dropout=0.1)
    rows = training_rows()
    write_rows(folder / "train.json", rows)
    write_rows(folder / "train_scores.json", training_rows(scores=True))
    write_rows(folder / "dev.json", [{key: row[key] for key in ("query", "pos", "prompt", "id")} for row in rows[:20]])
    write_rows(folder / "corpus.jsonl", [{"id": str(number), "text": text} for number, text in enumerate(passages(200))])
    return folder
