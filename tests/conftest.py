"""What the tests share: an experiment on tiny pairs and a tiny model, in a folder of its own."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from tiny import tiny_bert, tiny_pairs, tiny_texts  # noqa: E402

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
