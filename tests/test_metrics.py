import math

import numpy as np
import pytest
import pytrec_eval

from embedding_finetune.metrics import by_corpus_size, first_positive_rank, mean, per_query
from embedding_finetune.training_files import TestSet

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
    assert table["ndcg@10"].to_dict() == pytest.approx({"q1": (1 + 1 / 2) / two_first, "q2": 0, "q3": 1 / math.log2(3), "q4": 0})
    assert mean(table)["recall@1"] == 0.125 and mean(table)["mrr@10"] == 0.375


def test_metrics_agree_with_trec_eval_on_random_runs():
    rng = np.random.default_rng(1)
    passages = [f"p{number}" for number in range(300)]
    qrels = {f"q{number}": dict.fromkeys(rng.choice(passages, rng.integers(1, 5), replace=False).tolist(), 1) for number in range(50)}
    run = {query: dict(zip(rng.choice(passages, 120, replace=False).tolist(), np.sort(rng.random(120))[::-1].tolist())) for query in qrels}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,10,100", "ndcg_cut.10"}).evaluate(run)
    ours = per_query(qrels, run)
    for query, values in theirs.items():
        for name, key in (("recall@1", "recall_1"), ("recall@10", "recall_10"), ("recall@100", "recall_100"), ("ndcg@10", "ndcg_cut_10")):
            assert ours.loc[query, name] == pytest.approx(values[key])


def test_rank_of_the_first_positive():
    rank = first_positive_rank(QRELS, RUN)
    assert rank[["q1", "q2", "q3"]].to_list() == [1, 11, 2] and np.isnan(rank["q4"])


def test_metrics_by_corpus_size():
    """The run on each subset puts the passages in the order of their ids: `c` sinks as passages before it are added."""
    test_set = TestSet({"q": ""}, dict.fromkeys("abc", ""), {"q": {"c": 1}})
    rows = by_corpus_size(test_set, lambda subset, positions: {"q": {passage: 1 / (1 + place) for place, passage in zip(positions, subset.corpus)}})
    assert [(row["passages"], row["mrr@10"]) for row in rows] == [(1, 1), (1, 1), (2, 0.5), (3, pytest.approx(1 / 3)), (3, pytest.approx(1 / 3))]
