"""What only a GPU can show; without one these tests are skipped. benchmarks/bench_gpu.py has its figures."""

import shutil

import numpy as np
import pytest
import torch
from batches_for_tests import batch_of, gradients, load
from safetensors.torch import load_file, save_file
from tiny_training import curve, dev, parameters, passages, prepared
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from embedding_finetune.files import read_json, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.training import worker as training
from embedding_finetune.training.log import read_log
from embedding_finetune.training.loss import grad_cache_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def use_of(folder):
    return EncoderConfig("", "", str(folder), "mean", "find: ", "", 16, 48)


def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def on_gpu(batch):
    return {name: [{key: values.cuda() for key, values in sub.items()} for sub in value] if name == "texts"
            else value.cuda() for name, value in batch.items()}


def test_vectors_and_token_vectors_are_those_of_the_processor(tiny, monkeypatch):
    texts = passages(300)
    encoder = Encoder(use_of(tiny / "bert"))
    fast, (fast_tokens, places) = encoder.encode_passages(texts), encoder.encode_passage_tokens(texts)
    assert next(encoder._model.parameters()).device.type == "cuda"
    on_cpu(monkeypatch)
    plain = Encoder(use_of(tiny / "bert"))
    slow, (slow_tokens, slow_places) = plain.encode_passages(texts), plain.encode_passage_tokens(texts)
    assert (fast * slow).sum(axis=1).min() > 0.9999 and np.abs(fast - slow).max() > 0
    assert (places == slow_places).all()
    assert (fast_tokens.astype(float) * slow_tokens.astype(float)).sum(axis=1).min() > 0.999


def test_a_model_saved_in_bfloat16_is_encoded_in_it(tiny, tmp_path, monkeypatch):
    """Its values are beyond what float16 holds."""
    folder, texts = shutil.copytree(tiny / "bert", tmp_path / "bert"), passages(30)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 1e6
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "bfloat16"})
    fast = Encoder(use_of(folder)).encode_passages(texts)
    on_cpu(monkeypatch)
    assert (fast * Encoder(use_of(folder)).encode_passages(texts)).sum(axis=1).min() > 0.99


def test_a_query_is_encoded_alone_as_among_others(tiny):
    encoder, texts = Encoder(use_of(tiny / "bert")), passages(40)
    together = encoder.encode_queries(texts)
    assert np.abs(encoder.encode_queries(texts[7:8])[0] - together[7]).max() < 2e-3


@pytest.mark.parametrize("model", ["bert", "bert_dropout"])
def test_grad_cache_gives_the_gradients_of_the_whole_batch(tiny, model):
    """With dropout both passes of GradCache draw the same masks, so that it equals itself whatever is kept."""
    batch, _ = batch_of(tiny, limit=3)
    batch, found = on_gpu(batch), []
    for cached in (False, True):
        torch.manual_seed(1)
        wrapped = load(tiny / model).cuda().train()
        if cached:
            grad_cache_step(wrapped, wrapped, lambda loss: loss.backward(), **batch)
        else:
            wrapped(**batch)["loss"].backward()
        found.append(gradients(wrapped))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_goes_as_on_the_processor(tiny, tmp_path, precision):
    changes = {"cpu": False, "precision": precision, **dev(tiny)}
    training.train(prepared(tiny, tmp_path / "gpu", **changes))
    training.train(prepared(tiny, tmp_path / "cpu", **dev(tiny)))
    assert curve(tmp_path / "gpu") == pytest.approx(curve(tmp_path / "cpu"), rel=1e-3 if precision == "fp32" else 0.05)
    assert all(tensor.dtype == torch.float32 for tensor in parameters(tmp_path / "gpu").values())


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "fp16", "grad_cache_chunk": 4}])
def test_an_interrupted_training_ends_with_the_same_weights(tiny, tmp_path, monkeypatch, changes):
    changes = {"cpu": False, "base": tiny / "bert_dropout", **dev(tiny), **changes}
    training.train(prepared(tiny, tmp_path / "whole", **changes))
    checked = training.Trainer._checked

    def interrupted(self, loss):
        if self.state.global_step == 17:
            raise KeyboardInterrupt
        return checked(self, loss)

    monkeypatch.setattr(training.Trainer, "_checked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(prepared(tiny, tmp_path / "broken", **changes))
    monkeypatch.setattr(training.Trainer, "_checked", checked)
    training.train(prepared(tiny, tmp_path / "broken", **changes))
    whole, broken = parameters(tmp_path / "whole"), parameters(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_pairs_are_scored_as_on_the_processor(tiny, tmp_path, monkeypatch):
    for kind in (AutoModelForSequenceClassification, AutoTokenizer):
        options = {} if kind is AutoTokenizer else {"num_labels": 1}
        kind.from_pretrained(tiny / "bert", **options).save_pretrained(tmp_path)
    texts, fast = passages(60), CrossEncoder(str(tmp_path), max_length=60)
    fast_scores = fast.pairs("river moon", texts)
    assert fast.model.device.type == "cuda"
    on_cpu(monkeypatch)
    assert CrossEncoder(str(tmp_path), max_length=60).pairs("river moon", texts) == pytest.approx(fast_scores, abs=1e-3)


def test_the_memory_of_the_log_is_the_cards(tiny, tmp_path):
    training.train(prepared(tiny, tmp_path / "model", cpu=False))
    said = [row["memory_gb"] for row in read_log(tmp_path / "model") if "loss" in row]
    assert said and max(said) < 0.5  # the process itself holds gigabytes
