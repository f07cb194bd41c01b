"""A search of all passages by their tokens (docs/token_search.py), against MaxSim with every one of them."""

import importlib.util
import sys
from unittest import mock

import pytest
from tiny import tiny_pairs, tiny_texts

from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.retrieval.late_interaction import LateInteraction
from embedding_finetune.settings import ROOT

with mock.patch.object(sys, "path", [str(ROOT / "docs"), *sys.path]):
    SPEC = importlib.util.spec_from_file_location("token_search", ROOT / "docs" / "token_search.py")
    token_search = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(token_search)
MultiVectorSearch = token_search.MultiVectorSearch

QUERIES = {"q1": "the otter of the north", "q2": "where does it sleep", "p7": "the lynx among the reeds"}


@pytest.fixture(scope="module")
def stage_of_all(tiny_settings):
    """LateInteraction of the tiny model, by the type of its store."""
    config = EncoderConfig("raw", "tiny", tiny_settings["BASE_MODEL"], pooling="mean", query_prompt="",
                           passage_prompt="", query_max_len=16, passage_max_len=24)
    return lambda dtype="float16": LateInteraction(Encoder(config), dtype)


@pytest.fixture(scope="module")
def corpus():
    texts = tiny_texts(tiny_pairs(60))[:60]
    return {f"p{number}": text for number, text in enumerate(texts)} | {"p90": texts[3], "p10": texts[3], "empty": ""}


def everything(stage, corpus, depth):
    """The run of all passages by MaxSim, best first and equal scores by id."""
    run = stage.index(corpus).score(QUERIES, {query: list(corpus) for query in QUERIES})
    return {query: list(ranking)[:depth] for query, ranking in run.items()}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_with_all_tokens_in_reach_it_is_max_sim_with_every_passage(stage_of_all, corpus, dtype):
    found = MultiVectorSearch(stage_of_all(dtype), reach=10**6).index(corpus).search(QUERIES, depth=20)
    assert {query: list(ranking) for query, ranking in found.items()} == everything(stage_of_all(dtype), corpus, 20)
    exact = stage_of_all(dtype).index(corpus).score(QUERIES, {query: list(found[query]) for query in QUERIES})
    for query in QUERIES:
        scores = [exact[query][passage] for passage in found[query]]
        assert list(found[query].values()) == pytest.approx(scores, abs=1e-6)


def test_what_is_out_of_reach_is_not_found_and_lists_find_nearly_all(stage_of_all, corpus):
    near = MultiVectorSearch(stage_of_all(), reach=3).index(corpus).search(QUERIES, depth=63)
    assert all(0 < len(ranking) < 63 for ranking in near.values())
    assert all(list(ranking)[0] == everything(stage_of_all(), corpus, 1)[query][0] for query, ranking in near.items())
    lists = MultiVectorSearch(stage_of_all(), "IVF4,SQ8 nprobe=4", reach=10**6).index(corpus)
    assert [list(ranking) for ranking in lists.search(QUERIES, 20).values()] == [*everything(stage_of_all(), corpus, 20)
                                                                               .values()]


def test_many_vectors_get_lists(stage_of_all, corpus, monkeypatch):
    monkeypatch.setattr(token_search, "FLAT", 10)
    assert MultiVectorSearch(stage_of_all()).index(corpus).factory.startswith("IVF")
