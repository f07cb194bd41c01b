"""Metrics by hand and against trec_eval itself."""

import math

import numpy as np
import pytest
import pytrec_eval

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.metrics import (
    by_corpus_size,
    by_training,
    first_positive_rank,
    mean,
    per_query,
    ranking_metrics,
)
from embedding_finetune.retrieval.base import Retriever

QRELS = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}, "q4": {"e": 1}}
RUN = {"q1": {"a": 0.9, "x": 0.8, "b": 0.7},                                                # ranks 1 and 3
       "q2": {**{f"x{number:02d}": 1 - number / 100 for number in range(10)}, "c": 0.1},    # rank 11
       "q3": {"y": 0.5, "d": 0.4}}                                                          # rank 2; q4 is missing


def test_metrics_by_hand():
    table = per_query(QRELS, RUN)
    assert table["recall@1"].to_dict() == {"q1": 0.5, "q2": 0, "q3": 0, "q4": 0}
    assert table["recall@10"].to_dict() == {"q1": 1, "q2": 0, "q3": 1, "q4": 0}
    assert table["recall@100"].to_dict() == {"q1": 1, "q2": 1, "q3": 1, "q4": 0}
    assert table["mrr@10"].to_dict() == {"q1": 1, "q2": 0, "q3": 0.5, "q4": 0}
    two_first = 1 + 1 / math.log2(3)
    assert table["ndcg@10"].to_dict() == pytest.approx(
        {"q1": (1 + 1 / 2) / two_first, "q2": 0, "q3": 1 / math.log2(3), "q4": 0})
    assert mean(table)["recall@1"] == 0.125 and mean(table)["mrr@10"] == 0.375


def test_metrics_agree_with_trec_eval_on_random_runs():
    rng = np.random.default_rng(1)
    passages, queries = [f"p{number}" for number in range(300)], [f"q{number}" for number in range(50)]
    qrels = {query: dict(zip(rng.choice(passages, rng.integers(1, 5), replace=False).tolist(), [1, 0, 2, 1]))
             for query in queries}
    run = {query: dict(zip(rng.choice(passages, 120, replace=False).tolist(), np.sort(rng.random(120))[::-1].tolist()))
           for query in queries}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,10,100", "ndcg_cut.10", "success"}).evaluate(run)
    first_ten = {query: dict(list(ranking.items())[:10]) for query, ranking in run.items()}
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first_ten)
    names = {"recall@1": "recall_1", "recall@10": "recall_10", "recall@100": "recall_100", "ndcg@10": "ndcg_cut_10",
             **{f"hit@{k}": f"success_{k}" for k in (1, 5, 10)}}
    ours = per_query(qrels, run)
    for query in queries:
        expected = {name: theirs[query][key] for name, key in names.items()}
        assert ours.loc[query].to_dict() == pytest.approx(expected | {"mrr@10": reciprocal[query]["recip_rank"]})
    means = mean(ours)
    assert ranking_metrics(qrels, run) == {name: means[name] for name in ("recall@10", "mrr@10")}  # to the last bit


def test_rankings_need_no_scores():
    assert ranking_metrics(QRELS, {query: list(ranking) for query, ranking in RUN.items()}) == {
        "recall@10": 0.5, "mrr@10": 0.375}
    assert ranking_metrics({"q": {"a": 0}}, {"q": ["a"]}) == ranking_metrics({}, {}) == {"recall@10": 0, "mrr@10": 0}


def test_a_run_is_ranked_by_its_scores_not_by_the_order_of_its_file():
    assert per_query({"q": {"a": 1}}, {"q": {"b": 0.1, "a": 0.2}}).loc["q", "recall@1"] == 1


def test_rank_of_the_first_positive():
    collection = Collection(dict.fromkeys(QRELS, ""), {}, QRELS)
    assert first_positive_rank(collection, RUN) == {"q1": 1, "q2": 11, "q3": 2, "q4": None}


def test_metrics_by_corpus_size():
    """The retriever puts the passages in the order of their ids: `c` sinks as passages before it are added."""
    class Alphabetical(Retriever):
        def build(self, texts):
            self.size = len(texts)

        def search_batch(self, texts, depth):
            order = np.argsort(self.ids)[None, :depth]
            return -np.arange(order.shape[1], dtype=np.float32)[None], order

    retriever = Alphabetical()
    rows = by_corpus_size(Collection({"q": ""}, dict.fromkeys("cab", ""), {"q": {"c": 1}}), retriever)
    assert [(row["passages"], row["mrr@10"]) for row in rows] == [
        (1, 1), (1, 1), (2, 0.5), (3, pytest.approx(1 / 3)), (3, pytest.approx(1 / 3))]
    assert retriever.size == 3  # it ends with the whole corpus


def test_queries_whose_passages_were_in_training_are_measured_apart():
    """Passage `c` has the text of the training positive `a`; `b` is a positive only of grade 0 in training."""
    corpus = {"a": "The otter", "b": "a heron", "c": "the  OTTER", "d": "a lynx"}
    qrels = {"t": {"a": 1, "b": 0}, "1": {"c": 1}, "2": {"b": 1}, "3": {"d": 1}}
    parts = {"t": "train", "1": "test", "2": "test", "3": "test"}
    run = {"1": {"c": 0.9}, "2": {"b": 0.9}, "3": {"a": 0.9}}
    collection = Collection(dict.fromkeys(qrels, "?"), corpus, qrels, parts)
    found = by_training(collection, run)
    assert {name: (part["queries"], part["recall@1"]) for name, part in found.items()} == {
        "seen": (1, 1.0), "unseen": (2, 0.5)}
    assert by_training(collection.select_queries(["t", "2", "3"]), run) == {}
    assert by_training(collection.select_queries(["t", "1"]), run) == {}
