"""Retrieval metrics of a run: recall, MRR and nDCG as defined by trec_eval, computed with ir_measures."""

import ir_measures
import pandas as pd
from ir_measures import RR, R, Success, nDCG

from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.settings import SELECTION_METRIC

MEASURES = {"recall@1": R @ 1, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10, "ndcg@10": nDCG @ 10,
            "hit@1": Success @ 1, "hit@5": Success @ 5, "hit@10": Success @ 10}
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))  # of BM25, added to a cosine


def per_query(qrels, run):
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


def mean(table):
    """Means over queries, as floats."""
    return {name: float(value) for name, value in table.mean().items()}


def measure(collection, run):
    """Mean metrics of a run over the collection's queries."""
    return mean(per_query(collection.qrels, run))


def first_positive_rank(collection, run):
    """Rank of each query's first positive, from 1: a Series by query id, NaN where the run contains none."""
    def rank(query):
        positives = set(collection.positives(query))
        return next((rank for rank, passage in enumerate(run.get(query, ()), start=1) if passage in positives), None)
    return pd.Series({query: rank(query) for query in collection.queries}, dtype="float64", name="rank")


def reciprocal_rank(collection, run):
    """MRR@10 only. About 100 times faster than `measure`, for tuning over many runs."""
    rank = first_positive_rank(collection, run)
    return float((1 / rank[rank <= 10]).sum() / max(1, len(rank)))


def by_corpus_size(collection, retriever):
    """Metrics for corpora of growing size, from only the positives to all passages: rows of `passages` and the metrics.

    Afterwards the retriever holds the full corpus.
    """
    def run(subset):
        return retriever.index(subset.corpus).search(subset.queries, copies=subset.copies)
    return [{"passages": len(subset.corpus), **measure(subset, run(subset))} for subset in collection.growing_corpora()]


def choose_weight(collection, bm25, dense, weights=WEIGHTS):
    """Weight of `weighted_sum_fusion` with the best MRR@10, ties to the smallest. Use it with dev queries only."""
    def value(weight):
        return round(measure(collection, weighted_sum_fusion(bm25, dense, weight))[SELECTION_METRIC], 9), -weight
    return max(weights, key=value)
