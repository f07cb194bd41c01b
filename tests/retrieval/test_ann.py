"""Exact and approximate search, checked against a full sort of all products."""

import faiss
import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.retrieval import ann as module
from embedding_finetune.retrieval.ann import ExactIndex, make_index, recall_vs_exact
from embedding_finetune.retrieval.exact_search import exact_search

COUNT, DIM = 300, 16
EVERYTHING = "IVF8,Flat nprobe=8", "HNSW16 efSearch=300", "IVF8,SQ8 nprobe=8", "flat"  # these find all


@pytest.fixture
def vectors():
    """Passages of which some are equal, and queries."""
    rng = np.random.default_rng(3)
    passages = rng.normal(size=(COUNT, DIM)).astype(np.float32)
    passages[40:60] = passages[7]
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    return passages, passages[:20] + np.float32(0.1)


@pytest.mark.parametrize("where", EVERYTHING)
def test_an_index_that_looks_everywhere_is_exact(where, vectors, tmp_path):
    passages, queries = vectors
    made = make_index(where).build(passages, tmp_path)
    again = make_index(where).load(passages, tmp_path)  # from the disk
    for depth in (1, 10, COUNT + 5):
        expected = exact_search(queries, passages, depth)
        for index in (made, again):
            scores, positions = index.search_batch(queries, depth)
            assert (positions == expected[1]).all()
            assert scores == pytest.approx(expected[0], abs=1e-5)


def test_one_that_looks_less_far_is_held_against_the_exact_one(vectors, tmp_path, monkeypatch):
    passages, queries = vectors
    monkeypatch.setattr(module, "AT_LEAST", 10)
    index = make_index("IVF32,PQ4x4 nprobe=1").build(passages, tmp_path)
    found = recall_vs_exact(index, queries)
    exact, proposed = (one.search_batch(queries, 10)[1].tolist() for one in (ExactIndex(passages), index))
    by_hand = sum(len({*some} & {*all_}) for some, all_ in zip(proposed, exact)) / 200
    assert found["recall"] == pytest.approx(by_hand) and 0 < by_hand < 1
    assert (found["depth"], found["queries"]) == (10, 20) and min(found["ms"], found["exact_ms"]) > 0
    scores, positions = index.search_batch(queries, 10)
    there = positions >= 0
    products = (queries @ passages.T)[np.arange(20)[:, None], positions]
    assert scores[there] == pytest.approx(products[there], abs=1e-6)  # not those of its codes


def test_an_index_looks_as_far_as_it_is_told(vectors, tmp_path):
    passages = vectors[0]

    def lists(where):
        return faiss.extract_index_ivf(make_index(where).build(passages, tmp_path).index).nprobe

    assert lists("IVF32,Flat") == 2 and lists("IVF32,Flat nprobe=9") == 9 and lists("PCA8,IVF8,Flat nprobe=3") == 3
    graph = make_index("HNSW8,SQ8 efSearch=77").build(passages, tmp_path).index
    assert faiss.downcast_index(graph).hnsw.efSearch == 77


@pytest.mark.parametrize("where, says", [
    ("HNSX", "faiss cannot build the index 'HNSX' of 300 vectors of 16 dimensions: could not parse"),
    ("IVF8,PQ5", "faiss cannot build the index 'IVF8,PQ5'"),
    ("IVF512,Flat", "faiss cannot build the index 'IVF512,Flat'"),
    ("HNSW8 nprobe=4", "nprobe=4 is not for HNSW8; nprobe is for IVF"), ("SQ8 efSearch=4", "efSearch=4 is not for SQ8"),
    ("IVF8,Flat nprobe=many", "nprobe=many is not for"), ("IVF8,Flat nprobe=0", "nprobe=0 is not for"),
    ("IVF8,Flat reach=4", "reach=4 is not for")])
def test_what_cannot_be_is_one_line(where, says, vectors, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        make_index(where).build(vectors[0], tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_of_other_vectors_is_refused(vectors, tmp_path):
    passages = vectors[0]
    make_index("SQ8").build(passages, tmp_path)
    with pytest.raises(UserError, match="faiss.index holds 300 vectors of 16 dimensions, compared with 299 of 16 here: "
                                        "remove"):
        make_index("SQ8").load(passages[1:], tmp_path)
