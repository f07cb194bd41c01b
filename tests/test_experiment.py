import dataclasses
import subprocess
import sys

import pytest

from embedding_finetune import experiment as module
from embedding_finetune.experiment import ROOT, Experiment
from embedding_finetune.files import ExperimentError

SETTINGS = [field.name.upper() for field in dataclasses.fields(Experiment)]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_the_default_is_the_tutorials_experiment():
    experiment = Experiment.load()
    assert (experiment.profile, experiment.dataset, experiment.base_model, experiment.reference_model) == (
        "msmarco", "msmarco", "bert-base-uncased", "BAAI/bge-m3")
    assert (experiment.train_group_size, experiment.batch_size, experiment.learning_rate, experiment.epochs) == (8, 4, 1e-5, 3)
    assert experiment.query_instruction == "Represent this sentence for searching relevant passages: "
    assert (experiment.temperature, experiment.query_max_len, experiment.seed) == (0.02, 512, 42)
    assert experiment.data_dir == ROOT / "ft_data"


def test_the_environment_wins_over_the_profile(monkeypatch):
    monkeypatch.setenv("PROFILE", "demo")
    monkeypatch.setenv("EPOCHS", "0.5")
    monkeypatch.setenv("QUERY_INSTRUCTION", "")
    experiment = Experiment.load()
    assert (experiment.dataset, experiment.epochs, experiment.query_instruction) == ("docstrings", 0.5, "")


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("PROFILE", "msmarco")
    assert Experiment.load("demo").profile == "demo"


@pytest.mark.parametrize("name, value, message", [
    ("EPOCHS", "three", "EPOCHS='three' is not a number"),
    ("EPOCHS", "nan", "EPOCHS='nan' is not a number"),
    ("BATCH_SIZE", "4.5", "BATCH_SIZE='4.5' is not a whole number"),
    ("TEST_FRACTION", "1", "TEST_FRACTION=1.0 is impossible"),
    ("TRAIN_GROUP_SIZE", "1", "TRAIN_GROUP_SIZE=1 is impossible"),
    ("BASE_POOLING", "max", "BASE_POOLING=max is impossible: it must be cls or mean"),
    ("DATASET", "", "DATASET= is impossible"),
    ("EXTRA_MODELS", "mean=bundled", "EXTRA_MODELS=mean=bundled is impossible: it must list label=model,pooling"),
    ("PROFILE", "tutorial", "there is no profile 'tutorial': PROFILE must be one of demo, msmarco"),
])
def test_impossible_values_are_refused_by_name(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ExperimentError, match=message):
        Experiment.load()


@pytest.mark.parametrize("line, message", [
    ("COLOUR=red", "own.env: unknown setting COLOUR"),
    ("SEED=1", "own.env, line 2: expected one new NAME=value"),
    ("MAX PAIRS=3", "own.env, line 2: expected one new NAME=value"),
    ("", "own.env lacks DATASET"),
])
def test_a_broken_profile_is_named_by_file_and_line(tmp_path, monkeypatch, line, message):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "own.env").write_text(f"SEED=42  # comment\n{line}\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(ExperimentError, match=message):
        Experiment.load("own")


def test_every_model_is_used_as_it_was_trained(monkeypatch):
    experiment = Experiment.load("demo")
    raw, tuned, reference = map(experiment.model, ("raw", "neg10", "reference"))
    assert raw.name == reference.name and (raw.pooling, reference.pooling) == ("cls", "mean")
    assert tuned == dataclasses.replace(raw, label="neg10", title="output/demo/neg10", name=str(ROOT / "output/demo/neg10"),
                                        seen=f"{raw.seen}; fine-tuned on this data set's training part")
    assert "MS MARCO" in raw.seen and Experiment.load("msmarco").model("reference").seen.startswith("trained for retrieval on MS MARCO")
    assert raw.title == reference.title == "bundled"
    assert reference.query_instruction == "" and raw.query_instruction.startswith("Represent")


def test_extra_models_are_used_like_the_reference(monkeypatch):
    monkeypatch.setenv("EXTRA_MODELS", "mean=bundled,mean e5=intfloat/e5-base,mean")
    experiment = Experiment.load("demo")
    assert experiment.model("mean") == dataclasses.replace(experiment.model("reference"), label="mean")
    assert (experiment.model("e5").name, experiment.model("e5").pooling, experiment.model("e5").seen) == ("intfloat/e5-base", "mean", "unknown")


def test_a_folder_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", str(tmp_path))
    with pytest.raises(ExperimentError, match="is no model folder"):
        Experiment.load("demo").model("raw")


def test_the_shell_gets_the_same_values():
    exported = subprocess.run([sys.executable, "-m", "embedding_finetune.experiment", "--export"], cwd=ROOT, capture_output=True,
                              text=True, check=True, env={"PROFILE": "demo", "PATH": ""}).stdout
    script = f'{exported}\nprintf "%s|%s|%s" "$QUERY_INSTRUCTION" "$LEARNING_RATE" "$DATA_DIR"'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "Represent this sentence for searching relevant passages: |5e-05|ft_data/demo"
