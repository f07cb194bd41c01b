"""Mining's search in a million vectors that are mapped from disk: seconds a block of queries, memory, and what a second
start costs once blocks are there.

    python benchmarks/bench_mining.py [--passages 1000000] [--queries 500000] [--blocks 2] [--depth 200]

The search is that of mining (retrieval/blocks.py over retrieval/nearest.py) with random vectors in the place of a
model's. All queries are there, but only the first blocks of them are searched for; hours are those blocks' time by the
number of all. The last line of standard output is one JSON object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_search import unit_vectors
from inputs import peak_gb
from tqdm.auto import tqdm

from embedding_finetune.retrieval.exact_search import exact_search
from embedding_finetune.retrieval.resumable_search import BLOCK, resumable_search

PART = 100_000  # vectors that are made together


class Given:
    """Finds for queries by their vectors, which are given: the text of a query is its number."""

    def __init__(self, queries, passages):
        self.queries, self.passages = queries, passages

    def search_batch(self, texts, depth):
        return exact_search(self.queries[[int(text) for text in texts]], self.passages, depth)


def mapped(path, rows, dimensions):
    """Random vectors in a file, mapped into memory."""
    with open(path, "wb") as file:
        for seed, start in enumerate(tqdm(range(0, rows, PART), desc="vectors", unit="part")):
            file.write(unit_vectors(min(PART, rows - start), dimensions, seed).data)
    return np.memmap(path, np.float32, "r", shape=(rows, dimensions))


def main():
    arguments = argparse.ArgumentParser()
    sizes = {"passages": 1_000_000, "queries": 500_000, "blocks": 2, "depth": 200, "dimensions": 384}
    for name, default in sizes.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        retriever = Given(unit_vectors(options.queries, options.dimensions, seed=options.passages),
                          mapped(Path(folder) / "vectors", options.passages, options.dimensions))
        texts = [str(number) for number in range(options.queries)][:options.blocks * BLOCK]
        seconds = []
        for _ in "once", "again":
            began = time.perf_counter()
            found = resumable_search(retriever, texts, options.depth, Path(folder) / "hits", "random vectors")
            seconds.append(time.perf_counter() - began)
    assert found.shape == (len(texts), options.depth)
    work = 2 * len(texts) * options.passages * options.dimensions
    all_blocks = -(-options.queries // BLOCK)
    print(f"{options.blocks} of {all_blocks} blocks: {seconds[0]:.1f} s ({work / seconds[0] / 1e9:.0f} GFLOPS), "
          f"a second time {seconds[1]:.2f} s; {peak_gb():.2f} GB at the peak")
    print(json.dumps({"queries": options.queries, "passages": options.passages, "blocks": options.blocks,
                      "block_seconds": round(seconds[0] / options.blocks, 2), "again_seconds": round(seconds[1], 3),
                      "hours": round(seconds[0] * all_blocks / options.blocks / 3600, 2),
                      "gflops": round(work / seconds[0] / 1e9), "gb": round(peak_gb(), 2)}))


if __name__ == "__main__":
    main()
