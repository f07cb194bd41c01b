"""Size, build time, latency and recall of several index types, compared with exact search in one run.

    python benchmarks/bench_index.py [--passages 1000000] [--queries 200] [--only NAME ..]

Vectors are the bundled model's of the passages that PAIRS names, else of numpy's docstrings, each many times with
noise (cosine to its origin about 0.8); queries are the pairs' own. So a query has hundreds of passages that are nearly
equally near, which is harder than most corpora. The last line of standard output is one JSON object, which
docs/million.ipynb plots.
"""

import argparse
import json
import math
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from inputs import bundled_model, read_rows

from embedding_finetune.retrieval.ann import FLAT, REACH, make_index, recall_vs_exact

NOISE = 0.75  # length of the noise; that of the vector is 1
TARGET_RECALL = 0.95  # share of the exact top 10


def read_vectors(passages, queries):
    """(passages', queries'), float32 vectors of length 1."""
    from embedding_finetune.models.encoder import Encoder
    from embedding_finetune.models.encoder_config import EncoderConfig
    rows = random.Random(0).sample(rows := read_rows(os.environ.get("PAIRS")), min(3000, len(rows)))
    encoder = Encoder(EncoderConfig("bundled", "bundled", bundled_model(), "mean", "", "", 48, 128))
    origins = encoder.encode_passages([row["pos"][0] for row in rows])
    rng, dim = np.random.default_rng(0), origins.shape[1]
    vectors = origins[rng.integers(0, len(origins), passages)]
    for start in range(0, passages, 1 << 16):
        some = vectors[start:start + (1 << 16)]
        some += rng.standard_normal(some.shape, np.float32) * np.float32(NOISE / dim ** 0.5)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return vectors, encoder.encode_queries([row["query"] for row in rows if row["query"]][:queries])


def candidates(count, dim):
    """Values of INDEX to measure for `count` vectors of `dim` dimensions: name -> value."""
    lists = 1 << round(math.log2(4 * math.sqrt(max(1, count))))  # the power of 2 nearest to 4 * sqrt(count)
    probe = f"nprobe={max(1, round(lists * REACH['nprobe']))}"
    return {"flat": FLAT, "scalar-quantised": "SQ8", "IVF, scalar-quantised": f"IVF{lists},SQ8 {probe}",
            "IVF, product-quantised": f"IVF{lists},PQ{dim // 2}x4fs {probe}",
            "HNSW, scalar-quantised": f"HNSW32,SQ8 efSearch={REACH['efSearch']}"}


def measure(index_spec, vectors, queries):
    """Measure the cost and recall of an index over `vectors`.

    Returns a dict of `GB` (size), `minutes` (build time), `ms`, `p99_ms` and `exact_ms` (per single query), and
    `recall` of the exact top 10.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        index = make_index(index_spec).build(vectors, Path(folder))
        minutes = (time.perf_counter() - began) / 60
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) or vectors.nbytes
        found = recall_vs_exact(index, queries)
    return {"INDEX": index_spec, "GB": size / 1e9, "minutes": minutes} | {
        name: found[name] for name in ("ms", "p99_ms", "exact_ms", "recall")}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--passages", type=int, default=1_000_000)
    arguments.add_argument("--queries", type=int, default=200)
    arguments.add_argument("--only", nargs="*", help="names of candidates")
    options = arguments.parse_args()
    vectors, queries = read_vectors(options.passages, options.queries)
    rows = {}
    for name, where in candidates(*vectors.shape).items():
        if not options.only or name in options.only:
            rows[name] = measure(where, vectors, queries)
            print(name, {key: value if key == "INDEX" else round(value, 3) for key, value in rows[name].items()},
                  flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(f"measured:\n{table.round(3).to_markdown()}")
    ratio = table["ms"] / table["exact_ms"]
    good = ratio[(table["recall"] >= TARGET_RECALL) & (table.index != "flat")]
    best = good.idxmin() if len(good) else ratio.idxmin()
    found = {"passages": len(vectors), "index": table.loc[best, "INDEX"], "ann_recall@10": table.loc[best, "recall"],
             "ann_latency_ratio_exact": ratio[best], "ann_gb": table.loc[best, "GB"], "indexes": rows}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
