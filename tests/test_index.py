import math

import faiss
import numpy as np

from embedding_finetune.index import bm25_run, dense_run
from embedding_finetune.metrics import per_query
from embedding_finetune.training_files import TestSet


def named(queries, passages):
    """A TestSet of which only the ids matter."""
    return TestSet(queries=dict.fromkeys(queries, ""), corpus=dict.fromkeys(passages, ""), qrels={})


def test_vectors_are_ranked_by_inner_product():
    run = dense_run(named(["q"], ["a", "b", "c"]), np.array([[1, 0]], np.float32), np.array([[0.2, 1], [0.9, 0], [0.5, 0]], np.float32))
    assert list(run["q"]) == ["b", "c", "a"]
    assert np.allclose(list(run["q"].values()), [0.9, 0.5, 0.2])


def test_the_ranking_is_that_of_a_full_sort():
    rng = np.random.default_rng(3)
    queries, passages = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(500, 8)).astype(np.float32)
    ids = [f"p{number}" for number in rng.permutation(500)]
    run = dense_run(named(map(str, range(20)), ids), queries, passages, depth=30)
    for number, scores in enumerate(queries @ passages.T):
        assert list(run[str(number)]) == [ids[index] for index in np.argsort(-scores)[:30]]


def test_equal_scores_are_ordered_by_id_even_across_the_cut():
    """40 passages tie, 5 are kept: they must be the first by id, wherever they stand in the index."""
    ids = [f"p{number:02d}" for number in np.random.default_rng(0).permutation(40)]
    run = dense_run(named(["q"], ids), np.ones((1, 2), np.float32), np.ones((40, 2), np.float32), depth=5)
    assert list(run["q"]) == ["p00", "p01", "p02", "p03", "p04"]


def test_only_queries_with_a_tie_at_the_cut_are_searched_again(monkeypatch):
    """Among thousands of queries one ties by chance; the others need not pay for it."""
    searched = []

    class Counted(faiss.IndexFlatIP):
        def search(self, queries, *args, **settings):
            searched.append(len(queries))
            return super().search(queries, *args, **settings)

    monkeypatch.setattr("faiss.IndexFlatIP", Counted)
    passages = np.array([[1, 1], [0.9, 1], [0.8, 1], [0.7, 1], [0.6, 1], [0.5, 1]], np.float32)
    run = dense_run(named(["a", "b"], "fedcba"), np.array([[1, 0], [0, 1]], np.float32), passages, depth=2)
    assert list(run["a"]) == ["f", "e"] and list(run["b"]) == ["a", "b"]
    assert searched == [2, 1]


def test_other_tools_see_ties_in_the_same_order():
    """trec_eval puts equal scores in the reverse order of ids; the scores of a run leave it no choice."""
    run = dense_run(named(["q"], ["b", "a", "c"]), np.ones((1, 2), np.float32), np.ones((3, 2), np.float32))
    scores = list(run["q"].values())
    assert scores[0] > scores[1] > scores[2] > scores[0] - 1e-5
    assert per_query({"q": {"a": 1}}, run)["recall@1"]["q"] == 1 and per_query({"q": {"c": 1}}, run)["mrr@10"]["q"] == 1 / 3


def test_a_corpus_smaller_than_the_depth_is_ranked_whole():
    run = dense_run(named(["q"], ["a", "b"]), np.ones((1, 2), np.float32), np.eye(2, dtype=np.float32), depth=100)
    assert sorted(run["q"]) == ["a", "b"]


def test_bm25_by_hand():
    """Lucene's BM25: idf * tf / (tf + k1 (1 - b + b length / mean length)), idf = ln(1 + (N - n + 0.5) / (n + 0.5))."""
    passages = {"a": "red fox jumps", "b": "red red house", "c": "green house stands tall here"}
    run = bm25_run(TestSet({"q": "red"}, passages, {}))
    idf, mean = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), (3 + 3 + 5) / 3

    def score(count, length):
        return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    assert list(run["q"]) == ["b", "a", "c"]
    assert np.allclose(list(run["q"].values())[:2], [score(2, 3), score(1, 3)], rtol=1e-5)


def test_bm25_stems_and_gives_a_ranking_to_every_query():
    passages = {"b": "houses are burning", "a": "a cat", "c": "the dog"}
    run = bm25_run(TestSet({"match": "burned house", "none": "zebra", "empty": ""}, passages, {}))
    assert next(iter(run["match"])) == "b"
    assert list(run["none"]) == list(run["empty"]) == ["a", "b", "c"]
