"""Tuning of reranking on dev queries, by hand and against all measures."""

import pytest

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.tuning import (
    DEFAULT_RERANKING,
    DEFAULT_WEIGHT,
    candidate_recall,
    choose_weight,
    rerank_run,
    tune_reranking,
)

QUERIES = {"q0": "?", "q1": "?", "q2": "?"}
DEV = Collection(QUERIES, {f"p{number}": "." for number in range(6)}, {f"q{n}": {f"p{n}": 1} for n in range(3)},
                 dict.fromkeys(QUERIES, "dev"))
DENSE = {"q0": {"p0": 0.9, "p1": 0.8}, "q1": {"p0": 0.9, "p1": 0.8, "p2": 0.7}, "q2": {"p0": 0.9, "p1": 0.8}}
BM25_RUN = {"q0": {"p3": 2.0}, "q1": {"p4": 2.0}, "q2": {"p5": 3.0, "p2": 2.0}}
SECOND = {"q0": {"p0": 0.5, "p1": 0.5, "p3": 0.0}, "q1": {"p0": 0.0, "p1": 0.3, "p2": 0.2, "p4": 0.0},
          "q2": {"p0": 0.0, "p1": 0.0, "p2": 0.4, "p5": 0.1}}


def test_the_limit_is_what_both_runs_have_found():
    assert candidate_recall(DEV, BM25_RUN, DENSE, (1, 2)) == {1: pytest.approx(1 / 3), 2: 1.0}


def test_dev_chooses_the_smallest_of_the_best():
    """q1 needs 0.3 x weight over 0.1, and q2 needs two passages of BM25 and 0.4 over 0.2; BM25's score helps nobody."""
    chosen = tune_reranking(DEV, BM25_RUN, DENSE, SECOND, depths=(1, 2, 3), at_least=3)
    assert chosen == {"bm25_weight": 0.0, "rerank_weight": 0.5, "depth": 2}
    run = rerank_run(BM25_RUN, DENSE, SECOND, **chosen)
    assert [next(iter(run[query])) for query in QUERIES] == ["p0", "p1", "p2"]


def test_the_weight_is_the_best_on_the_queries_given_and_the_smallest_of_equals():
    """BM25 knows q1, the model knows q2; only weights between answer both."""
    bm25 = {"q1": {"x": 9.0, "y": 1.0}, "q2": {"x": 5.0, "y": 4.0}}
    dense = {"q1": {"y": 0.6, "x": 0.5}, "q2": {"y": 0.9, "x": 0.4}}
    both = Collection({"q1": "", "q2": ""}, {"x": "", "y": ""}, {"q1": {"x": 1}, "q2": {"y": 1}})
    assert choose_weight(both, bm25, dense, at_least=2) == 0.15  # q1 needs more than 0.1 / (8 / 9) = 0.1125
    assert choose_weight(both.select_queries(["q2"]), bm25, dense, at_least=1) == 0


@pytest.mark.parametrize("depths, depth", [((5, 10, 20), 20), ((10, 30, 100), 30)])
def test_the_default_depth_is_not_below_what_was_scored(depths, depth):
    """A cross-encoder scores 20 passages of each run."""
    assert tune_reranking(DEV, BM25_RUN, DENSE, SECOND, depths)["depth"] == depth


@pytest.mark.parametrize("copies, is_tuned", [(49, False), (50, True)])
def test_nothing_is_tuned_on_fewer_than_fifty_queries(copies, is_tuned):
    """All queries are q2, which needs a weight of 0: BM25 puts another passage first."""
    queries = {f"q{number}": "" for number in range(copies)}
    part = Collection(queries, {"x": "", "y": ""}, {query: {"y": 1} for query in queries})
    bm25, dense, second = (dict.fromkeys(queries, run) for run in (
        {"x": 5.0, "y": 1.0}, {"y": 0.5, "x": 0.4}, {"y": 0.5, "x": 0.5}))
    assert choose_weight(part, bm25, dense) == (0 if is_tuned else DEFAULT_WEIGHT)
    cheapest = {"bm25_weight": 0, "rerank_weight": 0.02, "depth": 10}
    assert tune_reranking(part, bm25, dense, second) == (cheapest if is_tuned else DEFAULT_RERANKING)
