import math

import numpy as np
import pytest

from embedding_finetune.retrieval.bm25 import BM25


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
    assert positions.tolist() == [[1, -1, -1], [-1, -1, -1]] and scores[0, 0] > 0 and not scores[1].any()


def test_bm25_numbers_words_by_where_it_meets_them_whatever_the_process():
    vocabulary = BM25().index({"b": "otter willow", "a": "moon otter"}).bm25.vocab_dict
    assert {word: number for word, number in vocabulary.items() if word} == {"moon": 0, "otter": 1, "willow": 2}


def test_bm25_breaks_ties_by_id_across_the_cut():
    ids = [f"p{number:02d}" for number in np.random.default_rng(0).permutation(40)]
    found = BM25().index(dict.fromkeys(ids, "red fox") | {"other": "blue house"})
    run = found.search({"q": "red"}, depth=5)
    assert list(run["q"]) == ["p00", "p01", "p02", "p03", "p04"] and len(set(run["q"].values())) == 5
    assert list(found.search({"q": "red"}, depth=1000)["q"]) == sorted(ids)


@pytest.mark.parametrize("corpus, hits", [({"a": "the of and"}, []), ({"a": ""}, []), ({"a": "", "b": "!?"}, []),
                                          ({"a": "red fox"}, ["a"])])
def test_tiny_corpora_and_those_without_a_word(corpus, hits, tmp_path):
    found = BM25().index(corpus)
    found.save(tmp_path)
    assert [list(run) for run in found.search({"q": "red", "e": ""}).values()] == [hits, []]
    for one, other in zip(BM25().load(tmp_path).search_batch(["red", ""], 3), found.search_batch(["red", ""], 3)):
        assert np.array_equal(one, other)
