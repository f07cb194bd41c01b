"""Where nearest vectors are looked for: exactly, by an approximate index of faiss, or in Milvus, as INDEX says.

    flat                        all vectors, mapped from disk: exact, and what every reported metric comes from
    HNSW32,SQ8 efSearch=1024    whatever faiss.index_factory makes, and how far it looks (efSearch, nprobe)
    milvus:URI, milvus:URI#HNSW a collection in Milvus: a folder (embedded), or http://host:19530 of a server

An index that is not exact only proposes: what it finds is scored once more by the vectors themselves, from disk. So
memory is that of its codes, scores are exact, equal ones are ordered as everywhere, and a threshold that was chosen on
them holds.
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

from embedding_finetune.files import UserError, one_line, read_json, write_json
from embedding_finetune.retrieval.exact_search import exact_search, inner_products
from embedding_finetune.settings import path_of

FLAT, MILVUS = "flat", "milvus:"
REFINE_FACTOR = 4  # so many times the passages wanted are proposed ..
AT_LEAST = 100  # .. and no fewer than so many
SAMPLE, CHUNK = 1 << 17, 1 << 16  # vectors that a coarse index learns from, and that are added together
SENT = 5000  # vectors that Milvus takes at once: below the 64 MB of a message for up to 3,000 dimensions
REACH = {"nprobe": 1 / 16, "efSearch": 1024}  # where INDEX does not say: a share of the lists, nodes of the graph
MOST = 16384  # hits that Milvus gives
KINDS = {  # of Milvus's indexes -> what they are made with, and which setting of a search has to reach as far as it
    "FLAT": ({}, ""), "AUTOINDEX": ({}, ""), "HNSW": ({"M": 32, "efConstruction": 128}, "ef"),
    "HNSW_SQ": ({"M": 32, "efConstruction": 128, "sq_type": "SQ8"}, "ef"), "DISKANN": ({}, "search_list"),
    "IVF_FLAT": ({"nlist": 1024}, "nprobe"), "IVF_SQ8": ({"nlist": 1024}, "nprobe")}
TIMEOUT = 60  # seconds
TIMED = 500  # queries


def num_ivf_lists(count):
    """How many lists an IVF of so many vectors is to have: the power of 2 next to 4 times the root of their number."""
    return 1 << round(math.log2(4 * math.sqrt(max(1, count))))


def make_index(where):
    """What INDEX names, without vectors yet."""
    if where.startswith(MILVUS):
        return MilvusIndex(where)
    return ExactIndex() if where == FLAT else FaissIndex(where)


class ExactIndex:
    """All vectors are compared with each query."""

    def __init__(self, vectors=None):
        self.vectors = vectors

    def build(self, vectors, folder):
        """Take in the vectors, float32 (passages, dimensions), and keep in `folder` what `restore` needs beside
        them."""
        return self.load(vectors, folder)

    def load(self, vectors, folder):
        """Take up what `build` kept; `vectors` are those that it took in. Returns the index."""
        self.vectors = vectors
        return self

    def search_batch(self, queries, depth, tie_rank):
        """Scores and positions of the nearest passages of query vectors, as `Retriever.top` returns them."""
        return exact_search(queries, self.vectors, depth, tie_rank)

    def narrow(self, share):
        """See Faiss; what looks everywhere does so in a sample, too."""
        return False


class ApproximateIndex(ExactIndex):
    """What `proposed` finds, scored by the vectors."""

    share = 1  # of the passages that are proposed otherwise

    def search_batch(self, queries, depth, tie_rank):
        depth = min(depth, len(self.vectors))
        reach = min(len(self.vectors), max(depth, round(self.share * max(REFINE_FACTOR * depth, AT_LEAST))))
        proposed = self.candidates(np.ascontiguousarray(queries), reach)
        scores, positions = np.zeros((len(queries), depth), np.float32), np.full((len(queries), depth), -1, np.int32)
        for row, (query, places) in enumerate(zip(queries, proposed)):
            places = np.sort(places[places >= 0])
            found = inner_products(query[None], self.vectors[places])[0]
            best = np.lexsort((tie_rank[places], -found))[:depth]
            scores[row, :len(best)], positions[row, :len(best)] = found[best], places[best]
        return scores, positions

    def candidates(self, queries, reach):
        """Positions of passages near to each query vector: an int array (queries, reach), -1 where fewer are found."""
        raise NotImplementedError


class FaissIndex(ApproximateIndex):
    """An index of faiss, in a file."""

    FILE = "faiss.index"

    def __init__(self, factory):
        self.factory = factory

    def build(self, vectors, folder):
        index = build_with_factory(self.factory, vectors.shape, lambda rows: np.asarray(vectors[rows]))
        faiss.write_index(index, str(folder / self.FILE))
        return self.load(vectors, folder)

    def load(self, vectors, folder):
        # Codes and lists stay on disk, mapped; of a graph the links are read.
        self.index = faiss.read_index(str(folder / self.FILE), faiss.IO_FLAG_MMAP_IFC)
        if (self.index.ntotal, self.index.d) != vectors.shape:
            raise UserError(f"{folder / self.FILE} holds {self.index.ntotal:,} vectors of {self.index.d} dimensions, "
                            f"beside {vectors.shape[0]:,} of {vectors.shape[1]}: remove {folder}")
        set_search_params(self.index, self.factory)
        return super().load(vectors, folder)

    def candidates(self, queries, reach):
        return self.index.search(queries, reach)[1]

    def narrow(self, share):
        """Look into a sample as far as into a corpus of which it is this share: at so much less of a graph (of lists,
        `nprobe` is a share already). Returns whether that changes anything."""
        if graph := isinstance(found := faiss.downcast_index(self.index), faiss.IndexHNSW):
            self.share, found.hnsw.efSearch = share, max(1, round(share * found.hnsw.efSearch))
        return graph


def build_with_factory(words, shape, vectors):
    """The index of faiss that `words` name, with all vectors in it; `vectors(rows)` gives float32 ones, by a slice or
    by positions. Raises UserError when faiss makes none."""
    (count, dim), name = shape, words.split()[0]
    try:
        index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        set_search_params(index, words)
        if not index.is_trained:
            some = np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False)
            index.train(vectors(np.sort(some)))
    except RuntimeError as error:
        raise UserError(f"faiss makes no index {name!r} of {count:,} vectors of {dim} dimensions: "
                        f"{one_line(str(error).rpartition(': ')[2])}") from None
    starts = range(0, count, CHUNK)
    for start in tqdm(starts, "indexing", disable=len(starts) < 2):
        index.add(vectors(slice(start, start + CHUNK)))
    return index


def set_search_params(index, words):
    """Set how far a search in an index of faiss looks: as `words` say (nprobe=8), else as REACH does."""
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
    """A collection in Milvus, named by a hash of its vectors: what is there already is not sent again, an interrupted
    load goes on, and vectors that changed are another collection.

    `#KIND` is one of its index types (FLAT, HNSW ..). MILVUS_TOKEN of the environment is a server's key or
    user:password.
    """

    FILE = "milvus.json"

    def __init__(self, where):
        self.uri, _, kind = where.removeprefix(MILVUS).partition("#")
        self.kind = kind or "FLAT"
        if self.kind not in KINDS:
            raise UserError(f"INDEX={where}: Milvus's index is to be one of {', '.join(KINDS)}")

    def build(self, vectors, folder):
        name = f"embedding_finetune_{_hash(vectors)}_{self.kind.lower()}"
        client = self._client()
        if not self._asked(client.has_collection, name):
            self._create(client, name, vectors.shape[1])
        sent = self._count(client, name) // SENT * SENT  # in this order, SENT at a time
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
            raise UserError(f"{self.uri} has {there or 'none'} of the {len(vectors):,} vectors of {folder}: remove "
                            "that folder, and the index is made anew")
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
        uri = self.uri if "://" in self.uri else str(path_of(self.uri))
        try:
            Path("." if "://" in uri else uri).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder of {uri}: {error.strerror}; name another in INDEX") from None
        return self._asked(_connected, uri)

    def _asked(self, call, *arguments, **named):
        from pymilvus.exceptions import MilvusException
        try:
            return call(*arguments, **named)
        except MilvusException as error:
            hint = ("does it run, and does it want MILVUS_TOKEN?" if "://" in self.uri else
                    "another process may have it open: it is for one at a time; a server is for several")
            raise UserError(f"Milvus at {self.uri} does not do what it is asked to ({one_line(error.message)}): {hint}"
                            ) from None


@functools.cache
def _connected(uri):
    """The client of a Milvus: one a process, since the embedded one can be opened but once."""
    from pymilvus import MilvusClient  # takes a second to import
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are raised as well
    return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=TIMEOUT)


def recall_vs_exact(index, queries, tie_rank, depth=10):
    """Share of the exact first `depth` passages that an index finds, and the milliseconds of both for one of the query
    vectors, alone (median; `p99_ms`: of the slowest 1 %): a dict."""
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
