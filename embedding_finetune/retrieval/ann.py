"""Exact and approximate nearest-neighbour search, selected by INDEX.

    flat                        exact search of vectors mapped from disk; all reported metrics use it
    HNSW32,SQ8 efSearch=1024    any string of faiss.index_factory, with search parameters (efSearch, nprobe)
    milvus:URI, milvus:URI#HNSW a collection in Milvus, see contrib.milvus

An approximate index supplies candidates, which are scored again with the full vectors on disk. Only its codes are in
memory. Scores are exact, ties are broken as everywhere else, and score thresholds remain valid.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from tqdm.auto import tqdm

from embedding_finetune import contrib
from embedding_finetune.files import UserError, one_line
from embedding_finetune.retrieval.base import Hits, best, padded
from embedding_finetune.retrieval.exact_search import exact_search

FLAT, MILVUS = "flat", "milvus:"
REFINE_FACTOR = 4  # candidates per requested passage ..
AT_LEAST = 100  # .. and the minimum number of candidates
SAMPLE, CHUNK = 1 << 17, 1 << 16  # vectors for training an index, and added at a time
REACH = {"nprobe": 1 / 16, "efSearch": 1024}  # defaults: share of the IVF lists, nodes of the HNSW graph
TIMED = 500  # queries to time


def make_index(spec: str) -> "ExactIndex":
    """Create the index that INDEX names, still without vectors."""
    if spec.startswith(MILVUS):
        return contrib.load("milvus").MilvusIndex(spec)
    return ExactIndex() if spec == FLAT else FaissIndex(spec)


class ExactIndex:
    """Exact search: every query is compared with all vectors."""

    def __init__(self, vectors: np.ndarray | None = None) -> None:
        self.vectors: Any = vectors

    def build(self, vectors: np.ndarray, folder: Path) -> Self:
        """Index vectors, float32 (passages, dimensions), and write to `folder` what `load` needs. Returns the index."""
        return self.load(vectors, folder)

    def load(self, vectors: np.ndarray, folder: Path) -> Self:
        """Load what `build` wrote; `vectors` must be the same. Returns the index."""
        self.vectors = vectors
        return self

    def search_batch(self, queries: np.ndarray, depth: int) -> Hits:
        """Scores and positions of the nearest passages of query vectors, as in `Retriever.search_batch`."""
        return exact_search(queries, self.vectors, depth)


class ApproximateIndex(ExactIndex):
    """Base of approximate indexes: scores `candidates` with the full vectors."""

    def search_batch(self, queries: np.ndarray, depth: int) -> Hits:
        depth = min(depth, len(self.vectors))
        reach = min(len(self.vectors), max(REFINE_FACTOR * depth, AT_LEAST))
        rows = zip(queries, self.candidates(np.ascontiguousarray(queries), reach))
        return padded((self._scored(query, np.sort(places[places >= 0]), depth) for query, places in rows),
                      len(queries), depth)

    def _scored(self, query: np.ndarray, places: np.ndarray, depth: int) -> Hits:
        return best(np.einsum("d,pd->p", query, self.vectors[places]), places, depth)

    def candidates(self, queries: np.ndarray, reach: int) -> np.ndarray:
        """Positions of candidates per query vector: int (queries, reach), padded with -1."""
        raise NotImplementedError


class FaissIndex(ApproximateIndex):
    """A faiss index, stored in a file."""

    FILE = "faiss.index"

    def __init__(self, factory: str) -> None:
        super().__init__()
        self.factory = factory

    def build(self, vectors: np.ndarray, folder: Path) -> Self:
        index = build_with_factory(self.factory, vectors.shape, lambda rows: np.asarray(vectors[rows]))
        faiss.write_index(index, str(folder / self.FILE))
        return self.load(vectors, folder)

    def load(self, vectors: np.ndarray, folder: Path) -> Self:
        # Codes and IVF lists are mapped from disk; the links of an HNSW graph are read into memory.
        self.index = faiss.read_index(str(folder / self.FILE), faiss.IO_FLAG_MMAP_IFC)
        if (self.index.ntotal, self.index.d) != vectors.shape:
            raise UserError(f"{folder / self.FILE} holds {self.index.ntotal:,} vectors of {self.index.d} dimensions, "
                            f"compared with {vectors.shape[0]:,} of {vectors.shape[1]} here: remove {folder}")
        set_search_params(self.index, self.factory)
        return super().load(vectors, folder)

    def candidates(self, queries: np.ndarray, reach: int) -> np.ndarray:
        return self.index.search(queries, reach)[1]


def build_with_factory(words: str, shape: tuple[int, ...], vectors: Callable[[Any], np.ndarray]) -> faiss.Index:
    """Build the faiss index described by `words` with all vectors of `shape` (count, dimensions).

    `vectors(rows)` returns float32 vectors for a slice or an array of positions. Raises UserError when faiss cannot
    build the index.
    """
    (count, dim), name = shape, words.split()[0]
    try:
        index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        set_search_params(index, words)
        if not index.is_trained:
            sample = np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False)
            index.train(vectors(np.sort(sample)))
    except RuntimeError as error:
        raise UserError(f"faiss cannot build the index {name!r} of {count:,} vectors of {dim} dimensions: "
                        f"{one_line(str(error).rpartition(': ')[2])}") from None
    starts = range(0, count, CHUNK)
    for start in tqdm(starts, "indexing", disable=len(starts) < 2):
        index.add(vectors(slice(start, start + CHUNK)))
    return index


def set_search_params(index: faiss.Index, words: str) -> None:
    """Set the search parameters of a faiss index: those in `words` (nprobe=8) or the defaults in REACH.

    Raises UserError for a parameter that is not one of this index, or not a positive number.
    """
    name, *parameters = words.split()
    wanted: dict[str, Any] = {key: value for key, _, value in (word.partition("=") for word in parameters)}
    ivf, graph = faiss.try_extract_index_ivf(index), faiss.downcast_index(index)
    fitting = {"nprobe": ivf is not None, "efSearch": isinstance(graph, faiss.IndexHNSW)}
    for key, value in wanted.items():
        if not fitting.get(key) or not value.isdecimal() or value == "0":
            raise UserError(f"INDEX={words}: {key}={value} is not for {name}; nprobe is for IVF.., efSearch for HNSW..")
    if ivf is not None:
        ivf.nprobe = int(wanted.get("nprobe", max(1, round(ivf.nlist * REACH["nprobe"]))))
    if isinstance(graph, faiss.IndexHNSW):
        graph.hnsw.efSearch = int(wanted.get("efSearch", REACH["efSearch"]))


def recall_vs_exact(index: ExactIndex, queries: np.ndarray, depth: int = 10) -> dict[str, Any]:
    """Compare an index with exact search: a dict with recall and latency of single queries.

    `recall` is the mean share of the exact top `depth` that the index finds. `ms` is the median latency in
    milliseconds, `p99_ms` its 99th percentile; both have counterparts for exact search, prefixed with `exact_`.
    """
    measured: dict[str, Any] = {"depth": depth, "queries": len(queries[:TIMED])}
    rows = {}
    for prefix, searched in (("", index), ("exact_", ExactIndex(index.vectors))):
        rows[prefix], times = [], []
        for query in queries[:TIMED]:
            began = time.perf_counter()
            rows[prefix].append(searched.search_batch(query[None], depth)[1][0])
            times.append(1000 * (time.perf_counter() - began))
        measured |= {f"{prefix}ms": float(np.median(times)), f"{prefix}p99_ms": float(np.percentile(times, 99))}
    found = [len(np.intersect1d(some, exact)) / len(exact) for some, exact in zip(rows[""], rows["exact_"])]
    return measured | {"recall": float(np.mean(found))}
