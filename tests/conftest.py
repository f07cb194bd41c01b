"""What the tests share: an experiment on tiny pairs and a tiny model, in a folder of its own."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ["ENV_FILE"] = "none"  # the settings in .env are the user's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are quicker on one thread, and the tests run side by side

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from tiny import build, tiny_bert, tiny_pairs, tiny_texts  # noqa: E402
from tiny_training import training_folder  # noqa: E402

from embedding_finetune.settings import TABLE, Settings  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

# The files that take longest, which begin first, so that no process waits for another's last file.
LONGEST = ("test_pipeline.py", "test_docs_notebooks.py", "test_worker.py", "test_hub.py", "test_inputs.py",
           "test_train.py", "test_server.py", "test_report_page.py", "test_faults.py", "test_bench.py",
           "test_export.py", "test_ann.py", "test_architectures.py")

for name in ("PROFILE", "OVERWRITE", *TABLE):  # what is set outside is no setting of a test
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [*LONGEST, item.path.name].index(item.path.name))


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """Environment variables of an experiment on 120 rows and a random BERT; DATA_DIR and OUTPUT_DIR are still empty."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = tiny_pairs(120)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(tiny_bert(folder / "model", tiny_texts(rows)))
    return {"PROFILE": "demo", "DATASET": str(folder / "pairs.jsonl"), "DATA_DIR": str(folder / "data"),
            "OUTPUT_DIR": str(folder / "output"), "BASE_MODEL": model, "REFERENCE_MODEL": model,
            "REFERENCE_POOLING": "mean", "OUT_OF_DOMAIN_SETS": "", "BATCH_SIZE": "4", "LOGGING_STEPS": "2",
            "LEARNING_RATE": "1e-3"}


@pytest.fixture
def settings(tiny_settings, tmp_path, monkeypatch):
    """The tiny experiment with folders that no other test writes to, in the environment, too."""
    folders = {"DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "output")}
    for name, value in (tiny_settings | folders).items():
        monkeypatch.setenv(name, value)
    return Settings.load()


@pytest.fixture(scope="session")
def built_once(tiny_settings, tmp_path_factory):
    """The folder of the tiny experiment's data, built once, which no other test writes to."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (tiny_settings | {"DATA_DIR": str(tmp_path_factory.mktemp("built") / "data")}).items():
            patch.setenv(name, value)
        settings = Settings.load()
        build(settings)
    return settings.data_dir


@pytest.fixture
def built(settings, built_once):
    """`settings` with the collection, the test files and the training files of neg10 and neg50 in DATA_DIR."""
    shutil.copytree(built_once, settings.data_dir)
    return settings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with small models, training files and a collection, see tiny_training.training_folder."""
    return training_folder(tmp_path_factory.mktemp("training"))


@pytest.fixture
def unchecked(monkeypatch):
    """Exports in this process without their parity check, which takes a second and has tests of its own."""
    monkeypatch.setattr("embedding_finetune.training.export.check_parity", lambda *args: 1.0)


@pytest.fixture(scope="module")
def browser():
    """A Chromium; without one the tests that want it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser found (chromium, chromium-browser or google-chrome)")
    with playwright.sync_playwright() as driver:
        with driver.chromium.launch(executable_path=executable, args=FLAGS) as chromium:
            yield chromium
