"""How good a run is, by the judgements: recall, MRR and nDCG as trec_eval defines them, through ir_measures."""

import ir_measures
import pandas as pd
from ir_measures import RR, R, nDCG

MEASURES = {"recall@1": R @ 1, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10, "ndcg@10": nDCG @ 10}


def per_query(qrels, run):
    """Every measure for every judged query: a DataFrame with query ids as index and `recall@1` .. `ndcg@10` as columns.

    recall@k: share of the query's positives among its first k passages; mrr@10: 1 / rank of the first positive, 0 beyond
    rank 10; ndcg@10: gain discounted by log2(rank + 1), over the best possible. A query that the run lacks counts as 0.
    """
    names = {measure: name for name, measure in MEASURES.items()}
    values = {query: dict.fromkeys(MEASURES, 0.0) for query in qrels}
    for result in ir_measures.iter_calc(list(names), qrels, run):
        values[result.query_id][names[result.measure]] = result.value
    return pd.DataFrame.from_dict(values, orient="index", columns=list(MEASURES))


def mean(table):
    """The means over queries, as plain numbers."""
    return {name: float(value) for name, value in table.mean().items()}


def first_positive_rank(qrels, run):
    """Rank of each query's first positive, 1 for the best; a Series by query id, with NaN where the run has none."""
    ranks = {query: next((rank for rank, passage in enumerate(run.get(query, ()), start=1) if passage in judged), None)
             for query, judged in qrels.items()}
    return pd.Series(ranks, dtype="float64", name="rank")


def by_corpus_size(test_set, rank):
    """Metrics while the corpus grows from the positives alone to the whole: rows with `passages` and the measures.

    `rank(subset, positions)` gives the run on a subset (see TestSet.subsets).
    """
    return [{"passages": len(subset.corpus), **mean(per_query(subset.qrels, rank(subset, positions)))}
            for subset, positions in test_set.subsets()]
