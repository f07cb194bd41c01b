"""Vectors on disk, so that a text is encoded once for each way of encoding it.

A folder holds the vectors of one way of encoding, in files of (key of the text, vector) that are written as encoding
goes on: an interrupted evaluation resumes, and a corpus that has grown costs only what is new. A file is named by the
hash of its own bytes, which is how damage shows. Nothing is ever overwritten or evicted: `make clean-cache` removes
it all.
"""

import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.files import UserError, atomic_write, reading, sha256, write_json


def text_hash(text):
    """128 bits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class EmbeddingCache:
    """The vectors of one way of encoding: `identity` has everything but the text that a vector depends on."""

    def __init__(self, folder, identity):
        self.folder = Path(folder) / _hash(json.dumps(identity, sort_keys=True).encode())
        self.identity = identity
        self._keys = {}  # name of a file that was read or written here -> its text_keys

    def read(self, wanted=None):
        """Yield what is stored, a file at a time: a list of text_keys, and their vectors, float32 (texts, dimensions).

        A file that is known to hold none of the text_keys `wanted` (a set) is skipped. Damaged files are reported and
        removed.
        """
        for path in sorted(self.folder.glob("*.npy")):
            known = self._keys.get(path.name)
            if wanted is not None and known is not None and wanted.isdisjoint(known.tolist()):
                continue
            with reading(path):
                content = path.read_bytes() if path.is_file() else b""
            if _hash(content) != path.stem:
                print(f"{path} is damaged: removed, its vectors are computed again", file=sys.stderr)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                continue
            rows = np.load(io.BytesIO(content))
            self._keys[path.name] = rows["key"].copy()  # a view would keep the vectors in memory
            yield rows["key"].tolist(), rows["vector"]

    def write(self, keys, vectors):
        """Store float32 vectors of shape (texts, dimensions) under their texts' keys, as one more file."""
        rows = np.empty(len(keys), dtype=[("key", "V16"), ("vector", np.float32, vectors.shape[1:])])
        rows["key"], rows["vector"] = np.array(keys, dtype="V16"), vectors
        content = io.BytesIO()
        np.save(content, rows)
        if not (self.folder / "identity.json").exists():  # for people: what these vectors are
            write_json(self.folder / "identity.json", self.identity)
        path = self.folder / f"{_hash(content.getbuffer())}.npy"
        with atomic_write(path, "wb") as file:
            file.write(content.getbuffer())
        self._keys[path.name] = rows["key"].copy()


STORED = ("vectors.raw", "starts.npy")  # files of a TokenStore


class TokenEmbeddingStore:
    """The token vectors of many texts, which are too large to be kept one by one: one array for all of them.

    `identity` has everything but the texts that the vectors depend on; without a `folder` they live in a temporary
    file that goes with the store.
    """

    def __init__(self, folder, identity, texts):
        self._temporary = None if folder else tempfile.TemporaryDirectory()
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for text in texts:
            digest.update(text_hash(text))
        self.folder = Path(folder or self._temporary.name) / f"tokens-{digest.hexdigest()[:32]}"
        self.identity = identity | {"texts": len(texts)}

    def complete(self):
        """Whether the files are there as they were written; damaged ones are reported, and written anew."""
        written = self._written()
        if not written:  # it is written last
            return False
        whole = all((self.folder / name).is_file() and sha256(self.folder / name) == written.get(name)
                    for name in STORED)
        if not whole:
            print(f"{self.folder} is damaged: its vectors are computed again", file=sys.stderr)
        return whole

    def write(self, chunks):
        """Store `chunks`: lists of float16 vectors (tokens, dimensions), an array a text.

        Raises UserError as soon as the first chunk shows that the disk will not hold them all.
        """
        (self.folder / "identity.json").unlink(missing_ok=True)
        sizes, dim = [], 0
        with atomic_write(self.folder / "vectors.raw", "wb") as file:
            for vectors in chunks:
                file.write(np.concatenate(vectors).data)
                sizes += map(len, vectors)
                dim = vectors[0].shape[1]
                self._check_space(file.tell() * (self.identity["texts"] / len(sizes) - 1))
        with atomic_write(self.folder / "starts.npy", "wb") as file:
            np.save(file, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
        hashes = {name: sha256(self.folder / name) for name in STORED}
        write_checksummed(self.folder / "identity.json", self.identity | {"shape": [sum(sizes), dim]} | hashes)

    def _written(self):
        return read_checksummed(self.folder / "identity.json", having={"shape": list})

    def _check_space(self, needed):
        """Raise UserError unless so many bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(f"the token vectors of {self.identity['texts']:,} passages take {needed / 1e9:,.1f} GB "
                            f"more, and {self.folder.parent} has {free / 1e9:,.1f} GB free: free some, or do without "
                            "the second look (RERANKERS=\"\")")

    def read(self):
        """Vectors, memory-mapped, and starts, see Encoder.encode_passage_tokens."""
        shape = tuple(self._written()["shape"])
        vectors = np.memmap(self.folder / "vectors.raw", np.float16, "r", shape=shape) if shape[0] else \
            np.empty(shape, np.float16)
        return vectors, np.load(self.folder / "starts.npy")


def _hash(content):
    return hashlib.sha256(content).hexdigest()[:32]
