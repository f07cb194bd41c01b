"""Whole trainings of tiny models: the same losses as FlagEmbedding's, through kill -9, on two processes, and what bad
input says.
"""

import dataclasses
import itertools
import json
import os
import shutil
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
from forked import command, forked, run_forked
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny_training import curve, dev, parameters, prepared, train_until, training_rows, use, write_rows
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.artifacts.staging import MANIFEST, complete_checkpoints
from embedding_finetune.data.collection import Collection, write_collection
from embedding_finetune.data.row_store import read_rows, write_for_flagembedding
from embedding_finetune.files import UserError, read_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.own_config import from_files
from embedding_finetune.training import worker as training
from embedding_finetune.training.arguments import SETTINGS, read_settings, stock_flags
from embedding_finetune.training.export import check_parity
from embedding_finetune.training.log import read_log
from embedding_finetune.training.trainer import Checkpoints

pytestmark = pytest.mark.usefixtures("unchecked")


OF_8 = {"batch_size": 8, "save_steps": 5}  # 14 steps, the second epoch from step 8 on


@pytest.fixture
def losses(monkeypatch):
    """Every loss that any trainer computes."""
    seen = []
    for kind in (AbsEmbedderTrainer, training.Trainer):
        def compute_loss(self, *args, original=kind.compute_loss, **kwargs):
            loss = original(self, *args, **kwargs)
            seen.append(loss.item())
            return loss

        monkeypatch.setattr(kind, "compute_loss", compute_loss)
    return seen


def test_the_first_50_losses_equal_flagembeddings(tiny, tmp_path, losses):
    """Over four epochs, with the flags of the equivalent command. Each row has one positive and as many negatives as
    are drawn: nothing is left to chance."""
    data, export = tmp_path / "rows.arrow", tmp_path / "rows.json"
    write_rows(data, training_rows(negatives=3, second_positives=False))
    write_for_flagembedding(export, read_rows(data), "find: ")
    ours = prepared(tiny, tmp_path / "ours", training_file=data, max_steps=50, learning_rate=2e-5,
                    passage_prompt="text ", mask_false_negatives=False)
    parser = transformers.HfArgumentParser((EncoderOnlyEmbedderModelArguments, EncoderOnlyEmbedderDataArguments,
                                            EncoderOnlyEmbedderTrainingArguments))
    words = stock_flags(read_settings(ours), tmp_path / "theirs", export)
    EncoderOnlyEmbedderRunner(*parser.parse_args_into_dataclasses(words)).run()
    theirs = losses.copy()
    losses.clear()
    training.train(ours)
    assert len(losses) == len(theirs) == 50 and len(set(theirs)) == 50
    assert max(abs(ours - other) for ours, other in zip(losses, theirs, strict=True)) < 1e-5


def test_bfloat16_on_a_cpu_changes_little(tiny, tmp_path, losses):
    for precision in ("fp32", "bf16"):
        training.train(prepared(tiny, tmp_path / precision, max_steps=12, precision=precision))
    plain, rounded = losses[:12], losses[12:]
    assert len(rounded) == 12 and plain != rounded and rounded == pytest.approx(plain, rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in parameters(tmp_path / "bf16").values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_is_trained_in_single_precision(tiny, tmp_path, monkeypatch, dtype):
    """Adam's steps would vanish in weights of 8 or 11 bits."""
    base, trainers = tmp_path / "base", []
    AutoModel.from_pretrained(tiny / "bert", dtype=dtype).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny / "bert").save_pretrained(base)
    assert {tensor.dtype for tensor in parameters(base).values()} == {dtype}
    finish = training.finish
    monkeypatch.setattr(training, "finish", lambda trainer, *args: trainers.append(trainer) or finish(trainer, *args))
    training.train(prepared(tiny, tmp_path / "model", base=base, max_steps=2,
                         learning_rate=1e-6))
    [trainer] = trainers
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    assert len(state) > 20 and {tensor.dtype for tensor in state} == {torch.float32}
    trained, before = parameters(tmp_path / "model"), parameters(base)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert read_json(tmp_path / "model" / "config.json")["dtype"] == "float32"
    moved = (trained["embeddings.word_embeddings.weight"] - before["embeddings.word_embeddings.weight"].float()).abs()
    assert 0 < moved.max() < 3e-6  # finer than what the base could have stored


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """A finished training with dropout."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "model"
    training.train(prepared(tiny, folder, base=tiny / "bert_dropout"))
    return folder


def test_log_and_final_folder(uninterrupted, tiny, tmp_path, capsys):
    assert [row["step"] for row in read_log(uninterrupted)] == [5, 10, 15, 20, 25, 30]
    assert not list(uninterrupted.glob("checkpoint-*")) and not list(uninterrupted.glob("*.partial"))
    output = tmp_path / "mine.partial"
    output.mkdir()
    (output / "training.json").write_text(json.dumps({"settings": {"LEARNING_RATE": 1e-4, "GPUS": 1}}))
    training.train(prepared(tiny, output, max_steps=2, logging_steps=1, pooling="mean", passage_prompt="text: ",
                            **dev(tiny)))
    config = use(pooling="mean", passage_prompt="text: ")
    assert from_files(str(output), False).items() <= dataclasses.asdict(config).items()
    card = (output / "README.md").read_text()
    assert "# mine\n" in card and "| training rows | 60 |" in card and "| LEARNING_RATE | 0.0001 |" in card
    assert all(f"| {row['step']} | {row['recall@10']:.4f} | {row['mrr@10']:.4f} |" in card for row in read_log(output)
               if "mrr@10" in row)
    assert [(row["step"], "loss" in row, "mrr@10" in row) for row in read_log(output)] == [
        (0, False, True), (1, True, False), (2, True, False), (2, False, True)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["step", f"{step}/2"] for step in (0, 1, 2, 2)]
    assert "passages/s" in lines[1] and "left" in lines[1] and "GB" in lines[1] and "dev mrr@10" in lines[3]
    assert lines[-1].endswith(f"the model is in {output}")


@pytest.mark.parametrize("interrupted, patience, last", [(False, 0, 30), (True, 0, 30), (True, 2, 28)])
def test_the_best_checkpoint_by_dev_metric_is_the_model(tiny, tmp_path, monkeypatch, capsys, interrupted, patience,
                                                        last):
    """Dev values are made to peak at step 14: its parameters are kept to the end, through an interruption after 20; the
    end may come when dev has not improved twice."""
    values = {0: 0.7, 7: 0.2, 14: 0.6, 21: 0.5, 28: 0.4, 30: 0.6}  # an equal value later is no improvement
    present, kept = {}, {}
    original_save, original_checked = Checkpoints.on_save, training.Trainer._checked

    def checked(self, loss):
        present["step"] = self.state.global_step + 1
        return original_checked(self, loss)

    def save(self, args, state, *more, **kwargs):
        original_save(self, args, state, *more, **kwargs)
        kept[state.global_step] = {folder.name for folder in tmp_path.glob("model/checkpoint-*")}
        if state.global_step == 14:
            weights = parameters(tmp_path / "model" / "checkpoint-14")
            kept["best"] = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}

    monkeypatch.setattr(training.DevEvaluator, "evaluate",
                        lambda self, model: {"recall@10": 0.0, "mrr@10": values[present.get("step", 0)]})
    monkeypatch.setattr(training.Trainer, "_checked", checked)
    monkeypatch.setattr(Checkpoints, "on_save", save)
    arguments = prepared(tiny, tmp_path / "model", patience=patience, **dev(tiny))
    if interrupted:
        train_until(arguments, 23)
    training.train(arguments)
    torch.testing.assert_close(parameters(tmp_path / "model"), kept["best"], atol=0, rtol=0)
    assert kept[10] == {"checkpoint-7", "checkpoint-10"} and kept[20] == {"checkpoint-14", "checkpoint-20"}
    output = capsys.readouterr().out
    assert "the best checkpoint (mrr@10 0.6000) is worse than the base model (0.7000)" in output
    assert f"finished after {last} steps, kept step 14" in output


@pytest.mark.parametrize("changes", [
    {"lora_rank": 4, "grad_cache_chunk": 12}, {}, pytest.param({"lora_rank": 4}, marks=pytest.mark.long)], ids=str)
def test_adapters_and_dense_layers_continue_to_the_same_parameters(tiny, tmp_path, capsys, changes):
    """With dropout, interrupted in the second epoch and continued, with and without GradCache."""
    base = shutil.copytree(tiny / "bert_dropout", tmp_path / "base")
    modules = [Transformer(str(base)), Pooling(32, "mean"), Dense(32, 24), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(base))
    changes = {"base": base, "dense": "2_Dense", "learning_rate": 1e-3, **OF_8, **changes}
    train_until(prepared(tiny, tmp_path / "interrupted", **changes), 13)
    [*_, checkpoint] = sorted((tmp_path / "interrupted").glob("checkpoint-*"))
    assert all(".lora_" in name or name.startswith("dense.") for name in parameters(checkpoint)) is (
        "lora_rank" in changes)
    for name in ("interrupted", "whole"):
        training.train(prepared(tiny, tmp_path / name, **changes))
    for part in ("", "2_Dense"):
        continued, whole, before = (parameters(tmp_path / name / part) for name in ("interrupted", "whole", "base"))
        torch.testing.assert_close(continued, whole, atol=1e-5, rtol=0)
        assert whole.keys() == before.keys()
        moved = {name for name, weights in whole.items() if not torch.equal(weights, before[name])}
        assert moved if part or "lora_rank" not in changes else moved == {
            name for name in whole if "encoder.layer" in name and name.endswith("weight") and "LayerNorm" not in name}
    # 4 (32 + 32) in 4 matrices and 4 (32 + 64) in 2 of each of two layers, 4 (32 + 32) in the pooler; the Dense layer.
    assert 2 * (4 * 256 + 2 * 384) + 256 + 32 * 24 + 24 == 4632
    said = capsys.readouterr().out
    assert ("LoRA: 4,632 of " in said) is ("lora_rank" in changes)
    assert f"continuing from {tmp_path / 'interrupted' / 'checkpoint-10'}\n" in said


def test_a_model_trained_for_late_interaction_continues_and_is_exported(tiny, tmp_path):
    """Interrupted and continued; sentence-transformers loads its folder `late`, whose weights are stored once."""
    changes = {"architecture": "both", "token_dim": 8, "learning_rate": 1e-3, **OF_8, **dev(tiny)}
    train_until(prepared(tiny, tmp_path / "interrupted", **changes), 13)
    for name in ("interrupted", "whole"):
        training.train(prepared(tiny, tmp_path / name, **changes))
    for part in ("", "late/1_Dense"):
        continued, whole = (parameters(tmp_path / name / part) for name in ("interrupted", "whole"))
        torch.testing.assert_close(continued, whole, atol=1e-5, rtol=0)
    folder = tmp_path / "whole"
    assert os.path.samefile(folder / "model.safetensors", folder / "late" / "model.safetensors")
    assert SentenceTransformer(str(folder), device="cpu").get_embedding_dimension() == 32
    assert 0.9999 <= check_parity(folder, use()) <= 1.0001


def test_truncated_vectors_are_trained_and_the_folder_says_so(tiny, tmp_path):
    """sentence-transformers truncates the vectors of the finished folder, which are whole otherwise."""
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "training.json").write_text(json.dumps({"settings": {"MATRYOSHKA_DIMS": "8 4"}}))
    changes = {"learning_rate": 1e-3, "epochs": 1, **dev(tiny)}
    training.train(prepared(tiny, tmp_path / "short", matryoshka_dims=(32, 8, 4), **changes))
    training.train(prepared(tiny, tmp_path / "whole", **changes))
    short, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "whole"))
    assert any((short[name] - whole[name]).abs().max() > 1e-4 for name in whole)
    texts = {"sentences": ["river moon", "copper violin"], "normalize_embeddings": True, "convert_to_tensor": True}
    models = [SentenceTransformer(str(tmp_path / "short"), device="cpu", truncate_dim=dim) for dim in (None, 8)]
    vectors, truncated = (model.encode(**texts) for model in models)
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(truncated, torch.nn.functional.normalize(vectors[:, :8], dim=1))
    page = " ".join((tmp_path / "short" / "README.md").read_text().split())
    assert "first 8 or 4 dimensions" in page and "SentenceTransformer(PATH, truncate_dim=8)" in page
    assert "or 4 dimensions" not in (tmp_path / "whole" / "README.md").read_text()


def test_queries_filled_up_in_training_are_filled_up_in_use(tiny, tmp_path):
    """With as many vectors as sentence-transformers has, and the same; what is longer stays as it is."""
    changes = {"architecture": "multi_vector", "query_expansion": 12, "learning_rate": 1e-3, "epochs": 1, **dev(tiny)}
    folder = prepared(tiny, tmp_path / "filled", **changes)
    training.train(folder)
    assert check_parity(folder, use()) >= 0.9999
    encoder = Encoder(use(name=str(folder)))
    filled, long = encoder.encode_query_tokens(["river moon", " ".join(["river moon"] * 6)])
    assert len(filled) == 12 - 2 and len(long) == 16 - 2  # the first query has 9 tokens with [CLS] and [SEP]
    assert len(encoder.encode_passage_tokens(["river moon"])[0]) == 2


def test_a_killed_training_continues_to_the_same_parameters(uninterrupted, tiny, tmp_path):
    """Killed in the second epoch; half a checkpoint is passed over; a second training meanwhile is refused."""
    output = tmp_path / "model"
    prepared(tiny, output, base=tiny / "bert_dropout")
    with forked(command, "whole_trainings", output, log=tmp_path / "log", PAUSE="0.1") as process:
        deadline = time.monotonic() + 120
        while not (output / "checkpoint-20" / MANIFEST).exists():
            assert time.monotonic() < deadline and process.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"another training .process {process.pid}"):
            training.train(output)
        process.kill()
    assert not (output / "model.safetensors").exists()
    for step, damage in ((25, lambda folder: (folder / "optimizer.pt").write_bytes(b"")),
                         (26, lambda folder: (folder / MANIFEST).unlink())):
        shutil.copytree(output / "checkpoint-20", output / f"checkpoint-{step}")
        damage(output / f"checkpoint-{step}")
    assert complete_checkpoints(output)[0].name == "checkpoint-20"
    training.train(output)
    torch.testing.assert_close(parameters(output), parameters(uninterrupted), atol=1e-5, rtol=0)
    assert curve(output) == pytest.approx(curve(uninterrupted), abs=1e-5)


@pytest.mark.long
def test_two_processes_train_as_one_on_the_joined_batch_and_continue_when_killed(tiny, tmp_path):
    """With dev values on which the processes do not agree: rank 0 decides for both, else one would wait for ever.

    A training with dropout is killed at step 23, continued, and compared with one that was not; a training without,
    GradCache and all, is compared with one process that takes the rows of both in one batch.
    """
    def begun(name, **changes):
        return prepared(tiny, tmp_path / name, batch_size=2, gpus=2, **changes)

    with_dropout = {"base": tiny / "bert_dropout", **dev(tiny)}
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    torchrun = command, "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "whole_trainings"
    status, output = run_forked(*torchrun, begun("killed", **with_dropout), log=tmp_path / "log", KILLED_AT="23")
    assert status == 1 and complete_checkpoints(killed) and not (killed / "model.safetensors").exists(), output
    status, output = run_forked(
        *torchrun, killed, begun("undisturbed", **with_dropout), begun("plain", epochs=1, grad_cache_chunk=3),
        log=tmp_path / "log")
    assert status == 0, output
    assert output.count("continuing from") == 1 and output.count("finished after 30 steps") == 2  # by rank 0 alone
    torch.testing.assert_close(parameters(killed), parameters(undisturbed), atol=1e-5, rtol=0)
    assert curve(killed) == pytest.approx(curve(undisturbed), abs=1e-5)
    looks = [[(row["step"], row["mrr@10"]) for row in read_log(folder) if "mrr@10" in row]
             for folder in (killed, undisturbed)]
    assert looks[0] == looks[1] and [step for step, _ in looks[0]] == [0, 7, 14, 21, 28, 30]
    assert 0 < max(value for _, value in looks[0]) < 1  # those of rank 0: those of rank 1 are whole numbers

    training.train(prepared(tiny, tmp_path / "alone", epochs=1))
    plain, alone = ({name: tensor for name, tensor in parameters(tmp_path / folder).items()
                     if "key.bias" not in name}  # attention does not depend on it: Adam follows rounding errors there
                    for folder in ("plain", "alone"))
    torch.testing.assert_close(plain, alone, atol=2e-5, rtol=0)
    assert curve(tmp_path / "plain") == pytest.approx(curve(tmp_path / "alone"), abs=1e-4)


def test_what_a_teacher_teaches_can_be_chosen(tiny, tmp_path):
    """From the same start, on the same rows: three losses, three models."""
    taught, models = write_rows(tmp_path / "rows.arrow", training_rows(scores=True)), []
    for number, more in enumerate(({}, {"teacher": True, "distillation_loss": "kl"},
                                   {"teacher": True, "distillation_loss": "margin"})):
        training.train(prepared(tiny, tmp_path / str(number), training_file=taught, epochs=0.1,
                             **more))
        models.append(parameters(tmp_path / str(number))["embeddings.word_embeddings.weight"])
    assert all(one.isfinite().all() for one in models)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(models, 2))


@pytest.mark.parametrize("changes, message", [
    ({"training_file": "missing.json"}, "missing.json does not exist"),
    ({"teacher": True}, "has no teacher scores"),
    ({"data": "nowhere"}, "nowhere/corpus.jsonl does not exist"),
    ({"data": "only_test"}, "only_test has no dev queries: it needs qrels/dev.tsv"),
    ({"batch_size": 61}, "60 training queries are fewer than the 61"),
    ({"passage_max_len": 200}, "passage_max_len is 200, but .* has only 128 positions"),
    ({"base": "/no/model"}, "cannot load /no/model "),
])
def test_bad_input_is_found_before_a_model_is_loaded(tiny, tmp_path, monkeypatch, changes, message):
    write_collection(tmp_path / "only_test", Collection({"q": "a"}, {"p": "b"}, {"q": {"p": 1}}, {"q": "test"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "load_encoder", None)  # calling it would be a TypeError
    with pytest.raises(UserError, match=message) as error:
        training.train(prepared(tiny, tmp_path / "model", **changes))
    assert "\n" not in str(error.value)


def test_settings_that_were_changed_by_hand_are_refused(tiny, tmp_path):
    output = prepared(tiny, tmp_path / "model")
    path = output / SETTINGS
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(UserError, match="settings.json is missing, damaged or of another version"):
        training.train(output)
    with pytest.raises(UserError, match="settings.json is missing, damaged or of another version"):
        training.train(tmp_path)


def test_a_finished_model_is_not_overwritten(uninterrupted, tiny):
    with pytest.raises(UserError, match="already holds a finished model"):
        training.train(prepared(tiny, uninterrupted))


def test_a_loss_that_is_no_number_stops_at_its_step(tiny, tmp_path, monkeypatch):
    original, calls = training.ContrastiveModel.loss, []

    def loss(self, *args, **kwargs):
        calls.append(None)
        return original(self, *args, **kwargs) * (torch.nan if len(calls) == 13 else 1)

    monkeypatch.setattr(training.ContrastiveModel, "loss", loss)
    with pytest.raises(UserError, match="the loss became nan at step 13; .*checkpoint-10 is the last good checkpoint"):
        training.train(prepared(tiny, tmp_path / "model"))


def test_a_full_disk_leaves_the_older_checkpoint(tiny, tmp_path, monkeypatch):
    original = torch.save

    def save(value, path, *args, **kwargs):
        if "checkpoint-20" in str(path):
            raise OSError(28, "No space left on device")
        return original(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    message = "checkpoint-20: .*No space left.*checkpoint-10 is the last good checkpoint"
    with pytest.raises(UserError, match=message):
        training.train(prepared(tiny, tmp_path / "model"))
    assert complete_checkpoints(tmp_path / "model")[0].name == "checkpoint-10"
