"""An index in Milvus: exact where it searches everything, uploaded once, with errors of one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from embedding_finetune.contrib import milvus
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.ann import make_index
from embedding_finetune.retrieval.exact_search import exact_search


@pytest.fixture
def vectors():
    """Passages, some of them equal, and queries."""
    passages = np.random.default_rng(3).normal(size=(300, 16)).astype(np.float32)
    passages[40:60] = passages[7]
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    return passages, passages[:20] + np.float32(0.1)


@pytest.fixture
def where(tmp_path):
    return f"milvus:{tmp_path}/milvus.db"


@pytest.mark.parametrize("kind", ["", "#HNSW"])
def test_an_index_that_searches_everything_is_exact(kind, vectors, where, tmp_path):
    passages, queries = vectors
    made = make_index(where + kind).build(passages, tmp_path)
    again = make_index(where + kind).load(passages, tmp_path)  # from the disk
    for depth in (1, 10, 305):
        expected = exact_search(queries, passages, depth)
        for index in (made, again):
            scores, positions = index.search_batch(queries, depth)
            assert (positions == expected[1]).all() and scores == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("spec, message", [
    ("milvus:http://127.0.0.1:9", "Milvus at http://127.0.0.1:9 failed .*is it running"),
    ("milvus:/proc/none/x.db", "cannot create the folder of /proc/none/x.db: .*; name another in INDEX"),
    ("milvus:folder", "INDEX=milvus:folder: an embedded Milvus is a file that ends with .db"),
    ("milvus:x.db#NONE", "#NONE: the index type of Milvus must be one of FLAT, AUTOINDEX, HNSW")])
def test_what_cannot_be_is_one_line(spec, message, vectors, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        make_index(spec).build(vectors[0], tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_of_other_vectors_is_refused(vectors, where, tmp_path):
    passages = vectors[0]
    made = make_index(where).build(passages, tmp_path)
    with pytest.raises(UserError, match="has 300 of the 299 vectors of .*: remove that folder"):
        make_index(where).load(passages[1:], tmp_path)
    made.client.drop_collection(made.name)
    with pytest.raises(UserError, match="has none of the 300 vectors"):
        make_index(where).load(passages, tmp_path)


def test_an_interrupted_upload_continues_and_nothing_is_sent_twice(vectors, where, tmp_path, monkeypatch):
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
    with pytest.raises(KeyboardInterrupt):
        make_index(where).build(passages, tmp_path)
    sent.append("on")
    index = make_index(where).build(passages, tmp_path)
    make_index(where).build(passages, tmp_path)  # all there
    assert sent == [0, 50, 100, "on", 150, 200, 250]
    assert (index.search_batch(queries, 10)[1] == exact_search(queries, passages, 10)[1]).all()
    other = make_index(where).build(passages[::-1], tmp_path)  # other vectors are another collection
    assert other.name != index.name
    assert (index.search_batch(queries, 3)[1] == exact_search(queries, passages, 3)[1]).all()


def test_a_database_that_another_process_has_open_is_one_line(vectors, where, tmp_path):
    make_index(where).build(vectors[0], tmp_path)
    script = ("import sys, numpy as np, pathlib; from embedding_finetune.files import run_command_line;"
              "from embedding_finetune.retrieval.ann import make_index;"
              "where, folder = sys.argv[1:];"
              "run_command_line(lambda: make_index(where).load(np.zeros((300, 16)), pathlib.Path(folder)))")
    done = subprocess.run([sys.executable, "-c", script, where, str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "another process may have it open" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and json.loads((tmp_path / "milvus.json").read_text())["collection"]
