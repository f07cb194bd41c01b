"""Retrieval metrics of a run: recall, MRR and nDCG as defined by trec_eval, computed with ir_measures."""

from itertools import islice

import ir_measures
import numpy as np
import pandas as pd
from ir_measures import RR, R, Success, nDCG

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.retrieval.base import Retriever, Run

MEASURES = {"recall@1": R @ 1, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10, "ndcg@10": nDCG @ 10,
            "hit@1": Success @ 1, "hit@5": Success @ 5, "hit@10": Success @ 10}


def per_query(qrels: dict, run: Run) -> pd.DataFrame:
    """All metrics per judged query: a DataFrame with query ids as index and `recall@1` .. `hit@10` as columns.

    recall@k: share of the query's positives (grade above 0) in the top k; hit@k: 1 if there is one, else 0; mrr@10: 1 /
    rank of the first positive, 0 beyond rank 10; ndcg@10: sum of the grades in the top 10, discounted by log2(rank +
    1), divided by the ideal sum. Queries missing from the run score 0.
    """
    names = {measure: name for name, measure in MEASURES.items()}
    values = {query: dict.fromkeys(MEASURES, 0.0) for query in qrels}
    for result in ir_measures.iter_calc(list(names), qrels, run):
        values[result.query_id][names[result.measure]] = result.value
    return pd.DataFrame.from_dict(values, orient="index", columns=list(MEASURES))


def mean(table: pd.DataFrame) -> dict[str, float]:
    """Means over queries, as floats."""
    return {name: float(value) for name, value in zip(table, table.mean())}


def measure(collection: Collection, run: Run) -> dict[str, float]:
    """Mean metrics of a run over the collection's queries."""
    return mean(per_query(collection.qrels, run))


def by_training(collection: Collection, run: Run) -> dict[str, dict]:
    """Metrics of the test queries with a positive that is also a training positive (`seen`), and of the others
    (`unseen`), with the number of queries; {} unless there are both.
    """
    train, test = collection.split("train"), collection.split("test")
    known = {passage_id(train.corpus[passage]) for query in train.queries for passage in train.positives(query)}
    groups = {"seen": [], "unseen": []}
    for query in test.queries:
        seen = any(passage_id(test.corpus[passage]) in known for passage in test.positives(query))
        groups["seen" if seen else "unseen"].append(query)
    return {name: {"queries": len(queries), **measure(test.select_queries(queries), run)}
            for name, queries in groups.items()} if all(groups.values()) else {}


def first_positive_rank(collection: Collection, run: Run) -> dict[str, int | None]:
    """Rank of each query's first positive, from 1; None where the run contains none."""
    found = {}
    for query in collection.queries:
        positives = set(collection.positives(query))
        found[query] = next((rank for rank, passage in enumerate(run.get(query, ()), 1) if passage in positives), None)
    return found


def ranking_metrics(qrels: dict, rankings: dict) -> dict[str, float]:
    """{"recall@10", "mrr@10"} of rankings (query id -> passage ids, best first), averaged over the judged queries.

    The same values as `measure`, without scores and about 100 times faster: for dev evaluation and tuning. A run counts
    as rankings, in the order of its passages. Queries that are missing or have no positive score 0.
    """
    recalls, reciprocals = [], []
    for query, grades in qrels.items():
        positives = {passage for passage, grade in grades.items() if grade > 0}
        top = islice(rankings.get(query, ()), 10)
        ranks = [rank for rank, passage in enumerate(top, start=1) if passage in positives]
        recalls.append(len(ranks) / max(1, len(positives)))
        reciprocals.append(1 / ranks[0] if ranks else 0.0)
    return {"recall@10": float(np.mean(recalls or [0.0])), "mrr@10": float(np.mean(reciprocals or [0.0]))}


def by_corpus_size(collection: Collection, retriever: Retriever) -> list[dict]:
    """Metrics for corpora of growing size, from only the positives to all passages: rows of `passages` and the metrics.

    Afterwards the retriever holds the full corpus.
    """
    def run(subset: Collection) -> Run:
        return retriever.index(subset.corpus).search(subset.queries, copies=subset.copies)
    return [{"passages": len(subset.corpus), **measure(subset, run(subset))} for subset in collection.growing_corpora()]
