import dataclasses
import json

import pytest
import torch

from embedding_finetune import finetune
from embedding_finetune.files import ExperimentError, write_jsonl
from embedding_finetune.training_files import training_path, write_pairs

ROW = {"query": "a", "pos": ["x"], "neg": ["y"]}


@pytest.fixture
def ready(experiment):
    write_jsonl(training_path(experiment, "neg10"), [ROW])
    return experiment


def trained(experiment):
    """The finished folder of a training that took no time."""
    _, _, folder, *_ = finetune.prepare(experiment, "neg10")
    (folder / "model.safetensors").write_text("weights")
    return finetune.finish(experiment, "neg10")


def test_preparing_names_base_model_precision_and_folder(ready, monkeypatch):
    flag = finetune.precision()
    file = ready.data_dir / "training_neg_10.json"
    assert finetune.prepare(ready, "neg10") == (ready.base_model, flag, ready.output_dir / "neg10.partial", file, 42)
    assert finetune.prepare(ready, "neg10_seed43") == (ready.base_model, flag, ready.output_dir / "neg10_seed43.partial", file, 43)
    monkeypatch.setenv("TRAINER", "flagembedding")  # never mixes its files with checkpoints to be continued
    assert finetune.prepare(ready, "neg10")[2] == ready.output_dir / "neg10.flagembedding.partial"


def test_the_precision_is_what_was_asked_for():
    cpu = "" if torch.cuda.is_available() else "--use_cpu True"
    assert finetune.precision("fp32") == cpu
    assert finetune.precision("bf16") == f"{cpu} --bf16 True".strip()
    assert finetune.precision("auto") in (cpu, f"{cpu} --bf16 True".strip(), "--fp16 True")


def test_a_finished_model_is_not_written_over(ready, monkeypatch):
    folder = trained(ready)
    with pytest.raises(ExperimentError, match="holds a finished model; OVERWRITE=1 moves it aside"):
        finetune.prepare(ready, "neg10")
    monkeypatch.setenv("OVERWRITE", "1")
    finetune.prepare(ready, "neg10")
    aside = [path for path in ready.output_dir.iterdir() if path.name.startswith("neg10.2")]
    assert not folder.exists() and len(aside) == 1 and (aside[0] / "training.json").exists()


def test_what_cannot_be_trained_is_refused_before_the_old_model_moves(ready, monkeypatch):
    folder = trained(ready)
    monkeypatch.setenv("OVERWRITE", "1")
    write_jsonl(training_path(ready, "neg10"), [{**ROW, "neg": []}])
    with pytest.raises(ExperimentError, match="row 1: 'neg' must be"):
        finetune.prepare(ready, "neg10")
    write_jsonl(training_path(ready, "neg10"), [ROW])
    with pytest.raises(ExperimentError, match="passage_max_len is 600, but .* has only 512 positions"):
        finetune.prepare(dataclasses.replace(ready, passage_max_len=600), "neg10")
    assert folder.exists()


def test_data_of_another_instruction_are_not_trained_on(ready):
    """Queries would be trained with one instruction and evaluated with another."""
    write_pairs(ready, [{"id": "1", "query": "a", "pos": ["x"]}], ["train"])
    finetune.prepare(ready, "neg10")
    with pytest.raises(ExperimentError, match="QUERY_INSTRUCTION=.*, now look up: "):
        finetune.prepare(dataclasses.replace(ready, query_instruction="look up: "), "neg10")


def test_an_interrupted_training_is_only_continued_as_it_was_begun(ready, monkeypatch):
    _, _, folder, *_ = finetune.prepare(ready, "neg10")
    finetune.prepare(ready, "neg10")
    with pytest.raises(ExperimentError, match="neg10.partial holds an interrupted training with other settings"):
        finetune.prepare(dataclasses.replace(ready, epochs=2.0), "neg10")
    write_jsonl(training_path(ready, "neg10"), [ROW, ROW])
    with pytest.raises(ExperimentError, match="or another training file"):
        finetune.prepare(ready, "neg10")
    monkeypatch.setenv("TRAINER", "flagembedding")
    finetune.prepare(ready, "neg10")
    assert (folder / "training.json").exists()


def test_data_that_changed_during_the_training_makes_the_model_stale(ready):
    _, _, folder, *_ = finetune.prepare(ready, "neg10")
    (folder / "model.safetensors").write_text("weights")
    write_jsonl(training_path(ready, "neg10"), [ROW, ROW])
    finetune.finish(ready, "neg10")
    with pytest.raises(ExperimentError, match="was trained from another training_neg_10.json"):
        finetune.check_trained(ready, "neg10")


def test_a_training_that_left_no_model_is_not_finished(ready):
    with pytest.raises(ExperimentError, match="neg10.partial holds no model"):
        finetune.finish(ready, "neg10")


def test_a_model_is_current_as_long_as_file_and_settings_are(ready):
    trained(ready)
    assert finetune.is_current(ready, "neg10") and not finetune.is_current(ready, "neg50")
    assert not finetune.is_current(dataclasses.replace(ready, epochs=2.0), "neg10")
    write_jsonl(training_path(ready, "neg10"), [ROW, ROW])
    assert not finetune.is_current(ready, "neg10")


def test_only_a_model_of_this_split_is_evaluated(ready):
    finetune.check_trained(ready, "raw")
    with pytest.raises(ExperimentError, match="neg10 holds no finished model: run `bash finetune_neg10.sh` first"):
        finetune.check_trained(ready, "neg10")
    with pytest.raises(ExperimentError, match="run `bash embedding_finetune/finetune.sh neg10_seed43` first"):
        finetune.check_trained(ready, "neg10_seed43")
    folder = trained(ready)
    finetune.check_trained(ready, "neg10")
    write_jsonl(training_path(ready, "neg10"), [ROW, ROW])
    with pytest.raises(ExperimentError, match="was trained from another training_neg_10.json, which may hold today's test queries"):
        finetune.check_trained(ready, "neg10")
    assert json.loads((folder / "training.json").read_text())["settings"]["SEED"] == 42
