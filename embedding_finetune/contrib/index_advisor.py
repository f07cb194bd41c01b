"""Index advisor: cost and recall of several INDEX values, measured on samples and extrapolated to a corpus size.

    python -m embedding_finetune choose-index [LABEL] [--passages 10000000] [--memory 4] [--sample 50000]

Two samples of the passage vectors of LABEL (default: reference) are searched with the dev queries. `--passages` is the
corpus size of the estimates, `--memory` the maximum size of the index in GB. `extrapolate` documents how costs scale.
Recall falls as the corpus grows, since more passages are almost as close. Therefore a sample of 1/n of the corpus is
searched with a search depth n times smaller (see ann.Faiss.narrow). This is an estimate, and a larger `--sample` makes
it better; the recall that `search` reports for the finished index is measured.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.ann import FLAT, REACH, make_index, num_ivf_lists, recall_vs_exact
from embedding_finetune.settings import Settings

SAMPLE = 50_000  # vectors
TARGET_RECALL = 0.95  # share of the exact top 10
QUICK = 20  # milliseconds per query below which exact search is fast enough


def candidates(count, dim):
    """Candidate values of INDEX for `count` vectors of `dim` dimensions: name -> value."""
    lists = num_ivf_lists(count)
    probe = f"nprobe={max(1, round(lists * REACH['nprobe']))}"
    return {"flat": FLAT, "scalar-quantised": "SQ8", "IVF, scalar-quantised": f"IVF{lists},SQ8 {probe}",
            "IVF, product-quantised": f"IVF{lists},PQ{dim // 2}x4fs {probe}",
            "HNSW, scalar-quantised": f"HNSW32,SQ8 efSearch={REACH['efSearch']}"}


def measure(index_spec, vectors, queries, share=1, seed=0):
    """Measure the cost and recall of an index over `vectors`.

    Returns a dict of `GB` (size), `minutes` (build time), `ms`, `p99_ms` and `exact_ms` (per single query), and
    `recall` of the exact top 10. If the vectors are only a `share` of the corpus, recall is measured at a smaller
    search depth.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        index = make_index(index_spec).build(vectors, Path(folder))
        minutes = (time.perf_counter() - began) / 60
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) or vectors.nbytes
        tie_rank = np.random.default_rng(seed).permutation(len(vectors))
        found = recall_vs_exact(index, queries, tie_rank)
        if share < 1 and index.narrow(share):
            found["recall"] = recall_vs_exact(index, queries, tie_rank)["recall"]
    return {"INDEX": index_spec, "GB": size / 1e9, "minutes": minutes} | {
        name: found[name] for name in ("ms", "p99_ms", "exact_ms", "recall")}


def extrapolate(name, rows, count):
    """Extrapolate the results of `measure` on two samples (number of vectors -> row) to `count` vectors.

    Each cost follows the line through both samples if it rises, so that fixed costs are not multiplied. Size is linear
    in the number of vectors. Search time is linear too (at a fixed share of IVF lists), except for HNSW, where it grows
    with the logarithm (Malkov and Yashunin 2018), as does the build time per vector.
    """
    graph, (few, more) = name.startswith("HNSW"), sorted(rows)
    search = math.log if graph else lambda n: n
    grows = {"GB": lambda n: n, "exact_ms": lambda n: n, "ms": search, "p99_ms": search,
             "minutes": lambda n: n * math.log(n) if graph else n}
    estimate = dict(rows[more])
    for key, scale in grows.items():
        slope = max(0, rows[more][key] - rows[few][key]) / (scale(more) - scale(few))
        estimate[key] = rows[more][key] + slope * (scale(count) - scale(more))
    return estimate


def recommended(table, memory):
    """Name of the recommended row of a table of `choose`, or None if no index fits.

    Exact search if it is fast enough, else the fastest index with TARGET_RECALL in at most `memory` GB.
    """
    fits = table[(table["GB"] <= memory) & (table["recall"] >= TARGET_RECALL)]
    if "flat" in fits.index and fits.loc["flat", "ms"] <= QUICK:
        return "flat"
    return fits["ms"].idxmin() if len(fits) else None


def choose(vectors, queries, count, sample=SAMPLE, seed=0):
    """Table of estimates for all candidates at `count` vectors, from a sample of `vectors`; one row per candidate."""
    order, dim = np.random.default_rng(seed).permutation(len(vectors))[:sample], vectors.shape[1]
    samples = {size: vectors[np.sort(order[:size])] for size in (len(order) // 4, len(order))}
    estimates = {}
    for name, index_spec in candidates(count, dim).items():
        rows = {size: measure(candidates(size, dim)[name], subset, queries, size / count)
                for size, subset in samples.items()}
        estimates[name] = extrapolate(name, rows, count) | {"INDEX": index_spec}
    return pd.DataFrame.from_dict(estimates, orient="index")


def main():
    parser = CommandLine("choose-index", "Recommend a value of INDEX.")
    parser.add_argument("label", nargs="?", default="reference")
    parser.add_argument("--passages", type=int, default=0,
                        help="corpus size of the estimates (default: that of the corpus)")
    parser.add_argument("--memory", type=float, default=4, help="maximum size of the index in GB (default: 4)")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"passages in the sample (default: {SAMPLE})")
    options, settings = parser.parse_args(), Settings.load()
    collection, encoder = read_data(settings), make_encoder(settings, load_encoder_config(settings, options.label))
    dev = collection.split("dev")
    if not dev.queries:
        raise UserError("there are no dev queries to measure with: raise DEV_FRACTION and build the data again")
    vectors = encoder.encode_passages(collection.corpus.values())
    count = options.passages or len(vectors)
    table = choose(vectors, encoder.encode_queries(dev.queries.values()), count, options.sample)
    print(f"{options.label}, estimated for {count:,} passages from a sample of {min(options.sample, len(vectors)):,}:")
    print(table.round(3).to_markdown())
    best = recommended(table, options.memory)
    print(f"use INDEX=\"{table.loc[best, 'INDEX']}\" ({best})" if best else
          f"no index finds {TARGET_RECALL:.0%} of the exact top 10 within {options.memory} GB: raise --memory")
