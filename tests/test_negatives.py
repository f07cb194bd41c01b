import itertools
import time
from collections import Counter

import numpy as np
import pytest

from embedding_finetune.files import ExperimentError
from embedding_finetune.negatives import sample_random


def test_negatives_are_distinct_and_never_positives():
    rng = np.random.default_rng(5)
    positives = [rng.choice(60, size=rng.integers(1, 5), replace=False).tolist() for _ in range(2000)]
    for row, own in zip(sample_random(positives, 60, 50, seed=1), positives):
        assert len(set(row.tolist())) == 50 and not set(row.tolist()) & set(own) and 0 <= row.min() and row.max() < 60


def test_all_passages_but_the_positives_when_there_are_just_enough():
    assert sorted(sample_random([[2, 0, 2]], 5, 3, seed=1)[0]) == [1, 3, 4]


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
    assert (first == sample_random(positives, 500, 10, seed=[42, 10])).all() and (first != sample_random(positives, 500, 10, seed=[43, 10])).any()


def test_too_few_passages_are_refused():
    with pytest.raises(ExperimentError, match="50 negatives a query were asked for, but a query has only 49 other passages"):
        sample_random([[0], [1]], 50, 50, seed=1)


def test_the_tutorials_size_takes_well_under_a_second():
    started = time.perf_counter()
    sample_random([[index] for index in range(6980)], 6980, 50, seed=1)
    assert time.perf_counter() - started < 1
