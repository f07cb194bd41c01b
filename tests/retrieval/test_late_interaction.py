"""MaxSim against a plain loop and sentence-transformers; token vectors that are kept."""

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.util.similarity import mean_maxsim
from tiny import tiny_pairs, tiny_texts

from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.multi_vector import maxsim_candidates
from embedding_finetune.retrieval.late_interaction import LateInteraction

QUERIES = {"q1": "the otter of the north", "q2": "where does it sleep"}


@pytest.fixture
def encoder_config(tiny_settings, tmp_path):
    folder = shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "model")
    return EncoderConfig("raw", "tiny", str(folder), pooling="cls", query_prompt="ask: ", passage_prompt="",
                    query_max_len=16, passage_max_len=24)


@pytest.fixture(scope="module")
def corpus():
    return {f"p{number}": text * (number % 3 + 1) for number, text in enumerate(tiny_texts(tiny_pairs(12))[:12])}


def test_max_sim_is_that_of_a_plain_loop_and_of_sentence_transformers():
    rng = np.random.default_rng(1)
    query, passages = rng.standard_normal((3, 8), dtype=np.float32), [rng.standard_normal((n, 8)).astype(np.float16)
                                                                      for n in (4, 0, 1, 7)]
    vectors, starts = np.concatenate(passages), np.cumsum([0, *map(len, passages)])
    found = maxsim_candidates(query, vectors, starts, [3, 1, 0, 2])
    plain = [np.mean([max(float(token @ other) for other in passage.astype(np.float32)) for token in query])
             if len(passage) else -1 for passage in (passages[place] for place in (3, 1, 0, 2))]
    assert found.dtype == np.float32 and found == pytest.approx(plain, abs=1e-5)
    other = mean_maxsim([torch.tensor(query)], [torch.tensor(passages[place]).float() for place in (3, 0, 2)])
    assert found[[0, 2, 3]] == pytest.approx(other[0].numpy(), abs=1e-5)
    assert maxsim_candidates(query, vectors, starts, [1]).tolist() == [-1]
    assert not len(maxsim_candidates(query, vectors, starts, []))


def test_scores_are_those_of_sentence_transformers_multi_vector_encoder(encoder_config, corpus):
    """Special tokens left out, prompts in, cut at each side's length."""
    stage = LateInteraction(Encoder(encoder_config)).index(corpus)
    run = stage.score(QUERIES, {query: list(corpus) for query in QUERIES})
    encoder = Transformer(encoder_config.name, max_seq_length=encoder_config.passage_max_len)
    special = encoder.tokenizer.all_special_tokens
    model = MultiVectorEncoder(modules=[
        encoder, MultiVectorMask(special, skiplist_tasks=["query", "document"]),
        Normalize(module_input_name="token_embeddings")], similarity_fn_name="meanmaxsim")
    queries = model.encode_query([encoder_config.query_prompt + text for text in QUERIES.values()])
    scores = model.similarity(queries, model.encode_document(list(corpus.values()))).numpy()
    for row, query in zip(scores, QUERIES):
        assert [run[query][passage] for passage in corpus] == pytest.approx(row.tolist(), abs=1e-3)  # float16


def test_token_vectors_are_kept_and_do_not_depend_on_other_texts(encoder_config, corpus, tmp_path, monkeypatch):
    vectors, starts = Encoder(encoder_config, cache=tmp_path / "cache").encode_passage_tokens(corpus.values())
    assert vectors.dtype == np.float16 and len(starts) == len(corpus) + 1 and starts[-1] == len(vectors)
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)
    alone, _ = Encoder(encoder_config).encode_passage_tokens([corpus["p3"]])
    assert alone.astype(np.float32) == pytest.approx(vectors[starts[3]:starts[4]].astype(np.float32), abs=2e-3)
    monkeypatch.setattr(Encoder, "_load", lambda self: pytest.fail("it is encoded again"))
    again = Encoder(encoder_config, cache=tmp_path / "cache").encode_passage_tokens(corpus.values())
    assert np.array_equal(again[0], vectors) and isinstance(again[0], np.memmap)


@pytest.mark.parametrize("how, linked", [((), True), (("int8",), False), (("float16", 2), False)])
def test_what_an_index_stores_does_not_take_the_space_of_the_cache_again(encoder_config, corpus, tmp_path, how, linked):
    stage = LateInteraction(Encoder(encoder_config, cache=tmp_path / "cache"), *how).index(corpus)
    stage.save(tmp_path)
    [stored] = (tmp_path / "cache").rglob("vectors.raw")
    assert stored.samefile(tmp_path / "token_vectors.raw") == linked
    shutil.rmtree(tmp_path / "cache")
    loaded = LateInteraction(Encoder(encoder_config), *how).load(tmp_path)
    assert np.array_equal(loaded.vectors, stage.vectors) and np.array_equal(loaded.starts, stage.starts)
    assert isinstance(loaded.vectors, np.memmap) and loaded.vectors.dtype == stage.vectors.dtype


def test_an_index_on_another_file_system_than_the_cache_is_a_copy(encoder_config, corpus, tmp_path, monkeypatch):
    def fails(*paths):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fails)
    stage = LateInteraction(Encoder(encoder_config, cache=tmp_path / "cache")).index(corpus)
    stage.save(tmp_path)
    assert np.array_equal(LateInteraction(Encoder(encoder_config)).load(tmp_path).vectors, stage.vectors)


def test_a_query_without_a_token_is_refused_by_name(encoder_config, corpus):
    stage = LateInteraction(Encoder(EncoderConfig(**vars(encoder_config) | {"query_prompt": ""}))).index(corpus)
    with pytest.raises(UserError, match="the query '\\\\x00' has no tokens"):
        stage.score({"q": "\0"}, {"q": ["p1"]})


def test_broken_weights_are_said(encoder_config, corpus):
    encoder = Encoder(encoder_config)
    encoder._load()
    next(encoder._model.parameters()).data[:] = float("nan")
    for encode in (encoder.encode_passage_tokens, encoder.encode_query_tokens):
        with pytest.raises(UserError, match="not finite"):
            encode(corpus.values())


def test_a_smaller_store_has_nearly_the_same_scores(encoder_config, corpus):
    """int8 errs by less than a hundredth; half of the vectors are half of the bytes; one vector is the mean of all."""
    every = {query: list(corpus) for query in QUERIES}
    stages = {name: LateInteraction(Encoder(encoder_config), *how).index(corpus) for name, how in {
        "plain": (), "int8": ("int8",), "half": ("float16", 2), "one": ("float16", 1000)}.items()}
    plain, int8 = (stages[name].score(QUERIES, every) for name in ("plain", "int8"))
    for query in QUERIES:
        assert [int8[query][passage] for passage in corpus] == pytest.approx(
            [plain[query][passage] for passage in corpus], abs=0.01)
    sizes = {name: stage.bytes_per_passage for name, stage in stages.items()}
    assert sizes["int8"] * 2 == sizes["plain"] and 0.4 < sizes["half"] / sizes["plain"] <= 0.5
    vectors, starts = stages["plain"].vectors, stages["plain"].starts
    assert len(stages["one"].vectors) == len(corpus)
    mean = vectors[:starts[1]].astype(np.float32).mean(axis=0)
    assert stages["one"].vectors[0].astype(np.float32) == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)


def test_too_little_space_is_said_before_it_is_used_up(encoder_config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_finetune.models.encoder.TOKEN_CHUNK", 4)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(UserError, match="the token vectors of 12 passages take .*RERANKERS"):
        Encoder(encoder_config, cache=tmp_path / "cache").encode_passage_tokens(corpus.values())
    assert not [path for path in (tmp_path / "cache").rglob("*") if "vectors.raw" in path.name]
