"""An index in Milvus: INDEX=milvus:URI or milvus:URI#KIND.

URI is a folder (embedded) or http://host:19530 of a server, KIND an index type of Milvus. The environment variable
MILVUS_TOKEN holds a server's API key or user:password.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line, read_json, write_json
from embedding_finetune.retrieval.ann import CHUNK, MILVUS, ApproximateIndex
from embedding_finetune.settings import display_value, path_of

SENT = 5000  # vectors per request: under the limit of 64 MB for up to 3,000 dimensions
MOST = 16384  # maximum number of hits
KINDS = {  # index type -> build parameters, and the search parameter that must be at least the number of hits
    "FLAT": ({}, ""), "AUTOINDEX": ({}, ""), "HNSW": ({"M": 32, "efConstruction": 128}, "ef"),
    "HNSW_SQ": ({"M": 32, "efConstruction": 128, "sq_type": "SQ8"}, "ef"), "DISKANN": ({}, "search_list"),
    "IVF_FLAT": ({"nlist": 1024}, "nprobe"), "IVF_SQ8": ({"nlist": 1024}, "nprobe")}
TIMEOUT = 60  # seconds


class MilvusIndex(ApproximateIndex):
    """A collection in Milvus, named by a hash of its vectors.

    Vectors already in the collection are not sent again, an interrupted upload continues, and changed vectors go to a
    new collection.
    """

    FILE = "milvus.json"

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.uri, _, kind = spec.removeprefix(MILVUS).partition("#")
        self.kind = kind or "FLAT"
        if self.kind not in KINDS:
            raise UserError(f"INDEX={display_value(spec)}: the index type of Milvus must be one of {', '.join(KINDS)}")
        if "://" not in self.uri and not self.uri.endswith(".db"):
            raise UserError(f"INDEX={display_value(spec)}: an embedded Milvus is a file that ends with .db, such as "
                            "milvus:FOLDER/milvus.db; a server is milvus:http://HOST:PORT")

    def build(self, vectors: np.ndarray, folder: Path) -> Self:
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

    def load(self, vectors: np.ndarray, folder: Path) -> Self:
        self.name, self.client = (read_json(folder / self.FILE) or {}).get("collection", "?"), self._client()
        there = self._asked(self.client.has_collection, self.name) and self._count(self.client, self.name)
        if there != len(vectors):
            raise UserError(f"{display_value(self.uri)} has {there or 'none'} of the {len(vectors):,} vectors of "
                            f"{folder}: remove that folder to rebuild the index")
        return super().load(vectors, folder)

    def candidates(self, queries: np.ndarray, reach: int) -> np.ndarray:
        far, reach = KINDS[self.kind][1], min(reach, MOST)
        found = self._asked(self.client.search, self.name, data=list(queries), limit=reach, output_fields=["id"],
                            search_params={"params": {far: reach} if far else {}})
        rows = [[hit["id"] for hit in hits] for hits in found]
        return np.array([row + [-1] * (reach - len(row)) for row in rows]).reshape(len(queries), reach)

    def _create(self, client: Any, name: str, dim: int) -> None:
        from pymilvus import DataType
        schema, index = client.create_schema(auto_id=False), client.prepare_index_params()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index.add_index("vector", index_type=self.kind, metric_type="IP", params=KINDS[self.kind][0])
        self._asked(client.create_collection, name, schema=schema, index_params=index, consistency_level="Strong")

    def _count(self, client: Any, name: str) -> int:
        self._asked(client.load_collection, name)
        return self._asked(client.query, name, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def _client(self) -> Any:
        require("pymilvus")  # takes a second to import
        if "://" not in self.uri:
            require("milvus_lite")
        uri = self.uri if "://" in self.uri else str(path_of(self.uri))
        try:
            Path("." if "://" in uri else uri).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the folder of {uri}: {error.strerror}; name another in INDEX") from None
        return self._asked(connect, uri)

    def _asked(self, call: Callable, *arguments: Any, **named: Any) -> Any:
        from pymilvus.exceptions import MilvusException
        try:
            return call(*arguments, **named)
        except MilvusException as error:
            hint = ("is it running, and does it require MILVUS_TOKEN?" if "://" in self.uri else
                    "another process may have it open: only one can at a time; use a server for several")
            raise UserError(f"Milvus at {display_value(self.uri)} failed ({one_line(error.message)}): {hint}") from None


@functools.cache
def connect(uri: str) -> Any:
    """The Milvus client of this process; the embedded database can be opened only once."""
    from pymilvus import MilvusClient
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are raised as well
    return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=TIMEOUT)


def _hash(vectors: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(vectors), CHUNK):
        digest.update(np.ascontiguousarray(vectors[start:start + CHUNK]).data)
    return digest.hexdigest()
