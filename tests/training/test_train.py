"""From a recipe to the finished model: what is checked first, what is said, and what a killed process leaves behind."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainDataset
from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerDataArguments,
    AbsRerankerModelArguments,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderTrainingArguments,
)
from forked import command, debugged, forked, run_forked
from safetensors.torch import load_file
from tiny import tiny_bert, tiny_pairs, tiny_texts
from tiny_training import changed_rows
from transformers import AutoTokenizer, HfArgumentParser

from embedding_finetune.artifacts.manifest import read_checksummed, verify_manifest, write_checksummed
from embedding_finetune.artifacts.staging import complete_checkpoints
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError, read_jsonl, run_command_line
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.settings import ROOT, Settings
from embedding_finetune.training import plan
from embedding_finetune.training import train as finetuning
from embedding_finetune.training.arguments import read_settings, stock_flags, training_arguments
from embedding_finetune.training.log import read_log
from embedding_finetune.training.provenance import RECORD, is_current, read_record, training_record
from embedding_finetune.training.train import training_settings

NEG10, EXPORT = "training_neg_10.arrow", "training_neg_10.json"


def prepare(settings, label="neg10"):
    return finetuning.prepare(settings, find_recipe(settings, label))


def resolved(settings, label="neg10"):
    """The TrainingSettings of a label."""
    recipe = find_recipe(settings, label)
    return training_settings(settings, recipe, settings.with_overrides(recipe.settings), read_data(settings))


@pytest.fixture(autouse=True)
def without_preflight(monkeypatch):
    """It takes seconds, and has tests of its own."""
    monkeypatch.setattr(finetuning, "preflight", lambda training, output: None)


@pytest.fixture
def untrained(monkeypatch):
    """A training that takes no time: the weights are there at once. Lists what was launched."""
    launched = []

    def launch(settings, label, module, arguments, one_process):
        [folder] = arguments
        launched.append((module, read_settings(folder)))
        (Path(folder) / "model.safetensors").write_text("weights")

    monkeypatch.setattr(finetuning, "launch", launch)
    return launched


# -- before the training --

def test_the_processes_are_told_what_settings_model_recipe_and_machine_say(built):
    training = resolved(built)
    assert training.encoder.identity == base_encoder_config(built).identity
    assert (training.encoder.name, training.data) == (built.base_model, str(built.data_dir))
    assert training.training_file == str(built.data_dir / NEG10) and not training.teacher
    training = resolved(dataclasses.replace(built, gpus=2, seeds=2, matryoshka_dims="16 8"), "neg10_seed43")
    assert (training.seed, training.processes, training.matryoshka_dims) == (43, 2, (64, 16, 8))
    assert resolved(built, "hard_kd").teacher


EMBEDDER = (EncoderOnlyEmbedderModelArguments, EncoderOnlyEmbedderDataArguments, EncoderOnlyEmbedderTrainingArguments)
RERANKER = AbsRerankerModelArguments, AbsRerankerDataArguments, AbsRerankerTrainingArguments


@pytest.mark.parametrize("label, changes, kinds", [
    ("neg10", {}, EMBEDDER), ("hard_kd", {}, EMBEDDER), ("reranker", {}, RERANKER),
    ("neg10", {"passage_prompt": "text: ", "matryoshka_dims": "16 8", "precision": "bf16", "temperature": 0.05,
               "base_pooling": "mean", "gpus": 2}, EMBEDDER)])
def test_flagembedding_reads_the_flags_as_they_are_meant(built, label, changes, kinds):
    """With its own parser; its arguments are those of our trainer, and a base may be given as a folder."""
    training = resolved(dataclasses.replace(built, **changes), label)
    words = stock_flags(training, built.output_dir / "x", built.data_dir / EXPORT)
    assert stock_flags(training, "x", "y", "a folder")[:2] == ["--model_name_or_path", "a folder"]
    model, data, args = HfArgumentParser(kinds).parse_args_into_dataclasses(words)
    encoder = training.encoder
    assert model.model_name_or_path == built.base_model and data.train_data == [str(built.data_dir / EXPORT)]
    assert data.knowledge_distillation is training.teacher and data.train_group_size == training.train_group_size
    assert (data.query_max_len, data.passage_max_len) == (encoder.query_max_len, encoder.passage_max_len)
    if kinds is EMBEDDER:
        assert data.query_instruction_for_retrieval == encoder.query_prompt
        assert data.passage_instruction_for_retrieval == (encoder.passage_prompt or None)
        assert (args.sentence_pooling_method, args.temperature) == (encoder.pooling, training.temperature)
        assert args.normalize_embeddings and args.negatives_cross_device is (training.gpus == 2)
        assert args.use_mrl is bool(args.mrl_dims) and tuple(args.mrl_dims or ()) == training.matryoshka_dims
        assert args.kd_loss_type == "kl_div"
    else:
        assert data.max_len == encoder.query_max_len + encoder.passage_max_len
    theirs, ours = args.to_dict(), training_arguments(training, built.output_dir / "x").to_dict()
    differ = {name for name, value in ours.items() if value != theirs[name]}
    assert differ <= {"save_strategy", "save_steps", "log_level_replica"}


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(built, monkeypatch, capsys):
    before = sorted(built.output_dir.parent.rglob("*"))
    said = []
    for words in (["neg10", "--dry-run"], ["--dry-run", "neg10"], ["--default", "neg10", "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["train", *words])
        finetuning.main()
        said.append(capsys.readouterr().out)
    output, *others = said
    assert others == [output] * 2
    folder = built.output_dir / "neg10.partial"
    assert output.startswith("equivalent command: torchrun --standalone --nproc_per_node 1 -m "
                             f"embedding_finetune.training.worker {folder}\n")
    assert "training queries, " in output and "precision fp32" in output and "dev evaluation before training" in output
    assert "-m FlagEmbedding.finetune.embedder.encoder_only.base" in output
    assert f"    --train_data {built.data_dir / EXPORT} " in output
    assert sorted(built.output_dir.parent.rglob("*")) == before
    finetuning.dry_run(dataclasses.replace(built, lora_rank=4), "neg10")
    assert "FlagEmbedding's own trainer has no LoRA: there is no equivalent command" in capsys.readouterr().out


def test_a_started_training_keeps_its_settings(built, tmp_path):
    """On several nodes, the first one writes them for all; on one, a running training keeps others from writing."""
    nodes = dataclasses.replace(built, nnodes=2, rdzv_endpoint="localhost:1")
    _, folder = prepare(nodes)
    prepare(dataclasses.replace(nodes, logging_steps=7))
    assert read_settings(folder).logging_steps == built.logging_steps
    shutil.rmtree(folder)
    prepare(built)
    prepare(dataclasses.replace(built, logging_steps=7))
    assert read_settings(folder).logging_steps == 7


@pytest.mark.parametrize("gpu, has, wanted, used, notice", [
    (False, True, "auto", "fp32", False), (False, False, "fp32", "fp32", False), (False, True, "bf16", "bf16", False),
    (False, False, "bf16", "bf16", True), (True, True, "auto", "bf16", False), (True, False, "auto", "fp16", False)])
def test_the_precision_is_said_and_does_not_depend_on_the_processor(
        built, untrained, monkeypatch, capsys, gpu, has, wanted, used, notice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has})
    finetuning.finetune(dataclasses.replace(built, precision=wanted), "neg10")
    output = capsys.readouterr().out
    assert f"  precision {used}, learning rate" in output and ("no GPU found" in output) is not gpu
    assert ("this CPU only emulates bf16: PRECISION=fp32 is faster\n" in output) is notice
    [(_, training)] = untrained
    assert (training.precision, training.cpu) == (used, not gpu)


def test_a_finished_model_is_moved_aside_only_when_told_so(built, untrained, monkeypatch, capsys):
    folder = finetuning.finetune(built, "neg10")
    assert folder == built.output_dir / "neg10" and (folder / RECORD).exists()
    with pytest.raises(UserError, match="neg10 holds a finished model; OVERWRITE=1 moves it aside and trains again"):
        finetuning.finetune(built, "neg10")
    assert len(untrained) == 1
    (folder / "model.safetensors").write_text("old weights")
    monkeypatch.setenv("OVERWRITE", "1")
    finetuning.finetune(built, "neg10")
    [aside] = [path for path in built.output_dir.iterdir() if path.name.startswith("neg10.2")]
    assert (aside / "model.safetensors").read_text() == "old weights" and len(untrained) == 2
    assert (folder / "model.safetensors").read_text() == "weights"
    assert f"moved the old model to {aside}\n" in capsys.readouterr().out
    (built.output_dir / "neg50" / "another experiment").mkdir(parents=True)  # such as `output/demo` beside the models
    with pytest.raises(UserError, match="neg50 holds something else than a model .*: move it away"):
        finetuning.finetune(built, "neg50")


@pytest.mark.parametrize("label, changes, message", [
    ("neg10", {"passage_max_len": 600}, "passage_max_len is 600, but .* has only 512 positions"),
    ("neg10", {"seed": 7}, "was made with other settings"),
    ("neg10", {"base_model": "/no/model"}, "is not a model folder"),
    *(("neg10", changes, "QUERY_EXPANSION=.* needs ARCHITECTURE=multi_vector") for changes in (
        {"query_expansion": 9}, {"query_expansion": 9, "architecture": "both"},
        {"query_expansion": 300, "architecture": "multi_vector"})),
    *(("neg10", changes, "MATRYOSHKA_DIMS=.* needs .* below the 64 dimensions") for changes in (
        {"matryoshka_dims": "64 8"}, {"matryoshka_dims": "8", "architecture": "both"})),
    ("neg10", {"nnodes": 2}, "NNODES=2 needs RDZV_ENDPOINT=HOST:PORT"),
    *((label, {"trainer": "flagembedding", **changes}, f"FlagEmbedding's trainer has no {what}")
      for label, changes, what in (
          ("neg10", {"nnodes": 2, "rdzv_endpoint": "node:1"}, "several nodes"),
          ("neg10", {"max_restarts": 1}, "restart"),
          ("hard_kd", {"distillation_loss": "margin"}, "margin distillation"), ("reranker", {}, "reranker"))),
    ("reranker", {"lora_rank": 4}, "reranker: LORA_RANK, .* are not supported for rerankers"),
])
def test_what_cannot_be_trained_is_refused_before_the_old_model_moves(
        built, untrained, monkeypatch, label, changes, message):
    folder = finetuning.finetune(built, "neg10")
    monkeypatch.setenv("OVERWRITE", "1")
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(built, **changes), label)
    assert folder.exists() and len(untrained) == 1


def test_an_interrupted_training_is_only_continued_as_it_was_begun(built, tmp_path, monkeypatch, capsys):
    _, folder = prepare(built)
    assert folder == built.output_dir / "neg10.partial"
    for same in ({"grad_cache_chunk": 8}, {"logging_steps": 1}):
        prepare(dataclasses.replace(built, **same))
    (tmp_path / "recipes.toml").write_text(f'[neg10]\nnumber = 12\nfile = "{EXPORT}"\n')
    for other in ({"batch_size": 8}, {"epochs": 2.0}, {"gpus": 2}, {"dev_steps": 0.5},
                  {"recipe_file": tmp_path / "recipes.toml"}):
        with pytest.raises(UserError, match="neg10.partial holds an interrupted training with other settings or "
                                            "another training file"):
            prepare(dataclasses.replace(built, **other))
    prepare(built)  # the training file that the other recipe has replaced is made again
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir()
    monkeypatch.setenv("OVERWRITE", "1")
    prepare(built)
    assert checkpoint.exists()  # the same training is continued
    prepare(dataclasses.replace(built, epochs=2.0))
    assert not checkpoint.exists() and read_settings(folder).epochs == 2.0
    assert "other settings or another training file: removed (OVERWRITE=1)" in capsys.readouterr().out


def test_flagembeddings_trainer_has_a_folder_of_its_own_and_begins_anew(built):
    _, ours = prepare(built)
    settings = dataclasses.replace(built, trainer="flagembedding")
    _, folder = prepare(settings)
    assert folder == built.output_dir / "neg10.flagembedding.partial" and (ours / RECORD).exists()
    (folder / "half a model").touch()
    prepare(dataclasses.replace(settings, epochs=2.0))
    assert not (folder / "half a model").exists()


def test_a_training_needs_weights_to_be_finished_and_its_data_to_stay_to_be_current(built, untrained, monkeypatch):
    launch = finetuning.launch

    def change_and_launch(*args):
        changed_rows(built.data_dir / NEG10, lambda rows: rows[1:])
        launch(*args)

    monkeypatch.setattr(finetuning, "launch", lambda *args: None)
    with pytest.raises(UserError, match="neg10.partial holds no model: training did not finish"):
        finetuning.finetune(built, "neg10")
    assert not (built.output_dir / "neg10").exists()
    monkeypatch.setattr(finetuning, "launch", change_and_launch)
    finetuning.finetune(built, "neg10")
    assert not is_current(built, find_recipe(built, "neg10"))


def test_a_model_that_only_lacks_its_name_is_not_trained_again(built, untrained):
    _, unfinished = prepare(built)
    (unfinished / "model.safetensors").write_text("done")
    (unfinished / ".lock").touch()
    (unfinished / "checkpoint-3").mkdir()  # it was stopped while it removed them
    folder = finetuning.finetune(built, "neg10")
    assert (folder / "model.safetensors").read_text() == "done" and not untrained
    assert not unfinished.exists() and not (folder / ".lock").exists() and not (folder / "checkpoint-3").exists()
    assert verify_manifest(folder) is None
    write_checksummed(folder / RECORD, read_checksummed(folder / RECORD) | {"label": "neg50"})  # another recipe's
    assert verify_manifest(folder) == RECORD


def test_the_log_begins_with_recipe_file_flags_and_the_time_it_takes(built, untrained, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finetuning.finetune(built, "neg10")
    output = capsys.readouterr().out
    assert output.startswith("fine-tuning neg10 (10 random negatives a query): profile demo, data ")
    assert f"{built.data_dir / NEG10}: negatives 100.0% random\n" in output
    assert f"torchrun --standalone --nproc_per_node 1 -m {untrained[0][0]} {built.output_dir}" in output
    assert "no GPU found: training takes roughly 0 min " in output and "PROFILE=demo" not in output
    finetuning.finetune(dataclasses.replace(built, profile="msmarco"), "neg50")
    assert "; PROFILE=demo takes minutes\n" in capsys.readouterr().out


@pytest.mark.parametrize("queries, changes, expected", [
    (5, {}, 4), (4, {}, 4), (3, {}, 3), (1, {}, 1), (9, {"gpus": 2}, 4), (7, {"gpus": 2}, 3), (7, {"nnodes": 4}, 1)])
def test_a_batch_is_no_larger_than_the_training_queries(settings, capsys, queries, changes, expected):
    recipe, settings = find_recipe(settings, "neg10"), dataclasses.replace(settings, batch_size=4, **changes)
    assert finetuning.fit_batch(settings, recipe, queries).batch_size == expected
    said = "" if expected == 4 else f"batches of {expected} queries, not 4: there are no more training queries\n"
    assert capsys.readouterr().out == said
    half = dataclasses.replace(recipe, train_fraction=0.5)
    assert finetuning.fit_batch(settings, half, 2 * queries).batch_size == expected


def reranker_recipe(built, **changes):
    return dataclasses.replace(find_recipe(built, "neg10"), label="pairs", kind="cross_encoder", **changes)


@pytest.mark.parametrize("kind", ["bi_encoder", "cross_encoder"])
def test_the_estimate_counts_the_operations_of_the_model_that_is_trained(built, tmp_path, monkeypatch, kind):
    """Layers of 12 x width x width weights; a reranker is another model here, and reads query and passage together."""
    base = tiny_bert(tmp_path / "reranker", tiny_texts(tiny_pairs(120)), num_hidden_layers=3, hidden_size=32,
                     num_attention_heads=2)
    pairs = kind == "cross_encoder"
    settings = dataclasses.replace(built, reranker_model=str(base), query_max_len=12,
                                   passage_max_len=30 if pairs else 34)
    recipe, layers, width, name, longest = find_recipe(built, "neg10"), 2, 64, built.base_model, 34
    if pairs:
        recipe, layers, width, name, longest = reranker_recipe(settings), 3, 32, base, 12 + 30
    ticks = iter([0.0, 2.0])
    monkeypatch.setattr(plan.time, "monotonic", lambda: next(ticks))
    tokenizer = AutoTokenizer.from_pretrained(name)
    lengths = [len(tokenizer(*[row["query"]] * pairs, row["pos"][0])["input_ids"])
               for row in read_jsonl(built.data_dir / EXPORT)]
    assert min(lengths) < longest < max(lengths)
    tokens = settings.epochs * settings.train_group_size * sum(min(longest, length) for length in lengths)
    expected = tokens * 6 * layers * 12 * width**2 / (10 * 2 * 512 * width * 2048 / 2.0)
    training = training_settings(settings, recipe, settings, read_data(settings))
    assert plan.estimate_time(training, finetuning.read_rows(training.training_file)) == pytest.approx(expected)


def test_a_reranker_begins_with_its_own_model_and_only_that_ones_code_is_trusted(built, tmp_path):
    given, other = (str(tiny_bert(tmp_path / name, tiny_texts(tiny_pairs(20)), seed=seed))
                    for seed, name in ((8, "given"), (9, "other")))

    def begins(recipe, **changes):
        settings = dataclasses.replace(built, **changes)
        tuned = settings.with_overrides(recipe.settings)
        encoder = training_settings(settings, recipe, tuned, read_data(settings)).encoder
        return encoder.name, encoder.trusted

    pairs, based = reranker_recipe(built), reranker_recipe(built, settings={"BASE_MODEL": other})
    assert begins(pairs, reranker_model=given, trust_remote_code=built.base_model) == (given, False)
    assert begins(pairs, reranker_model=given, trust_remote_code=given) == (given, True)
    assert begins(pairs, trust_remote_code=built.base_model) == (built.base_model, True)
    assert begins(based, trust_remote_code=built.base_model) == (other, False)
    records = [training_record(built, recipe)["base model"]["revision"] for recipe in (pairs, based)]
    assert records == [model_content(built.base_model), model_content(other)]


# -- what goes wrong is one line and exit status 1 --

@pytest.mark.parametrize("words, message", [
    (["neg11"], "there is no recipe 'neg11' in .*: it has neg10, neg50, neg10_eighth"),
    ([], "give exactly one recipe label"), (["neg10", "neg50"], "give exactly one recipe label"),
    (["hard_round2"], "hard_round2 mines with the model hard, which is not in"),
    (["neg10"], ".*dataset.json does not exist: it is made by build_train_dataset.ipynb"),
])
def test_what_goes_wrong_is_one_line(built, monkeypatch, words, message):
    if words == ["neg10"]:
        shutil.rmtree(built.data_dir)
    monkeypatch.setattr(sys, "argv", ["finetune", *words])
    with pytest.raises(SystemExit, match=f"error: {message}") as stopped:  # a text: Python prints it and exits with 1
        run_command_line(finetuning.main)
    assert "\n" not in stopped.value.code


@pytest.mark.parametrize("script, words, label", [
    ("finetune_neg10.sh", [], "neg10"), ("finetune_neg50.sh", ["--dry-run"], "neg50 --dry-run"),
    ("finetune_hard.sh", ["hard_kd"], "hard hard_kd"), ("finetune_reranker.sh", [], "reranker")])
@pytest.mark.parametrize("environment", [True, False])
def test_the_scripts_take_the_environment_that_is_there(tmp_path, script, words, label, environment):
    """Started from anywhere, without an active environment: .venv if it is there, else the python3 in force."""
    folder, other = tmp_path / "the repository", tmp_path / "bin"
    folder.mkdir()
    shutil.copy(ROOT / script, folder)
    for python in [folder / ".venv" / "bin"] * environment + [other]:
        python.mkdir(parents=True)
        (python / "python3").write_text(f'#!/bin/sh\necho "{python}" "$PWD" "$@"\nexit 3\n')
        (python / "python3").chmod(0o755)
    run = subprocess.run(["bash", folder / script, *words], cwd=tmp_path, env={"PATH": f"{other}:/usr/bin:/bin"},
                         capture_output=True, text=True)
    python = folder / ".venv" / "bin" if environment else other
    assert run.stdout == f"{python} {folder} -m embedding_finetune train --default {label}\n", run.stderr
    assert run.returncode == 3


# -- whole trainings --

def check_finished(settings, folder, pooling="cls"):
    """Weights that have moved, and a folder that says how they are used."""
    base, trained = (load_file(Path(model) / "model.safetensors")["embeddings.word_embeddings.weight"]
                     for model in (settings.base_model, folder))
    assert (base - trained).abs().max() > 1e-3
    config, wanted = load_encoder_config(settings, folder.name), base_encoder_config(settings)
    names = ("pooling", "query_prompt", "passage_prompt", "query_max_len", "passage_max_len", "normalize")
    assert [getattr(config, name) for name in names] == [getattr(wanted, name) for name in names]
    assert config.pooling == pooling
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".", "checkpoint"))]
    assert read_record(folder)["settings"]["TRAINER"] == settings.trainer


@pytest.fixture
def one_process(monkeypatch):
    """What `--one-process` changes in the process is set back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))


def test_flagembeddings_own_trainer_leads_to_a_complete_folder(built, one_process, monkeypatch):
    """Also when the instruction has changed since the training file was made, and without an export of it."""
    queries, original = [], AbsEmbedderTrainDataset.__getitem__
    monkeypatch.setattr(AbsEmbedderTrainDataset, "__getitem__",
                        lambda self, item: queries.append(original(self, item)) or queries[-1])
    (built.data_dir / EXPORT).unlink()
    settings = dataclasses.replace(built, trainer="flagembedding", base_pooling="mean", query_prompt="look up: ",
                                   passage_prompt="text: ", training_export=False)
    folder = finetuning.finetune(settings, "neg10", one_process=True)
    check_finished(settings, folder, "mean")
    assert not (built.data_dir / EXPORT).exists()
    assert queries and all(query.startswith(("look up: when ", "look up: where ")) for query, *_ in queries)


@contextlib.contextmanager
def launched(folder, line, **settings):
    """The training of neg10 under torchrun, as the scripts run it, once its log has a line; its files are in a folder.
    """
    log, errors = folder / "log", folder / "errors"
    with forked(command, "embedding_finetune", "train", "neg10", log=log, errors=errors, **settings) as process:
        while not log.exists() or line not in log.read_text():
            assert process.is_alive(), errors.read_text()
            time.sleep(0.01)
        yield process
        process.join(60)


def errors_of(folder):
    return [line for line in (folder / "errors").read_text().splitlines() if "it/s]" not in line]


def test_a_killed_training_is_one_line_and_can_be_continued(built, tmp_path, one_process, monkeypatch, capsys):
    """Killed after its first checkpoint. While it trains, a second one in the same folder is refused. It may be
    continued in other sub-batches, but not in other batches."""
    monkeypatch.setenv("EPOCHS", "2")
    settings, unfinished = Settings.load(), built.output_dir / "neg10.partial"
    with launched(tmp_path, "step 10/36") as process:
        [worker] = psutil.Process(process.pid).children()
        worker.suspend()  # it must not finish meanwhile
        try:
            with pytest.raises(UserError, match="another training .process .* is writing to .*neg10.partial"):
                finetuning.finetune(settings, "neg10", one_process=True)
        finally:
            worker.kill()
    assert process.exitcode == 1
    assert errors_of(tmp_path) == [
        "error: training process 0 was killed by signal 9 (possibly out of memory: set GRAD_CACHE_CHUNK); run the same "
        "command again to continue"]
    step = int(complete_checkpoints(unfinished)[0].name.rpartition("-")[2])
    with pytest.raises(UserError, match="holds an interrupted training with other settings"):
        finetuning.finetune(dataclasses.replace(settings, batch_size=2), "neg10")
    finetuning.finetune(dataclasses.replace(settings, grad_cache_chunk=3, logging_steps=1), "neg10", one_process=True)
    assert f"continuing from {unfinished}/checkpoint-{step}\n" in capsys.readouterr().out
    check_finished(settings, built.output_dir / "neg10")
    steps = [row["step"] for row in read_log(built.output_dir / "neg10") if "loss" in row]
    assert steps == [*range(2, step + 1, 2), *range(step + 1, 37)]
    assert is_current(settings, find_recipe(settings, "neg10"))


def test_a_training_that_is_stopped_and_then_killed_comes_to_its_end(built, tmp_path):
    """SIGTERM is one line; the same command continues, and with MAX_RESTARTS starts again after its process was killed.
    """
    with launched(tmp_path, "step 20/72", EPOCHS="4", MAX_RESTARTS="1") as process:
        process.terminate()
    assert process.exitcode == 1
    assert errors_of(tmp_path) == ["error: stopped by SIGTERM; run the same command again to continue"]
    with launched(tmp_path, "continuing from", EPOCHS="4", MAX_RESTARTS="1") as process:
        psutil.Process(process.pid).children()[0].kill()
    assert process.exitcode == 0 and (built.output_dir / "neg10" / "model.safetensors").exists()
    assert errors_of(tmp_path) == ["training process 0 was killed by signal 9: restarting all from the last checkpoint "
                                   "(1 of MAX_RESTARTS left)"]
    assert (tmp_path / "log").read_text().count("continuing from") == 2


@pytest.mark.long
def test_two_nodes_of_two_processes_train_as_one_on_the_joined_batch_through_a_kill(
        built, tmp_path, one_process, monkeypatch):
    """Two launches that meet on this machine. A process of the node without rank 0 is killed, and both nodes end with a
    line; the same command on both ends with the weights and the dev curve of a process that was never disturbed."""
    base = tiny_bert(tmp_path / "base", tiny_texts(tiny_pairs(120)), hidden_dropout_prob=0,
                     attention_probs_dropout_prob=0, initializer_range=0.1)
    for name, value in {"BASE_MODEL": base, "PRECISION": "fp32", "LEARNING_RATE": "1e-4", "EPOCHS": "3",
                        "LOGGING_STEPS": "1"}.items():
        monkeypatch.setenv(name, str(value))
    alone = finetuning.finetune(dataclasses.replace(Settings.load(), output_dir=tmp_path / "alone"), "neg10", True)
    with socket.socket() as own:
        own.bind(("localhost", 0))
        endpoint = f"localhost:{own.getsockname()[1]}"
    together = {"NNODES": "2", "GPUS": "2", "BATCH_SIZE": "1", "RDZV_ENDPOINT": endpoint}
    logs = [tmp_path / "node0.log", tmp_path / "node1.log"]

    @contextlib.contextmanager
    def launched():
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(forked(command, "embedding_finetune", "train", "neg10", log=log, **together))
                   for log in logs]

    with launched() as nodes:
        deadline = time.monotonic() + 240
        while not any(log.exists() and "step 12/54" in log.read_text() for log in logs):
            assert time.monotonic() < deadline and all(node.is_alive() for node in nodes), logs[0].read_text()
            time.sleep(0.05)
        second = nodes["step 12/54" in logs[0].read_text()]
        worker, _ = psutil.Process(second.pid).children()
        worker.kill()
        for node in nodes:
            node.join(240)
    said = [log.read_text() for log in logs]
    assert [node.exitcode for node in nodes] == [1, 1], said
    assert all("run the same command again to continue on all nodes\n" in text for text in said)
    with launched() as nodes:
        for node in nodes:
            node.join(240)
    said = [log.read_text() for log in logs]
    assert [node.exitcode for node in nodes] == [0, 0], said
    folder = built.output_dir / "neg10"
    assert "".join(said).count(f"continuing from {built.output_dir}/neg10.partial/checkpoint-1") == 1
    assert all(f"finished: {folder}\n" in text for text in said)
    theirs, ours = ({name: tensor for name, tensor in load_file(model / "model.safetensors").items()
                     if "key.bias" not in name}  # attention does not depend on it: Adam follows rounding errors there
                    for model in (alone, folder))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    of_alone, of_nodes = ([(row["step"], row["loss"] if "loss" in row else row["mrr@10"]) for row in read_log(model)]
                          for model in (alone, folder))
    assert len(of_nodes) == 54 + 5 and [step for step, _ in of_nodes] == [step for step, _ in of_alone]
    assert [value for _, value in of_nodes] == pytest.approx([value for _, value in of_alone], abs=1e-3)


def test_a_debugger_stops_inside_the_loss(built, tmp_path):
    """What docs/internals.md shows, typed into pdb."""
    page = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
    typed = [line.removeprefix("(Pdb) ") for line in page.splitlines() if line.startswith("(Pdb) ")]
    _, said = run_forked(debugged, "\n".join([*typed, "q", ""]), "-m", "embedding_finetune", "train", "neg10",
                         "--one-process", log=tmp_path / "log")
    queries, group = built.batch_size, built.train_group_size
    assert f"(torch.Size([{queries}, 64]), torch.Size([{queries * group}, 64]))" in said, said
