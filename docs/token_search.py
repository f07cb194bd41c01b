"""What multi-vector retrieval finds compared with reranking the first hits of BM25 and a single-vector model.

    python docs/token_search.py docstrings dense [dense]    a set of second_ladder.py, a model, whose hits are reranked

After `python docs/second_ladder.py SET late_MODEL_on_FIRST`. Weights are chosen on dev; differences are paired, with
95 % intervals. Prints a table, and what it cost.
"""

import argparse
import time

import pandas as pd
import recipe as ladder
from second_ladder import SETS, settings_of, timed

from embedding_finetune.contrib.multi_vector_search import FLAT, MultiVectorSearch
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tuning import candidate_recall, choose_weight
from embedding_finetune.files import run_command_line
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.known_systems import make_reranker
from embedding_finetune.retrieval.rerank import candidate_union

TIMED, LOOKED_AT = 100, 50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("model")
    parser.add_argument("first", nargs="?")
    options = parser.parse_args()
    settings, first = settings_of(options.set), options.first or options.model
    stage = f"late_{options.model}" + f"_on_{first}" * (first != options.model)
    collection, began = read_data(settings), time.perf_counter()
    parts = {part: collection.split(part) for part in ("dev", "test")}
    search = MultiVectorSearch(make_reranker(settings, "late", options.model)).index(collection.corpus)
    print(f"{search.factory}: {len(search.stage.vectors):,} token vectors (exact up to {FLAT:,}), "
          f"{time.perf_counter() - began:.0f} s to make")
    bm25, dense = ({part: read_measured_run(settings, collection, label, part) for part in parts}
                   for label in ("bm25", first))
    alone = {part: search.search(of.queries, copies=of.copies) for part, of in parts.items()}
    weight = choose_weight(parts["dev"], bm25["dev"], alone["dev"])
    runs = {label: read_measured_run(settings, collection, label, "test") for label in (stage, f"hybrid_{stage}")}
    fused = weighted_sum_fusion(bm25["test"], alone["test"], weight)
    runs |= {"all passages": alone["test"], f"all passages + {weight} BM25": fused}
    frames = {label: per_query(parts["test"].qrels, run) for label, run in runs.items()}
    rows = {}
    for row in add_significance([{"label": label} for label in frames], frames, planned=[], seed=ladder.SEED):
        values = frames[row["label"]].mean()
        rows[row["label"]] = {key: f"{values[key]:.3f}" for key in ("recall@1", "recall@10", "mrr@10")} | {
            f"recall@1 against {label}": "{difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**pair["recall@1"])
            for label, pair in row["against"].items() if label in (stage, f"hybrid_{stage}")}
    print(pd.DataFrame.from_dict(rows, orient="index").fillna("").to_markdown(disable_numparse=True))
    test = parts["test"]
    seen = {query: dict.fromkeys(found, 1.0) for query, found in candidate_union(dense["test"], bm25["test"],
                                                                       depth=LOOKED_AT).items()}
    seen = {query: found | dict.fromkeys(list(alone["test"][query])[:LOOKED_AT], 1.0) for query, found in seen.items()}
    both = candidate_recall(test, bm25["test"], dense["test"], (LOOKED_AT,))[LOOKED_AT]
    three = sum(bool({*found} & {*test.positives(query)}) for query, found in seen.items()) / len(seen)
    print(f"positives among the first {LOOKED_AT} of BM25 and {first}: {both:.3f}; and of all tokens: {three:.3f}")
    ms = timed(search.search, dict(list(test.queries.items())[:TIMED + 1]))[1]
    print(f"{ms:.1f} ms a query, its encoding included")


if __name__ == "__main__":
    run_command_line(main)
