"""Searching, side by side in one run: this package's dense_run against the bare product of the vectors with a top-k.

    python benchmarks/bench_search.py [--passages 1000000] [--queries 7000] [--dimensions 384] [--rounds 1] [--threads 2]
        [--clock wall]

The bare search multiplies blocks of queries and passages (numpy's BLAS) and keeps each query's 100 best of block after block
(torch.topk); it knows no ids, no order among ties, and makes no run. Product alone: the same without any top-k.
Vectors are random and of length 1. On a machine that others load, too, --clock cpu --threads 1 counts the processor's seconds.
The last line of standard output is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
DEPTH = 100


def unit_vectors(rows, dimensions, seed):
    """Random float32 vectors of length 1."""
    import numpy as np

    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def bare_search(queries, passages, top=True, block=(1024, 8192)):
    """Scores and positions of the DEPTH best passages of each query."""
    import numpy as np
    import torch

    buffer = np.empty(block, np.float32)
    results = []
    for start in range(0, len(queries), block[0]):
        some = queries[start:start + block[0]]
        best, where = torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.int64)
        for first in range(0, len(passages), block[1]):
            part = passages[first:first + block[1]]
            product = buffer.reshape(-1)[:len(some) * len(part)].reshape(len(some), len(part))
            np.matmul(some, part.T, out=product)
            if top:
                scores, positions = torch.from_numpy(product).topk(min(DEPTH, len(part)), sorted=False)
                best, where = torch.cat([best, scores], 1), torch.cat([where, positions + first], 1)
                best, keep = best.topk(min(DEPTH, best.shape[1]))
                where = where.gather(1, keep)
        results.append((best.numpy(), where.numpy()))
    return [np.concatenate(parts) for parts in zip(*results)]


def main():
    arguments = argparse.ArgumentParser()
    for name, default in (("passages", 1_000_000), ("queries", 7_000), ("dimensions", 384), ("rounds", 1), ("threads", 2)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = arguments.parse_args()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)  # read when the libraries load

    import faiss  # noqa: F401  before the clock starts
    import torch

    from embedding_finetune.index import dense_run
    from embedding_finetune.training_files import TestSet

    torch.set_num_threads(options.threads)
    passages, queries = (unit_vectors(rows, options.dimensions, seed) for seed, rows in enumerate((options.passages, options.queries)))
    passage_ids, query_ids = [f"p{row:07d}" for row in range(len(passages))], [f"q{row}" for row in range(len(queries))]
    test_set = TestSet(queries=dict.fromkeys(query_ids, ""), corpus=dict.fromkeys(passage_ids, ""), qrels={})
    contenders = {"product alone": lambda: bare_search(queries, passages, top=False), "product and top-k": lambda: bare_search(queries, passages),
                  "dense_run": lambda: dense_run(test_set, queries, passages, DEPTH)}
    times = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, search in contenders.items():
            started = clock()
            result = search()
            times[name].append(clock() - started)
            if name == "product and top-k":
                where = result[1]
    agreement = statistics.mean(len(set(result[query]) & {passage_ids[row] for row in rows}) / len(rows) for query, rows in zip(query_ids, where))

    def ratio(ours, other):
        return round(statistics.median(a / b for a, b in zip(times[ours], times[other])), 3)

    work = 2 * options.passages * options.queries * options.dimensions
    for name, seconds in times.items():
        print(f"{name:18} {' '.join(f'{second:.1f}' for second in seconds)} s ({work / statistics.median(seconds) / 1e9:.0f} GFLOPS)")
    print(json.dumps({"time_ratio_bare_search": ratio("dense_run", "product and top-k"),
                      "time_ratio_product_alone": ratio("dense_run", "product alone"),
                      "seconds": round(statistics.median(times["dense_run"]), 2), "agreement@100": round(agreement, 5)}))


if __name__ == "__main__":
    main()
