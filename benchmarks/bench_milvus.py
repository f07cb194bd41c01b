"""The embedded Milvus compared with exact search: loading, what a second start costs, size, memory, and a query.

    python benchmarks/bench_milvus.py [--passages 100000 1000000] [--kinds FLAT HNSW]

Vectors are those of bench_index.py. Each row is a process of its own, with all vectors mapped from a file, and
`again_seconds` and the query are of the next process, which finds the collection full, as a search does. The last line
of standard output is one JSON object.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from bench_index import read_vectors
from inputs import peak_gb

from embedding_finetune.retrieval.ann import make_index, recall_vs_exact

QUERIES = 100


def loaded(folder, kind):
    """What it costs to put all vectors of a folder into a collection next to them, or to find them there."""
    began, vectors = time.perf_counter(), np.load(folder / "passages.npy", mmap_mode="r")
    index = make_index(f"milvus:{folder / f'{kind}.db'}#{kind}").build(vectors, folder)
    return index, {"seconds": round(time.perf_counter() - began, 1), "gb": round(_peak_gb(), 2)}


def load(folder, kind):
    """The first process."""
    return loaded(folder, kind)[1]


def ask(folder, kind):
    """The next process."""
    index, row = loaded(folder, kind)
    found = recall_vs_exact(index, np.load(folder / "queries.npy"))
    return {"again_seconds": row["seconds"], **{key: round(found[key], 3) for key in ("ms", "p99_ms", "exact_ms",
                                                                                      "recall")},
            "asking_gb": round(_peak_gb(), 2)}


def _peak_gb():
    """GB of this process and of the largest that it started."""
    return peak_gb() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments.add_argument("--kinds", nargs="+", default=["FLAT", "HNSW"])
    options = arguments.parse_args()
    rows = []
    for passages in options.passages:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            vectors, queries = read_vectors(passages, QUERIES)
            np.save(folder / "passages.npy", vectors)
            np.save(folder / "queries.npy", queries)
            del vectors
            for kind in options.kinds:
                row = {"passages": passages, "kind": kind}
                for step in load, ask:
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
                        row |= one.submit(step, folder, kind).result()
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and kind in str(file))
                rows.append(row | {"disk_gb": round(size / 1e9, 2)})
                print(rows[-1], flush=True)
    print(json.dumps({"milvus": rows}))


if __name__ == "__main__":
    main()
