"""What multi-vector retrieval finds compared with reranking the first hits of BM25 and a single-vector model.

    python docs/token_search.py docstrings dense [dense]    a set of second_ladder.py, a model, whose hits are reranked

After `python docs/second_ladder.py SET late_MODEL_on_FIRST`. Weights are chosen on dev; differences are paired, with
95 % intervals. Prints a table, and what it cost.

As in ColBERT (Khattab and Zaharia, SIGIR 2020, section 3.6), the passages with the nearest token vectors to each query
token are the candidates, which MaxSim then ranks exactly. It can find passages missed by BM25 and single-vector
retrieval; the index holds about a hundred vectors per passage.
"""

import argparse
import time

import numpy as np
import pandas as pd
import recipe as ladder
from second_ladder import SETS, settings_of, timed
from tqdm.auto import tqdm

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tuning import candidate_recall, choose_weight
from embedding_finetune.files import run_command_line
from embedding_finetune.models.multi_vector import INT8, maxsim_candidates
from embedding_finetune.retrieval.ann import build_with_factory, num_ivf_lists
from embedding_finetune.retrieval.base import FEW, Retriever, best, padded
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.known_systems import make_reranker
from embedding_finetune.retrieval.rerank import candidate_union

TIMED, LOOKED_AT = 100, 50
REACH = 200  # nearest token vectors per query token
FLAT = 1 << 18  # up to this many vectors an exact index is fast enough


class MultiVectorSearch(Retriever):
    """Retriever over the token vectors of `stage`, a LateInteraction without a corpus.

    `factory` is any string of faiss.index_factory. The default is an exact index for up to FLAT vectors, else an IVF
    index of int8 vectors (SQ8) in which each query token searches one list in 32.
    """

    def __init__(self, stage, factory="", reach=REACH):
        self.stage, self.factory, self.reach = stage, factory, reach
        self.description = f"{stage.description} over all passages"

    def build(self, texts):
        self.stage.build(texts)
        count = len(self.stage.vectors)
        lists = num_ivf_lists(count)
        self.factory = self.factory or ("Flat" if count <= FLAT else f"IVF{lists},SQ8 nprobe={max(1, lists // 32)}")
        self.faiss = build_with_factory(self.factory, self.stage.vectors.shape, self._float)

    def _float(self, rows):
        found = self.stage.vectors[rows].astype(np.float32)
        return found / INT8 if self.stage.vectors.dtype == np.int8 else found

    def search_batch(self, texts, depth):
        queries = tqdm(self.stage.query_tokens(texts), self.description, len(texts), disable=len(texts) < FEW)
        depth = min(depth, len(self.stage.starts) - 1)
        return padded((self._search(tokens, depth) for tokens in queries), len(texts), depth)

    def _search(self, tokens, depth):
        vectors, starts = self.stage.vectors, self.stage.starts
        _, near = self.faiss.search(tokens, min(self.reach, len(vectors)))
        places = np.unique(np.searchsorted(starts, near[near >= 0], side="right") - 1)
        return best(maxsim_candidates(tokens, vectors, starts, places.tolist()), places, depth)


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
