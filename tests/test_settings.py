import dataclasses
import os
import re
import subprocess
import sys
import venv

import pytest

from embedding_finetune import profiles, settings
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError
from embedding_finetune.recipes import find_recipe
from embedding_finetune.settings import DATA, EVALUATION, NOTHING, ROOT, TABLE, TRAINING, Settings, split_revision
from embedding_finetune.training.arguments import TrainingSettings, read_settings, training_arguments, write_settings
from embedding_finetune.training.train import training_settings


def test_the_default_is_the_tutorials_experiment():
    settings = Settings.load()
    assert (settings.profile, settings.dataset, settings.base_model, settings.reference_model) == (
        "msmarco", "msmarco", "bert-base-uncased", "BAAI/bge-m3")
    assert (settings.train_group_size, settings.batch_size, settings.learning_rate, settings.epochs) == (8, 4, 1e-5, 3)
    assert settings.query_prompt == "Represent this sentence for searching relevant passages: "
    assert (settings.temperature, settings.query_max_len, settings.seed) == (0.02, 512, 42)
    assert settings.data_dir == ROOT / "ft_data"


def test_texts_become_values(monkeypatch):
    for name, value in (("EPOCHS", "0.5"), ("QUERY_PROMPT", ""), ("GROUP_NEAR_DUPLICATES", "no")):
        monkeypatch.setenv(name, value)
    settings = Settings.load("demo")
    assert (settings.epochs, settings.query_prompt, settings.group_near_duplicates) == (0.5, "", False)
    assert settings.max_queries == 2000 != TABLE["MAX_QUERIES"].default


@pytest.mark.parametrize("name, value, message", [
    ("EPOCHS", "three", "EPOCHS='three' is not a number"),
    ("EPOCHS", "nan", "EPOCHS='nan' is not a number"),
    ("EPOCHS", "0", "EPOCHS=0 is impossible: it must be more than 0"),
    ("BATCH_SIZE", "4.5", "BATCH_SIZE='4.5' is not a whole number"),
    ("BATCH_SIZE", "", "BATCH_SIZE='' is not a whole number"),
    ("GROUP_NEAR_DUPLICATES", "maybe", "GROUP_NEAR_DUPLICATES='maybe' is not yes or no"),
    ("TEST_FRACTION", "1", "TEST_FRACTION=1 is impossible: it must lie between 0 and 1"),
    ("TRAIN_GROUP_SIZE", "1", "TRAIN_GROUP_SIZE=1 is impossible"),
    ("SEED", "-1", "SEED=-1 is impossible"),
    ("SEED", str(2**32), "SEED=4294967296 is impossible"),
    ("BASE_POOLING", "max", "BASE_POOLING=max is impossible: it must be one of auto, cls, mean, last_token"),
    ("EXTRA_MODELS", "mean=bundled,max", "EXTRA_MODELS=.* is impossible: it must list label=model"),
    ("EXTRA_MODELS", "bundled", "EXTRA_MODELS=bundled is impossible"),
    ("EXTRA_MODELS", "raw=bundled", "EXTRA_MODELS=.* is impossible: .* with unused labels"),
    *(("EXTRA_MODELS", f"{label}=bundled", "EXTRA_MODELS=.* is impossible: .* with unused labels: a label has letters")
      for label in ("cache", "comparison", "hybrid_neg10", "late_raw", "neg10-onnx", "bge_m3", "模型", "a/b", "")),
    ("EXTRA_MODELS", "mean=", "EXTRA_MODELS=mean= is impossible"),
    ("EXTRA_MODELS", "mean=a,b,mean", "EXTRA_MODELS=mean=a,b,mean is impossible"),
    ("RETRIEVERS", "bm25 results", "RETRIEVERS=bm25 results is impossible: .* with unused labels"),
    ("RETRIEVERS", "overlap", "RETRIEVERS=overlap is impossible: it must list bm25"),
    ("PROFILE", "tutorial", "there is no profile 'tutorial': PROFILE must be one of demo, laptop, msmarco"),
])
def test_impossible_values_are_refused_by_name(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Settings.load()


@pytest.mark.parametrize("name, meant", [
    ("EPOCH", "EPOCHS"), ("EPOCHSS", "EPOCHS"), ("EPOKHS", "EPOCHS"), ("POCHS", "EPOCHS"), ("BATCHSIZE", "BATCH_SIZE"),
    ("DATASETS", "DATASET"), ("SPLITT", "SPLIT"), ("PROFIL", "PROFILE"), ("OVERWRIT", "OVERWRITE")])
def test_a_misspelled_setting_in_the_environment_is_an_error(monkeypatch, name, meant):
    """It had no effect, and nothing said so."""
    monkeypatch.setenv(name, "1")
    message = f"{name} is not a setting: did you mean {meant}? Unset {name} if another program needs it"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Settings.load("demo")


@pytest.mark.parametrize("name", [
    "SEEDS", "SEED", "SED", "GPU", "EPO", "EPOCHSXX", "XEPOCH", "POCHES", "epoch", "COLOUR", "PATH", "HOME",
    "LANGUAGE", "PAIRS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_MAX_RESTARTS", "SLURM_NNODES",
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_TOKEN", "OMP_NUM_THREADS", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"])
def test_other_names_in_the_environment_are_ignored(monkeypatch, name):
    monkeypatch.setattr(os, "environ", {name: "7", "PROFILE": "demo", "OVERWRITE": "1"})
    assert Settings.load().profile == "demo"


@pytest.mark.parametrize("content, message", [
    (b"COLOUR=red", "own.env: unknown setting COLOUR; known are DATASET, "), (b"EPOCHS=many", "'many' is not a number"),
    (b"EPOCH=3", "own.env: unknown setting EPOCH; did you mean EPOCHS.$"), (b"EPOCHS", "own.env, line 2: expected one"),
    (b"SEED=1", "own.env, line 2: expected one NAME=value, each name once"),
    (b"MAX QUERIES=3", "own.env, line 2: expected one"), (b'DATASET="open', "own.env, line 2: expected one"),
    (b"", "own.env lacks DATASET: the pairs"), (b"\xff", "own.env is not UTF-8 text")])
def test_a_broken_file_of_settings_is_named_by_file_and_line(tmp_path, monkeypatch, content, message):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "own.env").write_bytes(b"SEED=42  # comment\n" + content + b"\n")
    if content:
        monkeypatch.setenv("ENV_FILE", str(tmp_path / "profiles" / "own.env"))
        with pytest.raises(UserError, match=message):
            Settings.load("demo")
    monkeypatch.setenv("ENV_FILE", "none")
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    with pytest.raises(UserError, match="lacks DATASET" if content == b"EPOCHS=many" else message):
        Settings.load("own")


def test_each_row_of_the_table_says_what_it_is_for_and_what_a_change_invalidates():
    for name, row in TABLE.items():
        assert row.metadata["why"] and "\n" not in row.metadata["why"], name
        assert row.metadata["changes"] in (DATA, TRAINING, EVALUATION, NOTHING), name
        if row.default is not dataclasses.MISSING:
            settings._parse(name, str(row.default))  # a default that its own check refuses could never be taken
    assert set(TABLE) == set(Settings.load("demo").as_dict())
    levels = [Settings.load("demo").as_dict(level) for level in (DATA, TRAINING, EVALUATION, NOTHING)]
    assert sum(map(len, levels)) == len(TABLE) and "QUERY_PROMPT" in levels[1] and "SEED" in levels[0]


def test_each_setting_of_a_training_reaches_its_processes(built, monkeypatch, tmp_path):
    """With a value of its own each: a setting that went astray would show."""
    changed = {"TRAIN_GROUP_SIZE": 3, "BATCH_SIZE": 5, "LEARNING_RATE": 2e-4, "EPOCHS": 1.5, "WARMUP_RATIO": 0.25,
               "TEMPERATURE": 0.07, "QUERY_MAX_LEN": 33, "PASSAGE_MAX_LEN": 77, "GRAD_CACHE_CHUNK": 9,
               "LORA_RANK": 6, "LORA_ALPHA": 12.5, "DEV_STEPS": 0.3, "DEV_CORPUS_SIZE": 123, "LOGGING_STEPS": 7,
               "ARCHITECTURE": "both", "TOKEN_DIM": 11, "QUERY_EXPANSION": 13, "PATIENCE": 3, "SEED": 7,
               "DISTILLATION_LOSS": "margin", "PRECISION": "bf16", "GPUS": 2, "NNODES": 3}
    fields = {field.name.upper() for field in dataclasses.fields(TrainingSettings)}
    assert set(changed) == fields & set(TABLE) - {"MATRYOSHKA_DIMS"}
    for name, value in changed.items():
        monkeypatch.setenv(name, str(value))
    settings = Settings.load()
    recipe, collection = find_recipe(built, "neg10"), read_data(built)
    write_settings(tmp_path, training_settings(settings, recipe, settings, collection))
    training = read_settings(tmp_path)
    for name, value in changed.items():
        assert getattr(training, name.lower()) == value, name
    assert (training.encoder.query_max_len, training.encoder.passage_max_len) == (33, 77)
    args = training_arguments(training, tmp_path, dev=True)
    assert (args.per_device_train_batch_size, args.learning_rate, args.num_train_epochs) == (5, 2e-4, 1.5)
    assert (args.warmup_steps, args.eval_steps, args.logging_steps, args.bf16) == (0.25, 0.3, 7, True)


def test_a_recipe_changes_settings_of_the_training_and_no_others():
    settings = Settings.load("demo")
    tuned = settings.with_overrides({"BATCH_SIZE": 128, "LEARNING_RATE": "2e-5", "SEED": 7, "GRAD_CACHE_CHUNK": 8})
    assert (tuned.batch_size, tuned.learning_rate, tuned.seed, tuned.grad_cache_chunk) == (128, 2e-5, 7, 8)
    assert dataclasses.replace(tuned, batch_size=32, learning_rate=5e-5, seed=42, grad_cache_chunk=0) == settings
    for name in ("MAX_QUERIES", "TEST_FRACTION", "DATASET", "REFERENCE_MODEL", "DATA_DIR", "SEEDS", "COLOUR"):
        with pytest.raises(UserError, match=f"a recipe cannot change {name}, only SEED, .*BATCH_SIZE"):
            settings.with_overrides({name: 1})
    with pytest.raises(UserError, match="BATCH_SIZE=0 is impossible"):
        settings.with_overrides({"BATCH_SIZE": 0})


def test_a_revision_follows_the_name_of_the_hub_and_of_nothing_else(tmp_path, monkeypatch):
    assert split_revision("owner/name@v1") == ("owner/name", "v1") and split_revision("bert@ab12") == ("bert", "ab12")
    assert split_revision("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    for name in ("owner/name", "bundled", "", "@v1", "owner/name@", "/a/b@v1", "./b@v1", "~/b@v1", "a/b/c@v1", "a b@c"):
        assert split_revision(name) == (name, "")
    for root, other in ((tmp_path / "here", tmp_path / "there"), (tmp_path / "there", tmp_path / "here")):
        (tmp_path / "here" / "my" / "model@v1").mkdir(parents=True, exist_ok=True)
        other.mkdir(exist_ok=True)
        monkeypatch.setattr(settings, "ROOT", root)
        monkeypatch.chdir(other)
        assert split_revision("my/model@v1") == ("my/model@v1", "") and split_revision("my/model@v2")[1] == "v2"


def test_a_pinned_model_is_no_other_model(monkeypatch):
    """What the profile says of the use of its own model holds for each of its revisions."""
    monkeypatch.setenv("BASE_MODEL", "bert-base-uncased@v1")
    settings = Settings.load("msmarco")
    assert settings.of_others == () and settings.with_overrides({"BASE_MODEL": "bert-base-uncased@v2"}).of_others == ()
    replaced = settings.with_overrides({"BASE_MODEL": "roberta-base@v1"})
    assert {name for name, _ in replaced.of_others} >= {"QUERY_PROMPT"}


def test_a_notebook_shows_what_it_asks_for_and_folds_the_rest():
    shown = Settings.load("demo").show("SEED", "DATA_DIR")
    assert repr(shown).splitlines() == [f"{'PROFILE':26} demo", f"{'SEED':26} 42", f"{'DATA_DIR':26} ft_data/demo"]
    first, rest = shown._repr_html_().split("<details>")
    assert "SEED" in first and "BATCH_SIZE" not in first and "BATCH_SIZE" in rest and "transformers" in rest


def run(python, *arguments, **environment):
    return subprocess.run([python, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment})


def test_the_command_line_shows_every_setting():
    done = run(sys.executable, "-m", "embedding_finetune", "settings", PROFILE="demo", EPOCHS="7")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(TABLE) <= set(lines) and lines["EPOCHS"].split()[1] == "7.0"
    assert all(row.metadata["why"] in lines[name] for name, row in TABLE.items())
    broken = run(sys.executable, "-m", "embedding_finetune", "settings", PROFILE="demo", EPOCHS="many")
    assert broken.returncode == 1 and broken.stderr == "error: EPOCHS='many' is not a number\n"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter that has none of the packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def test_without_the_packages_one_line_says_what_to_run(bare_python):
    done = run(bare_python, "-m", "embedding_finetune", "settings")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {bare_python} has no package torch: ") and done.stderr.count("\n") == 1
    assert "make install" in done.stderr or f"{ROOT}/.venv/bin/python" in done.stderr
    imported = run(bare_python, "-c", "import embedding_finetune")
    assert imported.returncode == 1 and imported.stderr.splitlines()[-1] == f"ImportError: {done.stderr.strip()}"
