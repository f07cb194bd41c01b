"""Where vectors are looked for: exactly, by faiss, in Milvus. All are held against a full sort of all products."""

import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from embedding_finetune.contrib import milvus
from embedding_finetune.files import UserError
from embedding_finetune.retrieval import ann as module
from embedding_finetune.retrieval.ann import ExactIndex, make_index, recall_vs_exact
from embedding_finetune.retrieval.exact_search import exact_search

COUNT, DIM = 300, 16
EVERYTHING = "IVF8,Flat nprobe=8", "HNSW16 efSearch=300", "IVF8,SQ8 nprobe=8", "milvus", "milvus#HNSW", "flat"


@pytest.fixture
def vectors():
    """Passages of which some are equal, and queries."""
    rng = np.random.default_rng(3)
    passages = rng.normal(size=(COUNT, DIM)).astype(np.float32)
    passages[40:60] = passages[7]
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    return passages, passages[:20] + np.float32(0.1)


def named(where, folder):
    """The value of INDEX for one of EVERYTHING."""
    return where.replace("milvus", f"milvus:{folder}/milvus.db")


@pytest.mark.parametrize("where", EVERYTHING)
def test_an_index_that_looks_everywhere_is_exact(where, vectors, tmp_path):
    passages, queries = vectors
    made = make_index(named(where, tmp_path)).build(passages, tmp_path)
    again = make_index(named(where, tmp_path)).load(passages, tmp_path)  # from the disk
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
    ("IVF8,Flat reach=4", "reach=4 is not for"),
    ("milvus:http://127.0.0.1:9", "Milvus at http://127.0.0.1:9 failed .*is it running"),
    ("milvus:/proc/none/x.db", "cannot create the folder of /proc/none/x.db: .*; name another in INDEX"),
    ("milvus:{folder}/x.db#NONE", "#NONE: the index type of Milvus must be one of FLAT, AUTOINDEX, HNSW")])
def test_what_cannot_be_is_one_line(where, says, vectors, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        make_index(where.format(folder=tmp_path)).build(vectors[0], tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_of_other_vectors_is_refused(vectors, tmp_path):
    passages = vectors[0]
    make_index("SQ8").build(passages, tmp_path)
    with pytest.raises(UserError, match="faiss.index holds 300 vectors of 16 dimensions, compared with 299 of 16 here: "
                                        "remove"):
        make_index("SQ8").load(passages[1:], tmp_path)
    where = f"milvus:{tmp_path}/milvus.db"
    made = make_index(where).build(passages, tmp_path)
    with pytest.raises(UserError, match="has 300 of the 299 vectors of .*: remove that folder"):
        make_index(where).load(passages[1:], tmp_path)
    made.client.drop_collection(made.name)
    with pytest.raises(UserError, match="has none of the 300 vectors"):
        make_index(where).load(passages, tmp_path)


def test_an_interrupted_load_into_milvus_goes_on_and_nothing_is_sent_twice(vectors, tmp_path, monkeypatch):
    passages, queries = vectors
    monkeypatch.setattr(milvus, "SENT", 50)
    client, sent = milvus.connect(str(tmp_path / "milvus.db")), []
    upsert = client.upsert

    def counted(name, rows):
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(rows[0]["id"])
        return upsert(name, rows)

    monkeypatch.setattr(client, "upsert", counted)
    where = f"milvus:{tmp_path}/milvus.db"
    with pytest.raises(KeyboardInterrupt):
        make_index(where).build(passages, tmp_path)
    sent.append("on")
    index = make_index(where).build(passages, tmp_path)
    make_index(where).build(passages, tmp_path)  # all there
    assert sent == [0, 50, 100, "on", 150, 200, 250]
    assert (index.search_batch(queries, 10)[1] == exact_search(queries, passages, 10)[1]).all()
    other = make_index(where).build(passages[::-1], tmp_path)  # other vectors are another collection
    assert other.name != index.name
    assert (index.search_batch(queries, 3)[1] == exact_search(queries, passages, 3)[
        1]).all()


def test_an_embedded_milvus_that_another_process_has_open_is_one_line(vectors, tmp_path):
    make_index(f"milvus:{tmp_path}/milvus.db").build(vectors[0], tmp_path)
    script = ("import sys, numpy as np, pathlib; from embedding_finetune.files import run_command_line;"
              "from embedding_finetune.retrieval.ann import make_index;"
              "where, folder = sys.argv[1:];"
              "run_command_line(lambda: make_index(where).load(np.zeros((300, 16)), pathlib.Path(folder)))")
    done = subprocess.run([sys.executable, "-c", script, f"milvus:{tmp_path}/milvus.db", str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "another process may have it open" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and json.loads((tmp_path / "milvus.json").read_text())["collection"]
