"""Vectors must be BaseEmbedder's, and must never be those of another model, use or text."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
from safetensors.torch import load_file, save_file
from tiny import tiny_texts, tiny_xlmr

from embedding_finetune import embedder as module
from embedding_finetune.embedder import Embedder, LengthSortedEmbedder, batches
from embedding_finetune.experiment import ModelUse
from embedding_finetune.files import ExperimentError
from embedding_finetune.hub import model_content

INSTRUCTION = "Tell me: "


@pytest.fixture(scope="module")
def rows(tiny_settings):
    with open(tiny_settings["DATASET"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def texts(rows):
    """Texts of many lengths, in no order of length; the longest is truncated."""
    passages = [text for row in rows[:40] for text in row["pos"]]
    return [" ".join(passages[:number % 7 + 1]) if number % 3 else text[:number] for number, text in enumerate(passages)]


@pytest.fixture
def use(tiny_settings, tmp_path):
    """A model in a folder that the test may spoil."""
    folder = shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "model")
    return ModelUse(label="raw", title="tiny", name=str(folder), pooling="cls", query_instruction=INSTRUCTION, query_max_len=16, passage_max_len=48)


@pytest.fixture
def loadings(monkeypatch):
    """Counts how often a model is loaded, and collects the texts that are encoded."""
    seen = {"models": 0, "texts": []}
    load, encode = LengthSortedEmbedder.__init__, LengthSortedEmbedder.encode_single_device

    def counted_load(self, *args, **settings):
        seen["models"] += 1
        load(self, *args, **settings)

    def noted_encode(self, sentences, *args, **settings):
        seen["texts"] += sentences
        return encode(self, sentences, *args, **settings)

    monkeypatch.setattr(LengthSortedEmbedder, "__init__", counted_load)
    monkeypatch.setattr(LengthSortedEmbedder, "encode_single_device", noted_encode)
    return seen


def base_embedder(use):
    return BaseEmbedder(use.name, pooling_method=use.pooling, use_fp16=False, devices="cpu", query_max_length=use.query_max_len,
                        query_instruction_for_retrieval=use.query_instruction or None, passage_max_length=use.passage_max_len)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("architecture", ["bert", "xlmr"])
@pytest.mark.parametrize("batch_size", [0, 3])
def test_vectors_are_those_of_base_embedder(use, rows, texts, tmp_path, monkeypatch, pooling, architecture, batch_size):
    """In the texts' order, instruction and truncation included, whatever the batches."""
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 100)
    name = use.name if architecture == "bert" else str(tiny_xlmr(tmp_path / "xlmr", tiny_texts(rows)))
    use = dataclasses.replace(use, name=name, pooling=pooling)
    ours, theirs = Embedder(use, batch_size), base_embedder(use)
    for mine, expected in ((ours.encode_queries(texts), theirs.encode_queries(texts)), (ours.encode_passages(texts), theirs.encode_corpus(texts))):
        assert mine.dtype == np.float32 and mine.shape == (len(texts), 64)
        np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert abs(ours.encode_queries(texts) - ours.encode_passages(texts)).max() > 1e-3


def test_batches_are_full_but_not_overfull():
    lengths = [3, 10, 1, 2, 10, 4, 30]
    assert [list(rows) for rows in batches(lengths, 0, 20)] == [[6], [1, 4], [5, 0, 3, 2]]
    assert [list(rows) for rows in batches(lengths, 3, 20)] == [[6, 1, 4], [5, 0, 3], [2]]


def test_what_is_in_the_cache_needs_no_model(use, texts, tmp_path, loadings):
    first = Embedder(use, cache=tmp_path / "cache")
    vectors = first.encode_queries(texts), first.encode_passages(texts)
    assert loadings["models"] == 1
    again = Embedder(use, cache=tmp_path / "cache")
    assert np.array_equal(again.encode_queries(texts), vectors[0]) and np.array_equal(again.encode_passages(texts[::-1]), vectors[1][::-1])
    assert loadings["models"] == 1


def test_only_new_texts_are_encoded_and_equal_ones_once(use, tmp_path, loadings):
    Embedder(use, cache=tmp_path / "cache").encode_passages(["an otter", "a heron", "an otter"])
    grown = Embedder(use, cache=tmp_path / "cache").encode_passages(["a lynx", "a heron", "an otter."])
    assert loadings["texts"] == ["an otter", "a heron", "a lynx", "an otter."]
    np.testing.assert_allclose(grown, Embedder(use).encode_passages(["a lynx", "a heron", "an otter."]), atol=1e-5)


def test_an_interrupted_encoding_resumes(use, texts, tmp_path, monkeypatch, loadings):
    monkeypatch.setattr(module, "CHUNK", 10)
    write = module.VectorCache.write

    def write_once(cache, *args):
        write(cache, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as interruption, pytest.raises(KeyboardInterrupt):
        interruption.setattr(module.VectorCache, "write", write_once)
        Embedder(use, cache=tmp_path / "cache").encode_passages(texts)
    Embedder(use, cache=tmp_path / "cache").encode_passages(texts)
    assert len(loadings["texts"]) == len(set(texts))


CHANGES = {
    "pooling": {"pooling": "mean"}, "instruction": {"query_instruction": "Say: "}, "lengths": {"query_max_len": 12, "passage_max_len": 24},
}


@pytest.mark.parametrize("change", [*CHANGES, "weights", "config", "tokenizer", "code", "package"])
def test_a_changed_model_or_use_is_encoded_anew(use, texts, tmp_path, monkeypatch, change):
    before = Embedder(use, cache=tmp_path / "cache").encode_queries(texts)
    if change in CHANGES:
        use = dataclasses.replace(use, **CHANGES[change])
    elif change == "weights":
        path = f"{use.name}/model.safetensors"
        save_file({name: weight * 1.5 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    elif change == "config":
        edit_json(f"{use.name}/config.json", layer_norm_eps=0.5)
    elif change == "tokenizer":
        vocabulary = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
        ids = vocabulary["model"]["vocab"]
        ids["in"], ids["the"] = ids["the"], ids["in"]
        (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(vocabulary))
    elif change == "code":
        (tmp_path / "embedder.py").write_text("vectors = None\n")
        monkeypatch.setattr(module, "__file__", str(tmp_path / "embedder.py"))
    else:
        version = module.importlib.metadata.version
        monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0" if name == "transformers" else version(name))
    after = Embedder(use, cache=tmp_path / "cache").encode_queries(texts)
    np.testing.assert_allclose(after, Embedder(use).encode_queries(texts), atol=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert change in ("code", "package") or abs(after - before).max() > 1e-3


def edit_json(path, **changes):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content | changes, file)


def test_a_model_exchanged_behind_our_back_is_noticed(use, texts, tmp_path):
    """Made before the training ended, used after: the weights loaded are not those that the cache was asked for."""
    embedder = Embedder(use, cache=tmp_path / "cache")
    edit_json(f"{use.name}/config.json", layer_norm_eps=0.5)
    with pytest.raises(ExperimentError, match="has changed since this Embedder was made"):
        embedder.encode_queries(texts)
    assert not (tmp_path / "cache").exists()


def test_a_hub_model_is_known_by_its_commit(monkeypatch, tmp_path):
    commits = iter(["1" * 40, "2" * 40])
    monkeypatch.setattr("embedding_finetune.hub.check_hub", lambda name: next(commits))
    assert model_content("some/model") != model_content("some/model")
    monkeypatch.setattr("embedding_finetune.hub.check_hub", lambda name: None)  # offline
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("3" * 40) / "config.json"
    monkeypatch.setattr("embedding_finetune.hub.try_to_load_from_cache", lambda name, file: str(snapshot))
    assert model_content("some/model") == "3" * 40
    monkeypatch.setattr("embedding_finetune.hub.try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(ExperimentError, match="offline, and this model was not downloaded"):
        model_content("some/model")


def test_progress_counts_texts(use, texts, capfd):
    Embedder(use).encode_passages(texts)
    assert f"{len(set(texts))}/{len(set(texts))}" in capfd.readouterr().err


def test_broken_weights_are_named_and_not_stored(use, texts, tmp_path):
    path = f"{use.name}/model.safetensors"
    save_file({name: torch.full_like(weight, torch.nan) for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ExperimentError, match="not finite"):
        Embedder(use, cache=tmp_path / "cache").encode_passages(texts)
    assert not (tmp_path / "cache").exists()


def test_a_full_gpu_says_what_to_set(use, texts, monkeypatch):
    def fail(*args, **settings):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(LengthSortedEmbedder, "encode_single_device", fail)
    with pytest.raises(ExperimentError, match="set ENCODE_BATCH_SIZE"):
        Embedder(use).encode_passages(texts)
