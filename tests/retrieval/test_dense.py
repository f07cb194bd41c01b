from types import SimpleNamespace

import numpy as np
import pytest

from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.files import UserError
from embedding_finetune.retrieval import dense as dense_module
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense


class Given:
    """In place of an encoder: a text is the name of its vector."""

    config = SimpleNamespace(title="given")

    def __init__(self, **vectors):
        self.vectors = {name: np.array(vector, np.float32) for name, vector in vectors.items()}

    def encode_queries(self, texts):
        return np.stack([self.vectors[text] for text in texts])

    encode_passages = encode_queries


def dense_run(queries, passages, query_vectors, passage_vectors, **options):
    """The run of a dense retriever for these ids and vectors."""
    corpus = {name: f"passage {name}" for name in passages}
    vectors = dict(zip(queries, query_vectors)) | dict(zip(corpus.values(), passage_vectors))
    found = Dense(Given(**vectors)).index(corpus)
    return found.search({name: name for name in queries}, **options)


def test_vectors_of_many_passages_are_mapped_from_a_file(monkeypatch, tmp_path):
    """Seven passages, three at a time: the same vectors and the same run, and no file left."""
    rng = np.random.default_rng(4)
    passages = rng.normal(size=(7, 5)).astype(np.float32)
    texts = {f"p{number}": f"text {number}" for number in range(7)}
    encoder = Given(q=passages[2], **dict(zip(texts.values(), passages)))
    encoder.cache = tmp_path
    in_memory = Dense(encoder).index(texts)
    monkeypatch.setattr(dense_module, "PART", 3)
    mapped = Dense(encoder).index(texts)
    assert isinstance(mapped.vectors, np.memmap) and (mapped.vectors == passages).all()
    assert mapped.search({"q": "q"}) == in_memory.search({"q": "q"}) and not list(tmp_path.iterdir())
    encoder.cache = tmp_path / "missing"
    with pytest.raises(UserError, match="cannot write the vectors of 7 passages to .*missing .*: free some space"):
        Dense(encoder).index(texts)


def test_the_ranking_is_that_of_a_full_sort():
    rng = np.random.default_rng(3)
    queries, passages = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(500, 8)).astype(np.float32)
    ids = [f"p{number}" for number in rng.permutation(500)]
    run = dense_run(list(map(str, range(20))), ids, queries, passages, depth=30)
    for number, scores in enumerate(queries @ passages.T):
        order = np.argsort(-scores)[:30]
        assert list(run[str(number)]) == [ids[index] for index in order]
        assert list(run[str(number)].values()) == pytest.approx(scores[order].tolist(), rel=1e-5)
    assert dense_run([], ["a"], [], [[1, 0]]) == {} == BM25().index({"a": "red fox"}).search({})
    assert sorted(dense_run(["q"], ["a", "b"], np.ones((1, 2)), np.eye(2), depth=100)["q"]) == ["a", "b"]


def test_equal_scores_are_ordered_by_id_across_the_cut_and_in_other_tools():
    """40 passages tie, 5 are kept; trec_eval orders equal scores by descending id, but those of a run differ."""
    ids = [f"p{number:02d}" for number in np.random.default_rng(0).permutation(40)]
    run = dense_run(["q"], ids, np.ones((1, 2)), np.ones((40, 2)), depth=5)
    assert list(run["q"]) == ["p00", "p01", "p02", "p03", "p04"]
    scores = np.array(list(run["q"].values()))
    assert (np.diff(scores) < 0).all() and scores[0] - scores[4] < 1e-5
    assert per_query({"q": {"p02": 1}}, run)["mrr@10"]["q"] == 1 / 3


def test_copies_of_a_query_are_left_out_and_the_depth_counts_the_others():
    ids, vectors = ["a", "b", "c", "d"], [[1, 0], [0.9, 0], [0.8, 0], [0.7, 0]]
    run = dense_run(["a", "q"], ids, [[1, 0], [1, 0]], vectors, depth=2, copies={"q": ["a", "c"]})
    assert list(run["a"]) == ["a", "b"] and list(run["q"]) == ["b", "d"]
    assert dense_run(["q"], ["a"], [[1, 0]], [[1, 0]], copies={"q": ["a"]}) == {"q": {}}
    words = BM25().index({"a": "red fox", "b": "red house", "c": "red red", "d": "blue"})
    assert sorted(words.search({"q": "red fox"}, depth=2, copies={"q": ["a"]})["q"]) == ["b", "c"]
