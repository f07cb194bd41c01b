import math
from types import SimpleNamespace

import numpy as np
import pytest

from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.files import UserError
from embedding_finetune.retrieval import base as module
from embedding_finetune.retrieval import dense as dense_module
from embedding_finetune.retrieval.base import Retriever, break_ties, make_retriever, retriever
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.fusion import reciprocal_rank_fusion, weighted_sum_fusion
from embedding_finetune.retrieval.trec import pad_run


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


def test_vectors_are_ranked_by_inner_product():
    run = dense_run(["q"], ["a", "b", "c"], [[1, 0]], [[0.2, 1], [0.9, 0], [0.5, 0]])
    assert list(run["q"]) == ["b", "c", "a"]
    assert np.allclose(list(run["q"].values()), [0.9, 0.5, 0.2])


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
        assert list(run[str(number)]) == [ids[index] for index in np.argsort(-scores)[:30]]


def test_nothing_to_search_for_gives_nothing():
    assert dense_run([], ["a"], [], [[1, 0]]) == {} == BM25().index({"a": "red fox"}).search({})


def test_equal_scores_are_ordered_by_id_even_across_the_cut():
    """40 passages tie, 5 are kept: they must be the first by id, wherever they stand in the index."""
    ids = [f"p{number:02d}" for number in np.random.default_rng(0).permutation(40)]
    run = dense_run(["q"], ids, np.ones((1, 2)), np.ones((40, 2)), depth=5)
    assert list(run["q"]) == ["p00", "p01", "p02", "p03", "p04"]


def test_other_tools_see_ties_in_the_same_order():
    """trec_eval puts equal scores in the reverse order of ids; the scores of a run leave it no choice."""
    run = dense_run(["q"], ["b", "a", "c"], np.ones((1, 2)), np.ones((3, 2)))
    scores = list(run["q"].values())
    assert scores[0] > scores[1] > scores[2] > scores[0] - 1e-5
    assert per_query({"q": {"a": 1}}, run)["recall@1"]["q"] == 1
    assert per_query({"q": {"c": 1}}, run)["mrr@10"]["q"] == 1 / 3


def test_scores_are_moved_apart_by_the_smallest_steps():
    step = np.nextafter(np.float32(1), np.float32(0))
    apart = break_ties([[2.0, 1.0, 1.0, 0.5], [1.0, 1.0, step, 0.0]])
    assert apart.dtype == np.float32 and (np.diff(apart, axis=1) < 0).all()
    assert apart[0].tolist() == [2.0, 1.0, step, 0.5]
    assert apart[1].tolist() == [1.0, step, np.nextafter(step, np.float32(0)), 0.0]


def test_a_corpus_smaller_than_the_depth_is_ranked_whole():
    assert sorted(dense_run(["q"], ["a", "b"], np.ones((1, 2)), np.eye(2), depth=100)["q"]) == ["a", "b"]
    assert list(dense_run(["q"], ["a"], np.ones((1, 2)), np.ones((1, 2)))["q"]) == ["a"]


def test_a_query_does_not_find_itself_and_others_lose_nothing():
    """Passage `a` has the id of a query, as in ArguAna; the depth counts what is left, and for query `q` it stays."""
    ids = ["a", "b", "c", "d"]
    vectors = [[1, 0], [0.9, 0], [0.8, 0], [0.7, 0]]
    run = dense_run(["a", "q"], ids, [[1, 0], [1, 0]], vectors, depth=2)
    assert list(run["a"]) == ["b", "c"] and list(run["q"]) == ["a", "b"]
    assert list(dense_run(["a"], ids, [[1, 0]], vectors, depth=100)["a"]) == ["b", "c", "d"]
    assert list(dense_run(["d"], ids, [[1, 0]], vectors, depth=2)["d"]) == ["a", "b"]
    assert dense_run(["a"], ["a"], [[1, 0]], [[1, 0]]) == {"a": {}}
    words = BM25().index({"a": "red fox", "b": "red house", "c": "red red", "d": "blue"})
    assert sorted(words.search({"a": "red fox"}, depth=2)["a"]) == ["b", "c"]
    assert list(words.search({"a": "red fox", "q": "red fox"}, depth=1)["q"]) == ["a"]


def test_bm25_by_hand():
    """Lucene's BM25: idf * tf / (tf + k1 (1 - b + b length / mean length)), idf = ln(1 + (N - n + 0.5) / (n + 0.5))."""
    found = BM25().index({"a": "red fox jumps", "b": "red red house", "c": "green house stands tall here"})
    run = found.search({"q": "red"})
    idf, mean = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), (3 + 3 + 5) / 3

    def score(count, length):
        return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    assert list(run["q"]) == ["b", "a"]
    assert np.allclose(list(run["q"].values()), [score(2, 3), score(1, 3)], rtol=1e-5)


def test_bm25_stems_and_returns_no_passage_without_a_word_in_common():
    found = BM25().index({"b": "houses are burning", "a": "a cat", "c": "the dog", "d": ""})
    run = found.search({"match": "burned house", "none": "zebra", "empty": "", "stop words": "are the a"})
    assert list(run.pop("match")) == ["b"]
    assert run == {"none": {}, "empty": {}, "stop words": {}}
    scores, positions = found.search_batch(["burned house", "zebra"], 3)
    assert positions.tolist() == [[0, -1, -1], [-1, -1, -1]] and scores[0, 0] > 0 and not scores[1].any()


def test_bm25_numbers_words_by_where_it_meets_them_whatever_the_process():
    vocabulary = BM25().index({"b": "otter willow", "a": "moon otter"}).bm25.vocab_dict
    assert {word: number for word, number in vocabulary.items() if word} == {"otter": 0, "willow": 1, "moon": 2}


def test_bm25_breaks_ties_by_id_across_the_cut():
    ids = [f"p{number:02d}" for number in np.random.default_rng(0).permutation(40)]
    found = BM25().index(dict.fromkeys(ids, "red fox") | {"other": "blue house"})
    run = found.search({"q": "red"}, depth=5)
    assert list(run["q"]) == ["p00", "p01", "p02", "p03", "p04"] and len(set(run["q"].values())) == 5
    assert list(found.search({"q": "red"}, depth=1000)["q"]) == sorted(ids)


@pytest.mark.parametrize("corpus", [{"a": "the of and"}, {"a": ""}, {"a": "", "b": "!?"}])
def test_a_corpus_without_a_word_matches_nothing(corpus):
    assert BM25().index(corpus).search({"q": "red", "e": ""}) == {"q": {}, "e": {}}


def test_a_corpus_of_one_passage_is_searched():
    assert list(BM25().index({"a": "red fox"}).search({"q": "fox"})["q"]) == ["a"]


def test_a_registered_class_is_found_by_its_label(monkeypatch):
    """`build` and `top` are all that it has to bring."""
    monkeypatch.setattr(module, "RETRIEVERS", dict(module.RETRIEVERS))

    @retriever("shortest")
    class Shortest(Retriever):
        about = "the shortest passages"

        def build(self, texts):
            self.lengths = np.array(list(map(len, texts)))

        def search_batch(self, texts, depth):
            order = np.lexsort((self.tie_rank, self.lengths))[:depth]
            return np.tile(-self.lengths[order].astype(np.float32), (len(texts), 1)), np.tile(order, (len(texts), 1))

    found = make_retriever("shortest")
    assert isinstance(found, Shortest) and isinstance(make_retriever("bm25"), BM25)
    run = found.index({"c": "xx", "b": "x", "a": "xx", "d": "xxx"}).search({"q": "?", "b": "?"}, depth=3)
    assert list(run["q"]) == ["b", "a", "c"] and list(run["b"]) == ["a", "c", "d"]
    with pytest.raises(UserError, match="RETRIEVERS=longest is unknown: it must list some of bm25, shortest"):
        make_retriever("longest")


def test_a_query_that_is_a_passage_changes_no_other_query():
    """The retriever finds another passage when it is asked for one more, as an approximate one may."""
    class Shallow(Retriever):
        def build(self, texts):
            pass

        def search_batch(self, texts, depth):
            return np.ones((len(texts), depth), np.float32), np.full((len(texts), depth), depth)

    found = Shallow().index(dict.fromkeys("abcd", "?"))
    assert found.search({"q": "?", "a": "?"}, depth=1)["q"] == found.search({"q": "?"}, depth=1)["q"]


WORDS = {"q": {"a": 8.0, "b": 4.0, "c": 2.0}}
DENSE = {"q": {"b": 0.9, "d": 0.8, "a": 0.5}}


def test_ranks_are_fused_by_hand():
    fused = reciprocal_rank_fusion(WORDS, DENSE)["q"]
    assert list(fused) == ["b", "a", "d", "c"]
    assert list(fused.values()) == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])


def test_scores_are_fused_by_hand():
    """BM25 over its best: a 1, b 0.5, c 0.25; what the dense run lacks gets its lowest, 0.5; `d` shares no word."""
    fused = weighted_sum_fusion(WORDS, DENSE, weight=0.4)["q"]
    assert fused == pytest.approx({"b": 0.9 + 0.2, "a": 0.5 + 0.4, "d": 0.8, "c": 0.5 + 0.1})
    assert list(fused) == ["b", "a", "d", "c"]
    assert list(weighted_sum_fusion(WORDS, DENSE, weight=0)["q"])[:2] == ["b", "d"]
    assert list(weighted_sum_fusion(WORDS, DENSE, weight=5)["q"])[0] == "a"


def test_beyond_the_depth_a_passage_may_have_shared_words():
    """The BM25 run is full: `d` is beyond its depth, and can have had its lowest score at most."""
    fused = weighted_sum_fusion(WORDS, DENSE, weight=0.4, depth=3)["q"]
    assert fused == pytest.approx({"b": 0.9 + 0.2, "a": 0.5 + 0.4, "d": 0.8 + 0.1})


def test_equal_scores_are_ordered_by_id_and_moved_apart():
    fused = reciprocal_rank_fusion({"q": {"b": 2.0, "a": 1.0}}, {"q": {"a": 2.0, "b": 1.0}})["q"]
    assert list(fused) == ["a", "b"] and np.float32(fused["a"]) > np.float32(fused["b"])
    assert list(reciprocal_rank_fusion(WORDS, DENSE, depth=2)["q"]) == ["b", "a"]


def test_padding_gets_no_credit_in_a_fusion():
    """A run that was padded for its file fuses as the bare one does, whatever the padding says first."""
    corpus, bare = dict.fromkeys("abcdefgh", ""), {"q": {"a": 8.0, "b": 4.0}, "none": {}}
    dense = {"q": {"h": 0.9, "b": 0.8, "a": 0.5}, "none": {"h": 0.9, "c": 0.2}}
    full = pad_run(bare, corpus, 100)
    assert list(full["q"]) == list("abcdefgh") and list(full["none"])[0] == "a"
    assert reciprocal_rank_fusion(full, dense) == reciprocal_rank_fusion(bare, dense)
    assert weighted_sum_fusion(full, dense, 0.4) == weighted_sum_fusion(bare, dense, 0.4)
    assert list(reciprocal_rank_fusion(full, dense)["none"]) == list(weighted_sum_fusion(full, dense, 1)["none"]) == ["h", "c"]
    assert weighted_sum_fusion(full, dense, 1)["none"] == pytest.approx(dense["none"])


def test_where_nothing_is_found_nothing_is_fused():
    assert reciprocal_rank_fusion({"q": {}}, {"q": {}}) == weighted_sum_fusion({"q": {}}, {"q": {}}, 0.5) == {"q": {}}
