"""Vectors on disk, so that a text is encoded once for each way of encoding it.

A folder holds the vectors of one way of encoding, in files of (key of the text, vector) that are written as encoding
goes on: an interrupted evaluation resumes, and a corpus that has grown costs only what is new. A file is named by the
hash of its own bytes, which is how damage shows. Nothing is ever overwritten or evicted: `make clean-cache` removes
it all.
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np

from embedding_finetune.files import atomic_write, write_json


def text_key(text):
    """128 bits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class VectorCache:
    """The vectors of one way of encoding: `identity` has everything but the text that a vector depends on."""

    def __init__(self, folder, identity):
        self.folder = Path(folder) / _hash(json.dumps(identity, sort_keys=True).encode())
        self.identity = identity

    def read(self):
        """All vectors stored: text_key -> float32 (dimensions,). Damaged files are reported and removed."""
        vectors = {}
        for path in sorted(self.folder.glob("*.npy")):
            content = path.read_bytes()
            if _hash(content) != path.stem:
                print(f"{path} is damaged: removed, its vectors are computed again", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
            rows = np.load(io.BytesIO(content))
            vectors.update(zip(rows["key"].tolist(), rows["vector"]))
        return vectors

    def write(self, keys, vectors):
        """Store float32 vectors of shape (texts, dimensions) under their texts' keys, as one more file."""
        rows = np.empty(len(keys), dtype=[("key", "V16"), ("vector", np.float32, vectors.shape[1:])])
        rows["key"], rows["vector"] = np.array(keys, dtype="V16"), vectors
        content = io.BytesIO()
        np.save(content, rows)
        if not (self.folder / "identity.json").exists():  # for people: what these vectors are
            write_json(self.folder / "identity.json", self.identity)
        with atomic_write(self.folder / f"{_hash(content.getbuffer())}.npy", "wb") as file:
            file.write(content.getbuffer())


def _hash(content):
    return hashlib.sha256(content).hexdigest()[:32]
