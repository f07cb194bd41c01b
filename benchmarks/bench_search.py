"""Searching, side by side in one run: this package's search against the bare product of the vectors with a top-k.

    python benchmarks/bench_search.py [--passages 1000000] [--queries 7000] [--dimensions 384] [--rounds 1]
        [--threads 2] [--clock wall]

The bare search multiplies blocks of queries and passages (numpy's BLAS) and keeps each query's 100 best of block after
block (torch.topk); it knows no order among ties. Product alone: the same without any top-k. Vectors are random and of
length 1. On a machine that others load, too, --clock cpu --threads 1 counts the processor's seconds. The last line of
standard output is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def unit_vectors(rows, dimensions, seed):
    """Random float32 vectors of length 1."""
    import numpy as np

    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def bare_search(queries, passages, depth, block=(1024, 8192)):
    """Scores and positions of the `depth` best passages of each query."""
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
            if depth:
                scores, positions = torch.from_numpy(product).topk(min(depth, len(part)), sorted=False)
                best, where = torch.cat([best, scores], 1), torch.cat([where, positions + first], 1)
                best, keep = best.topk(min(depth, best.shape[1]))
                where = where.gather(1, keep)
        results.append((best.numpy(), where.numpy()))
    return [np.concatenate(parts) for parts in zip(*results)]


def main():
    arguments = argparse.ArgumentParser()
    sizes = {"passages": 1_000_000, "queries": 7_000, "dimensions": 384, "rounds": 1, "threads": 2}
    for name, default in sizes.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = arguments.parse_args()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # read when the libraries load

    import torch

    from embedding_finetune.retrieval.base import DEPTH
    from embedding_finetune.retrieval.exact_search import exact_search

    torch.set_num_threads(options.threads)
    passages, queries = (unit_vectors(rows, options.dimensions, seed)
                         for seed, rows in enumerate((options.passages, options.queries)))
    contenders = {"product alone": lambda: bare_search(queries, passages, 0),
                  "product and top-k": lambda: bare_search(queries, passages, DEPTH),
                  "nearest": lambda: exact_search(queries, passages, DEPTH)}
    times, found = {name: [] for name in contenders}, {}
    for _ in range(options.rounds):
        for name, search in contenders.items():
            started = clock()
            found[name] = search()[1]
            times[name].append(clock() - started)
    both = zip(found["nearest"].tolist(), found["product and top-k"].tolist(), strict=True)
    agreement = statistics.mean(len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in both)

    def ratio(ours, other):
        return round(statistics.median(a / b for a, b in zip(times[ours], times[other])), 3)

    work = 2 * options.passages * options.queries * options.dimensions
    for name, seconds in times.items():
        each = " ".join(f"{second:.1f}" for second in seconds)
        print(f"{name:18} {each} s ({work / statistics.median(seconds) / 1e9:.0f} GFLOPS)")
    print(json.dumps({"time_ratio_bare_search": ratio("nearest", "product and top-k"),
                      "time_ratio_product_alone": ratio("nearest", "product alone"),
                      "seconds": round(statistics.median(times["nearest"]), 2), "agreement@100": round(agreement, 5)}))


if __name__ == "__main__":
    main()
