"""Exact and approximate nearest-neighbour search, with faiss or Milvus, selected by INDEX.

    flat                        exact search of vectors mapped from disk; all reported metrics use it
    HNSW32,SQ8 efSearch=1024    any string of faiss.index_factory, with search parameters (efSearch, nprobe)
    milvus:URI, milvus:URI#HNSW a collection in Milvus: a folder (embedded), or http://host:19530 of a server

An approximate index supplies candidates, which are scored again with the full vectors on disk. Only its codes are in
memory. Scores are exact, ties are broken as everywhere else, and score thresholds remain valid.
"""

import functools
import hashlib
import logging
import math
import os
import time
from pathlib import Path

import faiss
import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line, read_json, write_json
from embedding_finetune.retrieval.exact_search import exact_search
from embedding_finetune.settings import display_value, path_of

FLAT, MILVUS = "flat", "milvus:"
REFINE_FACTOR = 4  # candidates per requested passage ..
AT_LEAST = 100  # .. and the minimum number of candidates
SAMPLE, CHUNK = 1 << 17, 1 << 16  # vectors for training an index, and added at a time
SENT = 5000  # vectors per request to Milvus: under its limit of 64 MB for up to 3,000 dimensions
REACH = {"nprobe": 1 / 16, "efSearch": 1024}  # defaults: share of the IVF lists, nodes of the HNSW graph
MOST = 16384  # maximum number of hits of Milvus
KINDS = {  # index type of Milvus -> build parameters, and the search parameter that must be at least the number of hits
    "FLAT": ({}, ""), "AUTOINDEX": ({}, ""), "HNSW": ({"M": 32, "efConstruction": 128}, "ef"),
    "HNSW_SQ": ({"M": 32, "efConstruction": 128, "sq_type": "SQ8"}, "ef"), "DISKANN": ({}, "search_list"),
    "IVF_FLAT": ({"nlist": 1024}, "nprobe"), "IVF_SQ8": ({"nlist": 1024}, "nprobe")}
TIMEOUT = 60  # seconds
TIMED = 500  # queries to time


def num_ivf_lists(count):
    """Number of lists for an IVF index of `count` vectors: the power of 2 nearest to 4 * sqrt(count)."""
    return 1 << round(math.log2(4 * math.sqrt(max(1, count))))


def make_index(where):
    """Create the index that INDEX names, still without vectors."""
    if where.startswith(MILVUS):
        return MilvusIndex(where)
    return ExactIndex() if where == FLAT else FaissIndex(where)


class ExactIndex:
    """Exact search: every query is compared with all vectors."""

    def __init__(self, vectors=None):
        self.vectors = vectors

    def build(self, vectors, folder):
        """Index vectors, float32 (passages, dimensions), and write to `folder` what `load` needs. Returns the index."""
        return self.load(vectors, folder)

    def load(self, vectors, folder):
        """Load what `build` wrote; `vectors` must be the same. Returns the index."""
        self.vectors = vectors
        return self

    def search_batch(self, queries, depth, tie_rank):
        """Scores and positions of the nearest passages of query vectors, as in `Retriever.search_batch`."""
        return exact_search(queries, self.vectors, depth, tie_rank)


class ApproximateIndex(ExactIndex):
    """Base of approximate indexes: scores `candidates` with the full vectors."""

    def search_batch(self, queries, depth, tie_rank):
        depth = min(depth, len(self.vectors))
        reach = min(len(self.vectors), max(REFINE_FACTOR * depth, AT_LEAST))
        proposed = self.candidates(np.ascontiguousarray(queries), reach)
        scores, positions = np.zeros((len(queries), depth), np.float32), np.full((len(queries), depth), -1, np.int32)
        for row, (query, places) in enumerate(zip(queries, proposed)):
            places = np.sort(places[places >= 0])
            found = np.einsum("d,pd->p", query, self.vectors[places])
            best = np.lexsort((tie_rank[places], -found))[:depth]
            scores[row, :len(best)], positions[row, :len(best)] = found[best], places[best]
        return scores, positions

    def candidates(self, queries, reach):
        """Positions of candidates per query vector: int (queries, reach), padded with -1."""
        raise NotImplementedError


class FaissIndex(ApproximateIndex):
    """A faiss index, stored in a file."""

    FILE = "faiss.index"

    def __init__(self, factory):
        self.factory = factory

    def build(self, vectors, folder):
        index = build_with_factory(self.factory, vectors.shape, lambda rows: np.asarray(vectors[rows]))
        faiss.write_index(index, str(folder / self.FILE))
        return self.load(vectors, folder)

    def load(self, vectors, folder):
        # Codes and IVF lists are mapped from disk; the links of an HNSW graph are read into memory.
        self.index = faiss.read_index(str(folder / self.FILE), faiss.IO_FLAG_MMAP_IFC)
        if (self.index.ntotal, self.index.d) != vectors.shape:
            raise UserError(f"{folder / self.FILE} holds {self.index.ntotal:,} vectors of {self.index.d} dimensions, "
                            f"compared with {vectors.shape[0]:,} of {vectors.shape[1]} here: remove {folder}")
        set_search_params(self.index, self.factory)
        return super().load(vectors, folder)

    def candidates(self, queries, reach):
        return self.index.search(queries, reach)[1]


def build_with_factory(words, shape, vectors):
    """Build the faiss index described by `words` with all vectors of `shape` (count, dimensions).

    `vectors(rows)` returns float32 vectors for a slice or an array of positions. Raises UserError when faiss cannot
    build the index.
    """
    (count, dim), name = shape, words.split()[0]
    try:
        index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        set_search_params(index, words)
        if not index.is_trained:
            some = np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False)
            index.train(vectors(np.sort(some)))
    except RuntimeError as error:
        raise UserError(f"faiss cannot build the index {name!r} of {count:,} vectors of {dim} dimensions: "
                        f"{one_line(str(error).rpartition(': ')[2])}") from None
    starts = range(0, count, CHUNK)
    for start in tqdm(starts, "indexing", disable=len(starts) < 2):
        index.add(vectors(slice(start, start + CHUNK)))
    return index


def set_search_params(index, words):
    """Set the search parameters of a faiss index: those in `words` (nprobe=8) or the defaults in REACH."""
    name, *wanted = words.split()
    wanted, lists = dict(word.partition("=")[::2] for word in wanted), faiss.try_extract_index_ivf(index)
    graph = isinstance(faiss.downcast_index(index), faiss.IndexHNSW)
    fitting = {"nprobe": lists is not None, "efSearch": graph}
    for key, value in wanted.items():
        if not fitting.get(key) or not value.isdecimal() or value == "0":
            raise UserError(f"INDEX={words}: {key}={value} is not for {name}; nprobe is for IVF.., efSearch for HNSW..")
    if lists is not None:
        lists.nprobe = int(wanted.get("nprobe", max(1, round(lists.nlist * REACH["nprobe"]))))
    if graph:
        faiss.downcast_index(index).hnsw.efSearch = int(wanted.get("efSearch", REACH["efSearch"]))


class MilvusIndex(ApproximateIndex):
    """A collection in Milvus, named by a hash of its vectors.

    Vectors already in the collection are not sent again, an interrupted upload continues, and changed vectors go to a
    new collection. `#KIND` is an index type of Milvus (FLAT, HNSW ..). The environment variable MILVUS_TOKEN holds a
    server's API key or user:password.
    """

    FILE = "milvus.json"

    def __init__(self, where):
        self.uri, _, kind = where.removeprefix(MILVUS).partition("#")
        self.kind = kind or "FLAT"
        if self.kind not in KINDS:
            raise UserError(f"INDEX={display_value(where)}: the index type of Milvus must be one of {', '.join(KINDS)}")

    def build(self, vectors, folder):
        name = f"embedding_finetune_{_hash(vectors)}_{self.kind.lower()}"
        client = self._client()
        if not self._asked(client.has_collection, name):
            self._create(client, name, vectors.shape[1])
        sent = self._count(client, name) // SENT * SENT  # vectors are sent in order, SENT at a time
        for start in tqdm(range(sent, len(vectors), SENT), "vectors to Milvus", disable=len(vectors) - sent < 2 * SENT):
            rows = [{"id": start + row, "vector": vector} for row, vector in enumerate(vectors[start:start + SENT])]
            self._asked(client.upsert, name, rows)
        self._asked(client.flush, name)
        write_json(folder / self.FILE, {"collection": name})
        return self.load(vectors, folder)

    def load(self, vectors, folder):
        self.name, self.client = (read_json(folder / self.FILE) or {}).get("collection", "?"), self._client()
        there = self._asked(self.client.has_collection, self.name) and self._count(self.client, self.name)
        if there != len(vectors):
            raise UserError(f"{display_value(self.uri)} has {there or 'none'} of the {len(vectors):,} vectors of "
                            f"{folder}: remove that folder to rebuild the index")
        return super().load(vectors, folder)

    def candidates(self, queries, reach):
        far, reach = KINDS[self.kind][1], min(reach, MOST)
        found = self._asked(self.client.search, self.name, data=list(queries), limit=reach, output_fields=["id"],
                            search_params={"params": {far: reach} if far else {}})
        rows = [[hit["id"] for hit in hits] for hits in found]
        return np.array([row + [-1] * (reach - len(row)) for row in rows]).reshape(len(queries), reach)

    def _create(self, client, name, dim):
        from pymilvus import DataType
        schema, index = client.create_schema(auto_id=False), client.prepare_index_params()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index.add_index("vector", index_type=self.kind, metric_type="IP", params=KINDS[self.kind][0])
        self._asked(client.create_collection, name, schema=schema, index_params=index, consistency_level="Strong")

    def _count(self, client, name):
        self._asked(client.load_collection, name)
        return self._asked(client.query, name, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def _client(self):
        require("pymilvus")  # takes a second to import
        if "://" not in self.uri:
            require("milvus_lite")
        uri = self.uri if "://" in self.uri else str(path_of(self.uri))
        try:
            Path("." if "://" in uri else uri).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the folder of {uri}: {error.strerror}; name another in INDEX") from None
        return self._asked(_connected, uri)

    def _asked(self, call, *arguments, **named):
        from pymilvus.exceptions import MilvusException
        try:
            return call(*arguments, **named)
        except MilvusException as error:
            hint = ("is it running, and does it require MILVUS_TOKEN?" if "://" in self.uri else
                    "another process may have it open: only one can at a time; use a server for several")
            raise UserError(f"Milvus at {display_value(self.uri)} failed ({one_line(error.message)}): {hint}") from None


@functools.cache
def _connected(uri):
    """The Milvus client of this process; the embedded database can be opened only once."""
    from pymilvus import MilvusClient
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are raised as well
    return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=TIMEOUT)


def recall_vs_exact(index, queries, tie_rank, depth=10):
    """Compare an index with exact search: a dict with recall and latency of single queries.

    `recall` is the mean share of the exact top `depth` that the index finds. `ms` is the median latency in
    milliseconds, `p99_ms` its 99th percentile; both have counterparts for exact search, prefixed with `exact_`.
    """
    found = {}
    for name, one in {"": index, "exact_": ExactIndex(index.vectors)}.items():
        rows, times = [], []
        for query in queries[:TIMED]:
            began = time.perf_counter()
            rows.append(one.search_batch(query[None], depth, tie_rank)[1][0])
            times.append(1000 * (time.perf_counter() - began))
        found |= {f"{name}{key}ms": float(np.percentile(times, at)) for key, at in (("", 50), ("p99_", 99))}
        found[f"{name}rows"] = rows
    hits = [len(np.intersect1d(some, exact)) / len(exact) for some, exact in zip(found.pop("rows"),
                                                                                 found.pop("exact_rows"))]
    return found | {"recall": float(np.mean(hits)), "depth": depth, "queries": len(hits)}


def _hash(vectors):
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(vectors), CHUNK):
        digest.update(np.ascontiguousarray(vectors[start:start + CHUNK]))
    return digest.hexdigest()
