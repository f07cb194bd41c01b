import dataclasses
import itertools
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.negatives import (
    Filter,
    filter_candidates,
    interleave,
    negative_candidates,
    sample_random,
    select_negatives,
)
from embedding_finetune.data.readers import Row
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.exact_search import exact_search
from embedding_finetune.settings import ROOT


def test_copies_of_a_query_are_not_drawn_as_its_negatives():
    """A text is the query of one pair and the positive of another, as in pairs of duplicate questions."""
    collection, _ = clean(Row(f"question {number}", [f"question {number + 1}"]) for number in range(20))
    pool = negative_candidates(dataclasses.replace(collection, splits=dict.fromkeys(collection.queries, "train")))
    texts = pool.texts()
    assert [sorted(texts[place] for place in places) for places in pool.excluded()[:3]] == [
        ["question 1"], ["question 1", "question 2"], ["question 2", "question 3"]]
    drawn = sample_random(pool.excluded(), pool.num_eligible, 18, seed=1)
    assert all(text not in [texts[place] for place in row] for text, row in zip(pool.train.queries.values(), drawn))


def test_negatives_are_distinct_and_never_positives():
    rng = np.random.default_rng(5)
    positives = [rng.choice(60, size=rng.integers(1, 5), replace=False).tolist() for _ in range(2000)]
    for row, own in zip(sample_random(positives, 60, 50, seed=1), positives):
        assert len(set(row.tolist())) == 50 and not set(row.tolist()) & set(own) and row.min() >= 0 and row.max() < 60


def test_all_passages_but_the_positives_when_there_are_just_enough():
    assert sorted(sample_random([[2, 0, 2]], 5, 3, seed=1)[0]) == [1, 3, 4]
    assert sample_random([], 5, 3, seed=1).shape == (0, 3)


def test_each_set_of_negatives_is_equally_likely():
    drawn = sample_random([[1, 4]] * 30_000, 7, 2, seed=9)
    counts = Counter(tuple(sorted(row)) for row in drawn.tolist())
    possible = list(itertools.combinations([0, 2, 3, 5, 6], 2))
    assert sorted(counts) == possible
    deviation = sum((counts[pair] - 3000) ** 2 / 3000 for pair in possible)
    assert deviation < 27.9  # chi-squared with 9 degrees of freedom, p = 0.001


def test_the_seed_decides():
    positives = [[index] for index in range(500)]
    first = sample_random(positives, 500, 10, seed=[42, 10])
    assert (first == sample_random(positives, 500, 10, seed=[42, 10])).all()
    assert (first != sample_random(positives, 500, 10, seed=[43, 10])).any()


def test_too_few_passages_are_refused():
    message = "50 negatives per query were asked for, but a query has only 49 other passages"
    with pytest.raises(UserError, match=message):
        sample_random([[0], [1]], 50, 50, seed=1)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


SCORES = [0.9, 0.77, 0.759, 0.7, 0.1]


@pytest.mark.parametrize("rule, scores, positive, expected", [
    ("relative_margin 0.95", SCORES, 0.8, [False, False, True, True, True]),  # below 0.76
    ("relative_margin 0.95", [-0.2, -0.22], -0.2, [False, True]),  # 5 % below -0.2 is -0.21
    ("absolute_margin 0.05", SCORES, 0.8, [False, False, False, True, True]),  # below 0.75
    ("rank_range 2 3", SCORES, 0.8, [False, True, True, False, False]),
    ("none", SCORES, 0.8, [True] * 5),
])
def test_the_filters_by_hand(rule, scores, positive, expected):
    assert Filter.parse(rule).keeps(np.array([scores]), np.array([positive])).tolist() == [expected]


@pytest.mark.parametrize("first, second, merged", [
    ([1, 2, 3], [4, 1, 5], [1, 4, 2, 3, 5, -1]),
    ([7, -1, -1], [1, 2], [7, 1, 2, -1, -1]),  # BM25 finds only passages that share a word
    ([-1, -1, -1], [3, 4], [3, 4, -1, -1, -1]),
])
def test_two_sources_take_turns(first, second, merged):
    assert interleave(np.array([first]), np.array([second])).tolist() == [merged]


def test_planted_false_negatives_are_rejected_and_hard_negatives_stay():
    """For each query 5 unlabelled positives, as near to it as its positive, and 20 hard negatives, nearer than any
    random passage.
    """
    rng, queries = np.random.default_rng(7), 300
    centres = unit(rng.normal(size=(queries, 64)))

    def around(noise, each):
        return unit(np.repeat(centres, each, axis=0) + noise * rng.normal(size=(queries * each, 64)) / 8)

    passages = np.concatenate([around(0.4, 1), around(0.4, 5), around(1.5, 20), unit(rng.normal(size=(5000, 64)))])
    false = queries + np.arange(queries * 5).reshape(queries, 5)
    hard = queries * 6 + np.arange(queries * 20).reshape(queries, 20)
    positives = [[query] for query in range(queries)]
    candidates = exact_search(centres, passages, 100)[1]
    assert np.mean([np.isin(hard[query], candidates[query]).mean() for query in range(queries)]) > 0.95
    kept = filter_candidates(candidates, positives, centres, passages, Filter.parse("relative_margin 0.95"))
    rejected = np.mean([~np.isin(false[query], kept[query]) for query in range(queries)])
    lost = np.mean([~np.isin(hard[query], kept[query]) for query in range(queries)])
    assert rejected >= 0.95 and lost <= 0.2
    unfiltered = filter_candidates(candidates, positives, centres, passages, Filter.parse("none"))
    false_found = [np.isin(false[query], unfiltered[query]) for query in range(queries)]
    assert np.mean(false_found) > 0.95  # or the filter had nothing to do
    assert not any(np.isin(own, row) for own, row in zip(positives, unfiltered))


def test_of_several_positives_the_lowest_counts():
    queries, passages = unit([[1, 0]]), unit([[1, 0], [1, 1], [1, 0.5], [1, 2]])
    candidates = np.array([[2, 3]])
    rule = Filter.parse("relative_margin 0.95")
    assert filter_candidates(candidates, [[0]], queries, passages, rule).tolist() == [[2, 3]]
    assert filter_candidates(candidates, [[0, 1]], queries, passages, rule).tolist() == [[-1, 3]]


def test_candidates_that_are_none_stay_none_whatever_the_filter():
    """The last passage, at position -1, is the best there is: nothing may come of it."""
    queries, passages = unit([[1, 0]]), unit([[1, 0.2], [0, 1], [1, 0.3], [1, 0]])
    for text in ("none", "relative_margin 0.95", "absolute_margin 0.05", "rank_range 1 3"):
        kept = filter_candidates(np.array([[1, -1, -1]]), [[0]], queries, passages, Filter.parse(text))
        assert kept.tolist() == [[1, -1, -1]]
    assert filter_candidates(np.empty((0, 3), int), [], queries[:0], passages, Filter.parse("none")).shape == (0, 3)


WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll ledge".split()
NO_PAIRS = np.empty((0, 2), dtype=int)
POOL = [" ".join(np.random.default_rng(number).choice(WORDS, 9)) for number in range(40)]


def test_no_near_duplicate_of_a_positive_is_chosen():
    texts = [*POOL, POOL[0] + " once more"]
    near = near_duplicates(texts)
    assert near.tolist() == [[0, 40]]
    for positive, other in ((0, 40), (40, 0)):
        chosen, mined = select_negatives(np.array([[other, 3, 5, 7]]), [[positive]], near, 41, 3, seed=1)
        assert chosen.tolist() == [[3, 5, 7]] and mined.tolist() == [3]
        filled, mined = select_negatives(np.array([[-1, -1]]), [[positive]], near, 41, 39, seed=1)
        assert sorted(filled[0].tolist()) == list(range(1, 40)) and mined.tolist() == [0]
    both, _ = select_negatives(np.array([[40, 0]]), [[5]], near, 41, 2, seed=1)
    assert both.tolist() == [[40, 0]]  # near each other, but to no positive


def test_random_passages_fill_up_what_the_filter_left_empty():
    candidates = np.full((500, 4), -1)
    candidates[::2, 0] = 39
    positives = [[number % 30] for number in range(500)]
    chosen, mined = select_negatives(candidates, positives, NO_PAIRS, 40, 5, seed=3)
    assert mined.tolist() == [1, 0] * 250
    assert (chosen[::2, 0] == 39).all() and all(len(set(row)) == 5 for row in chosen.tolist())
    assert not any(own[0] in row for own, row in zip(positives, chosen.tolist()))
    again, _ = select_negatives(candidates, positives, NO_PAIRS, 40, 5, seed=3)
    other, _ = select_negatives(candidates, positives, NO_PAIRS, 40, 5, seed=4)
    assert (chosen == again).all() and (chosen != other).any()


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="5 negatives per query were asked for, but a query has only 4 passages in the"):
        select_negatives(np.array([[1]]), [[0]], NO_PAIRS, 5, 5, seed=1)
    with pytest.raises(UserError, match="a query has only 3 passages in the training split that are not near-dup"):
        select_negatives(np.array([[1]]), [[0]], np.array([[0, 4]]), 5, 4, seed=1)


MEASURE = """
import resource, sys
import numpy as np
from embedding_finetune.data.negatives import Filter, filter_candidates
from embedding_finetune.retrieval.exact_search import exact_search
rng = np.random.default_rng(0)
queries, passages = (rng.standard_normal((rows, 16), dtype=np.float32) for rows in (6_000, 60_000))
positives = [[number] for number in range(6_000)]
exact_search(queries[:10], passages[:10], 2)  # what the libraries need for themselves
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rule = Filter.parse("relative_margin 0.95")
filter_candidates(exact_search(queries, passages, 50)[1], positives, queries, passages, rule)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_stays_far_below_queries_times_passages():
    """6,000 queries against 60,000 passages: their scores would take 1,440 MB; candidates and one batch take tens."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 200
