"""Vectors must be those of FlagEmbedding and sentence-transformers, never those of another model, use or text."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny import tiny_texts, tiny_xlmr
from transformers import BertConfig, BertModel, BertTokenizer

from embedding_finetune.files import UserError
from embedding_finetune.models import encoder as module
from embedding_finetune.models.batching import BATCH_TOKENS
from embedding_finetune.models.encoder import Encoder, pool
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.modeling import encoding_dtype

INSTRUCTION = "Tell me: "


@pytest.fixture(scope="module")
def rows(tiny_settings):
    with open(tiny_settings["DATASET"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def texts(rows):
    """Texts of many lengths, in no order of length; the longest is truncated."""
    passages = [text for row in rows[:40] for text in row["pos"]]
    return [" ".join(passages[:number % 7 + 1]) if number % 3 else text[:number]
            for number, text in enumerate(passages)]


@pytest.fixture
def encoder_config(tiny_settings, tmp_path):
    """A model in a folder that the test may spoil."""
    folder = shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "model")
    return EncoderConfig("raw", "tiny", str(folder), pooling="cls", query_prompt=INSTRUCTION, passage_prompt="",
                    query_max_len=16, passage_max_len=48)


@pytest.fixture
def loadings(monkeypatch):
    """Counts how often a model is loaded, and collects the texts that are encoded."""
    seen = {"models": 0, "texts": []}
    load, tokenise = Encoder._load, Encoder._tokenise

    def counted_load(self):
        seen["models"] += 1
        load(self)

    def noted_tokenise(self, texts, *arguments):
        seen["texts"] += texts
        return tokenise(self, texts, *arguments)

    monkeypatch.setattr(Encoder, "_load", counted_load)
    monkeypatch.setattr(Encoder, "_tokenise", noted_tokenise)
    return seen


def base_embedder(encoder_config):
    return BaseEmbedder(
        encoder_config.name, pooling_method=encoder_config.pooling, use_fp16=False, devices="cpu",
        query_max_length=encoder_config.query_max_len, passage_max_length=encoder_config.passage_max_len,
        query_instruction_for_retrieval=encoder_config.query_prompt or None,
        normalize_embeddings=encoder_config.normalize)


@pytest.mark.parametrize("architecture, pooling, normalize, batch_size", [
    ("bert", "cls", True, 0), ("bert", "mean", False, 3), ("xlmr", "cls", False, 3), ("xlmr", "mean", True, 0)])
def test_vectors_are_those_of_base_embedder(encoder_config, rows, texts, tmp_path, monkeypatch, pooling, architecture,
                                            normalize, batch_size):
    """In the texts' order, prompt and truncation included, whatever the batches."""
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 100)
    name = encoder_config.name if architecture == "bert" else str(tiny_xlmr(tmp_path / "xlmr", tiny_texts(rows)))
    encoder_config = dataclasses.replace(encoder_config, name=name, pooling=pooling, normalize=normalize)
    ours, theirs = Encoder(encoder_config, batch_size), base_embedder(encoder_config)
    for mine, expected in ((ours.encode_queries(texts), theirs.encode_queries(texts)),
                           (ours.encode_passages(texts), theirs.encode_corpus(texts))):
        assert mine.dtype == np.float32 and mine.shape == (len(texts), 64)
        np.testing.assert_allclose(mine, expected, atol=1e-5)
        assert normalize == (abs(np.linalg.norm(mine, axis=1) - 1).max() < 0.1)
    assert abs(ours.encode_queries(texts) - ours.encode_passages(texts)).max() > 1e-3


@pytest.mark.parametrize("pooling, theirs", [("cls", "cls"), ("mean", "mean"), ("last_token", "lasttoken")])
@pytest.mark.parametrize("side", ["right", "left"])
def test_poolings_and_prompts_are_those_of_sentence_transformers(encoder_config, rows, texts, tmp_path, pooling, theirs,
                                                                 side):
    """At the left only for a model that counts positions without the padding: any other is not itself there."""
    folder = tmp_path / "model" if side == "right" else tiny_xlmr(tmp_path / "xlmr", tiny_texts(rows))
    edit_json(folder / "tokenizer_config.json", padding_side=side)
    encoder_config = dataclasses.replace(encoder_config, name=str(folder), pooling=pooling, passage_prompt="Passage: ",
                                         query_max_len=48)
    transformer = Transformer(encoder_config.name, max_seq_length=48)
    model = SentenceTransformer(modules=[transformer, Pooling(64, theirs), Normalize()], device="cpu")
    ours = Encoder(encoder_config, batch_size=7)
    queries = model.encode(texts, prompt=encoder_config.query_prompt)
    passages = model.encode(texts, prompt=encoder_config.passage_prompt)
    assert ours.encode_queries(texts) == pytest.approx(queries, abs=1e-5)
    assert ours.encode_passages(texts) == pytest.approx(passages, abs=1e-5)
    assert Encoder(encoder_config, batch_size=1).encode_passages(texts) == pytest.approx(passages, abs=1e-5)


def test_padding_at_either_end_is_no_part_of_a_vector():
    """Two texts of two and three tokens, counted by hand."""
    hidden = torch.arange(12.0).view(2, 3, 2)  # tokens [0, 1], [2, 3], [4, 5] and [6, 7], [8, 9], [10, 11]
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    for mask, method, expected in ((right, "cls", [[0, 1], [6, 7]]), (right, "last_token", [[2, 3], [10, 11]]),
                                   (right, "mean", [[1, 2], [8, 9]]), (left, "cls", [[2, 3], [6, 7]]),
                                   (left, "last_token", [[4, 5], [10, 11]]), (left, "mean", [[3, 4], [8, 9]])):
        assert pool(hidden, mask, method).tolist() == expected


def test_the_mean_in_half_precision_does_not_overflow():
    hidden = torch.full((1, 512, 4), 200.0, dtype=torch.float16)  # their sum is beyond 65,504
    assert pool(hidden, torch.ones(1, 512, dtype=torch.long), "mean").tolist() == [[200.0] * 4]


def test_what_is_in_the_cache_is_not_encoded_again(encoder_config, texts, tmp_path, monkeypatch, loadings, capfd):
    """Not after an interruption either; equal texts are encoded once."""
    monkeypatch.setattr(module, "CHUNK", 10)
    write, distinct = module.EmbeddingCache.write, list(dict.fromkeys(texts))

    def write_once(cache, *args):
        write(cache, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as interruption, pytest.raises(KeyboardInterrupt):
        interruption.setattr(module.EmbeddingCache, "write", write_once)
        Encoder(encoder_config, cache=tmp_path / "cache").encode_passages(texts)
    loadings["texts"].clear()
    capfd.readouterr()
    vectors = Encoder(encoder_config, cache=tmp_path / "cache").encode_passages(texts)
    assert loadings["texts"] == distinct[10:] and loadings["models"] == 2
    assert f"{len(distinct) - 10}/{len(distinct) - 10}" in capfd.readouterr().err  # progress counts texts
    np.testing.assert_allclose(vectors, Encoder(encoder_config).encode_passages(texts), atol=1e-5)
    again = Encoder(encoder_config, cache=tmp_path / "cache").encode_passages(texts[::-1])
    assert np.array_equal(again, vectors[::-1]) and loadings["models"] == 3


def test_texts_in_parts_read_each_file_of_the_cache_once(encoder_config, texts, tmp_path, monkeypatch):
    """Of a corpus or of many queries that are encoded part by part, a part reads only files that hold texts of it."""
    read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda *given, **more: read.append(given) or load(*given, **more))
    texts, encoder = list(dict.fromkeys(texts))[:12], Encoder(encoder_config, cache=tmp_path / "cache")
    parts = [texts[start:start + 3] for start in range(0, len(texts), 3)]
    vectors = [encoder.encode_passages(part) for part in parts]
    assert read == []
    again = Encoder(encoder_config, cache=tmp_path / "cache")
    for part, expected in zip(parts, vectors, strict=True):
        assert np.array_equal(again.encode_passages(part), expected)
    assert len(read) == len(parts) + len(parts) - 1  # all of them once, to learn what they hold, and each later one
    again.encode_passages(["a text that no file holds"])
    assert len(read) == len(parts) + len(parts) - 1


CHANGES = {"pooling": {"pooling": "mean"}, "prompt": {"query_prompt": "Say: "}, "normalize": {"normalize": False},
           "lengths": {"query_max_len": 12, "passage_max_len": 24}}


@pytest.mark.parametrize("change", [*CHANGES, "weights", "config", "tokenizer", "code", "package"])
def test_a_changed_model_or_use_is_encoded_anew(encoder_config, texts, tmp_path, monkeypatch, change):
    before = Encoder(encoder_config, cache=tmp_path / "cache").encode_queries(texts)
    if change in CHANGES:
        encoder_config = dataclasses.replace(encoder_config, **CHANGES[change])
    elif change == "weights":
        path = f"{encoder_config.name}/model.safetensors"
        save_file({name: weight * 1.5 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    elif change == "config":
        edit_json(f"{encoder_config.name}/config.json", layer_norm_eps=0.5)
    elif change == "tokenizer":
        vocabulary = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
        ids = vocabulary["model"]["vocab"]
        ids["in"], ids["the"] = ids["the"], ids["in"]
        (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(vocabulary))
    elif change == "code":
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    else:
        version = module.importlib.metadata.version
        monkeypatch.setattr("importlib.metadata.version",
                            lambda name: "99.0" if name == "transformers" else version(name))
    after = Encoder(encoder_config, cache=tmp_path / "cache").encode_queries(texts)
    np.testing.assert_allclose(after, Encoder(encoder_config).encode_queries(texts), atol=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert change in ("code", "package") or abs(after - before).max() > 1e-3


@pytest.fixture
def computed(tmp_path):
    """A BERT of hidden size 4 whose weights are sines, and a Dense layer, so that no generator of random numbers has
    a say: the vectors of each way of encoding, in lists."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ask", "the", "otter", "sleeps", "at", "night"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    model = BertModel(BertConfig(vocab_size=len(words), hidden_size=4, num_hidden_layers=2, num_attention_heads=2,
                                 intermediate_size=8, max_position_embeddings=16))
    layer = Dense(4, 3, bias=False)
    for number, weights in enumerate([*model.parameters(), *layer.parameters()]):
        if weights.ndim == 2:  # the others are zeros and ones
            weights.data = torch.sin(torch.arange(weights.numel()) * 1.7 + number).view(weights.shape)
    model.save_pretrained(tmp_path)
    (tmp_path / "2_Dense").mkdir()
    layer.save(str(tmp_path / "2_Dense"))
    texts = ["the otter", "the otter sleeps at night and the otter sleeps", "night"]
    found = {}
    for pooling, changes in (("cls", {}), ("mean", {"dense": "2_Dense", "normalize": False}), ("last_token", {})):
        encoder = Encoder(EncoderConfig("", "", str(tmp_path), pooling, "ask ", "", 6, 8, **changes))
        found[pooling] = [encoder.encode_queries(texts).tolist(), encoder.encode_passages(texts).tolist()]
    tokens, starts = encoder.encode_passage_tokens(texts)
    return found | {"tokens": tokens.tolist(), "starts": starts.tolist()}


def test_vectors_move_only_with_the_version(computed):
    """Where this fails, a change of the code has moved vectors: raise encoder.VERSION, so that the cache of before is
    left, and add the new vectors to vectors.json under the new version."""
    stored = json.loads(Path(__file__).with_name("vectors.json").read_text())
    expected = stored[str(module.VERSION)]
    assert list(stored) == [str(version) for version in range(1, module.VERSION + 1)]
    assert all(one != other for one, other in itertools.combinations(stored.values(), 2))
    assert computed.keys() == expected.keys() and computed["starts"] == expected["starts"]
    for way in ("cls", "mean", "last_token"):
        for mine, theirs in zip(computed[way], expected[way], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0, err_msg=way)
    np.testing.assert_allclose(computed["tokens"], expected["tokens"], atol=1e-3, rtol=0)  # float16


def test_the_cache_is_that_of_an_identity(encoder_config, texts, tmp_path):
    """Names and notes are no part of it; that the model's own program code was run is."""
    for changes in ({}, {"label": "b", "title": "another", "training_data_note": "texts", "overrides": "pooling",
                         "note": "of a file"},
                    {"trusted": True}):
        Encoder(dataclasses.replace(encoder_config, **changes), cache=tmp_path / "cache").encode_queries(texts)
        assert len(list((tmp_path / "cache").iterdir())) == 1 + ("trusted" in changes)


def edit_json(path, **changes):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content | changes, file)


def test_a_model_exchanged_behind_our_back_is_noticed(encoder_config, texts, tmp_path):
    """Made before the training ended, used after: the weights loaded are not those that the cache was asked for."""
    encoder = Encoder(encoder_config, cache=tmp_path / "cache")
    edit_json(f"{encoder_config.name}/config.json", layer_norm_eps=0.5)
    with pytest.raises(UserError, match="has changed since this Encoder was made"):
        encoder.encode_queries(texts)
    assert not (tmp_path / "cache").exists()


def test_broken_weights_are_named_and_not_stored(encoder_config, texts, tmp_path):
    path = f"{encoder_config.name}/model.safetensors"
    broken = {name: torch.full_like(weight, torch.nan) for name, weight in load_file(path).items()}
    save_file(broken, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not finite: its weights are broken"):
        Encoder(encoder_config, cache=tmp_path / "cache").encode_passages(texts)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("config, device, supported, expected", [
    ({"dtype": "bfloat16"}, "cpu", True, torch.float32), ({"dtype": "float32"}, "cpu", True, torch.float32),
    ({"dtype": "float32"}, "cuda:0", True, torch.float16), ({"dtype": "float16"}, "cuda:0", True, torch.float16),
    ({}, "cuda:0", True, torch.float16), ({"dtype": None, "torch_dtype": None}, "cuda:0", True, torch.float16),
    ({"dtype": "bfloat16"}, "cuda:0", True, torch.bfloat16), ({"torch_dtype": "bfloat16"}, "cuda:0", True,
                                                              torch.bfloat16),
    ({"dtype": "bfloat16"}, "cuda:0", False, torch.float32),
])
def test_a_gpu_encodes_in_half_precision_that_the_model_can_take(tmp_path, monkeypatch, config, device, supported,
                                                                 expected):
    """Values of a model that was saved in bfloat16 may be beyond float16's largest, 65,504."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not
                        including_emulation)
    assert encoding_dtype(str(tmp_path), device) == expected


def test_vectors_of_each_precision_are_float32_and_have_a_cache_of_their_own(encoder_config, texts, tmp_path,
                                                                             monkeypatch):
    exact = Encoder(encoder_config, cache=tmp_path / "cache").encode_passages(texts)
    for number, dtype in enumerate((torch.bfloat16, torch.float16), start=2):
        monkeypatch.setattr(module, "encoding_dtype", lambda name, device, dtype=dtype: dtype)
        encoder = Encoder(encoder_config, cache=tmp_path / "cache")
        vectors, (tokens, _) = encoder.encode_passages(texts), encoder.encode_passage_tokens(texts[:3])
        assert next(encoder._model.parameters()).dtype == dtype
        assert vectors.dtype == np.float32 and tokens.dtype == np.float16
        assert (vectors != exact).any() and (vectors * exact).sum(axis=1).min() > 0.999
        assert len([path for path in (tmp_path / "cache").iterdir() if not path.name.startswith("tokens-")]) == number


def test_values_beyond_float16_are_no_broken_weights(encoder_config, texts, monkeypatch):
    """Float16 makes them infinite, and so the vectors not finite; bfloat16 has the range of float32."""
    path = f"{encoder_config.name}/model.safetensors"
    save_file({name: weight * 1e6 if "word_embeddings" in name else weight for name, weight in load_file(path).items()},
              path, metadata={"format": "pt"})
    exact = Encoder(encoder_config).encode_passages(texts)
    monkeypatch.setattr(module, "encoding_dtype", lambda name, device: torch.float16)
    with pytest.raises(UserError, match='not finite in float16: .* set "dtype": "bfloat16" in the config.json'):
        Encoder(encoder_config).encode_passages(texts)
    monkeypatch.setattr(module, "encoding_dtype", lambda name, device: torch.bfloat16)
    assert (Encoder(encoder_config).encode_passages(texts) * exact).sum(axis=1).min() > 0.99


def test_a_full_gpu_says_what_to_set(encoder_config, texts, monkeypatch):
    def fail(*arguments, **options):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(module, "pool", fail)
    with pytest.raises(UserError, match="set ENCODE_BATCH_SIZE"):
        Encoder(encoder_config).encode_passages(texts)
