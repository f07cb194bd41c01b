"""Whole trainings of tiny models: the same losses as FlagEmbedding's, through kill -9, and what bad input says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainer
from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderRunner,
    EncoderOnlyEmbedderTrainingArguments,
)
from safetensors.torch import load_file
from tiny_training import training_rows, write_rows

from embedding_finetune import train as training
from embedding_finetune.files import ExperimentError


def flags(tiny, output, **changes):
    """Flags of a training of 30 steps over two epochs; None takes one out."""
    values = {
        "model_name_or_path": tiny / "bert", "train_data": tiny / "train.json", "cache_path": tiny / "cache", "output_dir": output,
        "train_group_size": 4, "query_max_len": 16, "passage_max_len": 48, "query_instruction_for_retrieval": "find: ",
        "temperature": 0.05, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "warmup_steps": 0.1, "num_train_epochs": 2,
        "seed": 3, "logging_steps": 5, "use_cpu": True, "save_steps": 10} | changes
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def dev(tiny):
    return {"dev_data": tiny / "dev.json", "dev_corpus": tiny / "corpus.jsonl", "dev_corpus_size": 60, "dev_steps": 7}


def log_of(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def parameters(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def losses(monkeypatch):
    """Every loss that any trainer computes."""
    seen = []
    original = AbsEmbedderTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(AbsEmbedderTrainer, "compute_loss", compute_loss)
    return seen


def test_the_first_50_losses_equal_flagembeddings(tiny, tmp_path, losses):
    changes = {"num_train_epochs": None, "max_steps": 50, "save_strategy": "no", "learning_rate": 2e-5}
    parser = transformers.HfArgumentParser((EncoderOnlyEmbedderModelArguments, EncoderOnlyEmbedderDataArguments,
                                            EncoderOnlyEmbedderTrainingArguments))
    arguments = parser.parse_args_into_dataclasses(flags(tiny, tmp_path / "theirs", disable_tqdm=True, **changes))
    EncoderOnlyEmbedderRunner(*arguments).run()
    theirs = losses.copy()
    losses.clear()
    training.train(flags(tiny, tmp_path / "ours", mask_false_negatives=False, **changes))
    assert len(losses) == len(theirs) == 50
    assert max(abs(ours - other) for ours, other in zip(losses, theirs, strict=True)) < 1e-5


def test_bfloat16_on_a_cpu_changes_little(tiny, tmp_path, losses):
    for name, changes in (("fp32", {}), ("bf16", {"bf16": True})):
        training.train(flags(tiny, tmp_path / name, num_train_epochs=None, max_steps=12, save_strategy="no", **changes))
    plain, rounded = losses[:12], losses[12:]
    assert len(rounded) == 12 and plain != rounded and rounded == pytest.approx(plain, rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in parameters(tmp_path / "bf16").values())


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """A finished training with dropout."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "model"
    training.train(flags(tiny, folder, model_name_or_path=tiny / "bert_dropout"))
    return folder


def test_log_and_final_folder(uninterrupted, tiny, tmp_path, capsys):
    assert [row["step"] for row in log_of(uninterrupted)] == [5, 10, 15, 20, 25, 30]
    assert not list(uninterrupted.glob("checkpoint-*")) and not list(uninterrupted.glob("*.partial"))
    output = tmp_path / "model"
    training.train(flags(tiny, output, max_steps=2, num_train_epochs=None, logging_steps=1, **dev(tiny)))
    assert [(row["step"], "loss" in row, "mrr@10" in row) for row in log_of(output)] == [
        (0, False, True), (1, True, False), (2, True, False), (2, False, True)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["step", "0/2"], ["step", "1/2"], ["step", "2/2"], ["step", "2/2"]]
    assert "passages/s" in lines[1] and "left" in lines[1] and "GB" in lines[1] and "dev mrr@10" in lines[3]
    assert lines[-1].endswith(f"the model is in {output}")


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_checkpoint_by_dev_metric_is_the_model(tiny, tmp_path, monkeypatch, interrupted):
    """Dev values are made to peak at step 14: its parameters are kept to the end, through an interruption after step 20."""
    values = {0: 0.1, 7: 0.2, 14: 0.6, 21: 0.5, 28: 0.4, 30: 0.6}  # an equal value later is no improvement
    present, kept, interruptions = {}, {}, [23] * interrupted
    original_save, original_checked = training.Trainer._save_checkpoint, training.Trainer._checked

    def checked(self, loss):
        present["step"] = self.state.global_step + 1
        if present["step"] in interruptions:
            raise KeyboardInterrupt
        return original_checked(self, loss)

    def save(self, *args, **kwargs):
        original_save(self, *args, **kwargs)
        kept[self.state.global_step] = {folder.name for folder in tmp_path.glob("model/checkpoint-*")}
        if self.state.global_step == 14:
            kept["best"] = parameters(tmp_path / "model" / "checkpoint-14")

    monkeypatch.setattr(training.DevSet, "evaluate", lambda self, model: {"recall@10": 0.0, "mrr@10": values[present.get("step", 0)]})
    monkeypatch.setattr(training.Trainer, "_checked", checked)
    monkeypatch.setattr(training.Trainer, "_save_checkpoint", save)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            training.train(flags(tiny, tmp_path / "model", **dev(tiny)))
        interruptions.clear()
    training.train(flags(tiny, tmp_path / "model", **dev(tiny)))
    torch.testing.assert_close(parameters(tmp_path / "model"), kept["best"], atol=0, rtol=0)
    assert kept[10] == {"checkpoint-7", "checkpoint-10"} and kept[20] == {"checkpoint-14", "checkpoint-20"}


def test_a_killed_training_continues_to_the_same_parameters(uninterrupted, tiny, tmp_path):
    """Killed in the second epoch; a half-written checkpoint is passed over; a second training meanwhile is refused."""
    output = tmp_path / "model"
    arguments = flags(tiny, output, model_name_or_path=tiny / "bert_dropout")
    # Slowed down, so that it can be killed in the middle of its work.
    slow = ("import sys, time; from embedding_finetune import train as t; original = t.Trainer._checked; "
            "t.Trainer._checked = lambda self, loss: (time.sleep(0.1), original(self, loss))[1]; t.train(sys.argv[1:])")
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], start_new_session=True,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())})
    deadline = time.monotonic() + 120
    while not (output / "checkpoint-20").exists():
        assert time.monotonic() < deadline and process.poll() is None, "the training did not reach step 20"
        time.sleep(0.02)
    with pytest.raises(ExperimentError, match=f"another training .process {process.pid}"):
        training.train(arguments)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "model.safetensors").exists()
    for step, damage in ((25, lambda folder: (folder / "optimizer.pt").write_bytes(b"")),
                         (26, lambda folder: (folder / training.MARKER_NAME).unlink())):
        shutil.copytree(output / "checkpoint-20", output / f"checkpoint-{step}")
        damage(output / f"checkpoint-{step}")
    assert training.last_checkpoint(output).name == "checkpoint-20"
    training.train(arguments)
    torch.testing.assert_close(parameters(output), parameters(uninterrupted), atol=1e-5, rtol=0)
    curves = [[(row["step"], row["loss"], row["learning_rate"]) for row in log_of(folder)] for folder in (output, uninterrupted)]
    assert sum(curves[0], ()) == pytest.approx(sum(curves[1], ()), abs=1e-5)


def test_other_settings_do_not_continue_a_run(tiny, tmp_path, monkeypatch):
    def stop(self, output):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Runner, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(flags(tiny, tmp_path / "model", max_steps=3))
    with pytest.raises(ExperimentError, match="another temperature .0.05, now 0.1"):
        training.train(flags(tiny, tmp_path / "model", max_steps=3, temperature=0.1))


@pytest.mark.parametrize("changes, message", [
    ({"train_data": "missing.json"}, "missing.json does not exist"),
    ({"no_such_flag": 1}, "no_such_flag"),
    ({"train_group_size": 1, "per_device_train_batch_size": 1}, "one candidate per query"),
    ({"passage_max_len": 200}, "passage_max_len is 200, but .* has only 128 positions"),
    ({"knowledge_distillation": True}, "row 1: a teacher needs 'pos_scores'"),
    ({"negatives_cross_device": True}, "--negatives_cross_device needs torchrun"),
    ({"model_name_or_path": "/no/model"}, "cannot load /no/model"),
    ({"same_dataset_within_batch": True}, "--same_dataset_within_batch is not supported"),
    ({"dev_data": "dev.json"}, "--dev_data and --dev_corpus belong together"),
    ({"learning_rate": "fast"}, "learning_rate"),
])
def test_bad_input_is_found_before_a_model_is_loaded(tiny, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(training, "Runner", None)  # calling it would be a TypeError
    with pytest.raises(ExperimentError, match=message) as error:
        training.train(flags(tiny, tmp_path / "model", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, message", [
    ({"neg": []}, "row 2: 'neg' must be a list"), ({"pos": []}, "row 2: 'pos' must be a list"), ({"pos": "text"}, "row 2: 'pos' must be")])
def test_bad_rows_are_named(tiny, tmp_path, change, message):
    rows = training_rows(3)
    rows[1] |= change
    path = write_rows(tmp_path / "train.json", rows)
    with pytest.raises(ExperimentError, match=message):
        training.train(flags(tiny, tmp_path / "model", train_data=path))


def test_a_finished_model_is_not_overwritten(uninterrupted, tiny):
    with pytest.raises(ExperimentError, match="already holds a finished model"):
        training.train(flags(tiny, uninterrupted))


def test_a_loss_that_is_no_number_stops_at_its_step(tiny, tmp_path, monkeypatch):
    original, calls = training.ContrastiveModel.contrastive_loss, []

    def contrastive_loss(self, *args, **kwargs):
        calls.append(None)
        return original(self, *args, **kwargs) * (torch.nan if len(calls) == 13 else 1)

    monkeypatch.setattr(training.ContrastiveModel, "contrastive_loss", contrastive_loss)
    with pytest.raises(ExperimentError, match="the loss became nan at step 13; .*checkpoint-10 is the last good checkpoint"):
        training.train(flags(tiny, tmp_path / "model"))


def test_a_full_disk_leaves_the_older_checkpoint(tiny, tmp_path, monkeypatch):
    original = torch.save

    def save(value, path, *args, **kwargs):
        if "checkpoint-20" in str(path):
            raise OSError(28, "No space left on device")
        return original(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(ExperimentError, match="checkpoint-20: .*No space left.*checkpoint-10 is the last good checkpoint"):
        training.train(flags(tiny, tmp_path / "model"))
    assert training.last_checkpoint(tmp_path / "model").name == "checkpoint-10"
