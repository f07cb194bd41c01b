"""What dev chooses for a second stage, by hand and against all measures; what is saved; what no longer fits."""

import itertools
from dataclasses import replace

import pytest
from stages import measured_stage

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation import results, tuning
from embedding_finetune.evaluation.metrics import measure, reciprocal_rank
from embedding_finetune.evaluation.tuning import candidate_recall, rerank_run, tune_reranking
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.rerankers import make_reranker

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
    chosen = tune_reranking(DEV, BM25_RUN, DENSE, SECOND, depths=(1, 2, 3))
    assert chosen == {"weight": 0.0, "rerank_weight": 0.5, "depth": 2}
    run = rerank_run(BM25_RUN, DENSE, SECOND, **chosen)
    assert [next(iter(run[query])) for query in QUERIES] == ["p0", "p1", "p2"]


def test_the_quick_measure_is_that_of_all_measures():
    for weight, other in itertools.product((0.0, 0.5), (0.1, 2.0, None)):
        run = rerank_run(BM25_RUN, DENSE, SECOND, weight=weight, rerank_weight=other, depth=2)
        assert reciprocal_rank(DEV, run) == pytest.approx(measure(DEV, run)["mrr@10"])
    assert reciprocal_rank(DEV, {}) == 0


def test_a_stage_enters_the_comparison_until_its_model_changes(built):
    collection, (alone, fused) = measured_stage(built)
    rows, left_out = results.compare(built, collection)
    labels = [row["label"] for row in rows]
    assert {"late_reference", "hybrid_late_reference"} < {*labels} and not left_out
    assert fused["rerank_weight"] in tuning.WEIGHTS and alone["rerank_weight"] is None
    assert fused["ms_per_query"] > 0 and fused["bytes_per_passage"] > 100 and fused["hybrid_of"] == "reference"
    other = replace(built, reference_prompt="otherwise: ")
    assert all("another query_prompt" in line for line in results.load_results(other)[1])
    assert len(results.load_results(other)[1]) == 3


def test_the_test_part_has_no_say_in_the_choice(built):
    """Other test queries with other answers: depth, weights, and what dev measures stay as they are."""
    collection, honest = measured_stage(built)
    test, passages = list(collection.split("test").queries), list(collection.corpus)
    queries = collection.queries | {query: f"something else {number}" for number, query in enumerate(test)}
    qrels = collection.qrels | {query: {passages[number]: 1} for number, query in enumerate(test)}
    _, other = measured_stage(built, collection=replace(collection, queries=queries, qrels=qrels))
    for one, two in zip(honest, other, strict=True):
        assert one["metrics"] != two["metrics"]
        assert {name: one[name] for name in ("weight", "rerank_weight", "depth", "dev")} == {
            name: two[name] for name in ("weight", "rerank_weight", "depth", "dev")}


def test_there_is_no_stage_of_what_is_not_there(built):
    with pytest.raises(UserError, match="holds no finished model"):
        make_reranker(built, "late_nobody")
    with pytest.raises(UserError, match="is no reranker"):
        make_reranker(built, "soon_reference")
