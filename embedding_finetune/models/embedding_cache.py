"""On-disk caches of text vectors and token vectors.

Each encoder configuration has its own folder. Its files (see artifacts.arrays) hold pairs of (text hash, vector) and
are written while encoding proceeds, so an interrupted evaluation resumes and a grown corpus costs only its new texts.
Nothing is overwritten or evicted; `embedding-finetune clean cache` removes everything.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from embedding_finetune.artifacts.arrays import read_array, short_hash, write_array
from embedding_finetune.artifacts.manifest import changed_file, read_record, write_record
from embedding_finetune.files import UserError, atomic_write, write_json

STORED = ("vectors.raw", "starts.npy")  # files of a TokenEmbeddingStore


def text_hash(text: str) -> bytes:
    """128-bit hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class EmbeddingCache:
    """Cache of text vectors; `identity` holds everything a vector depends on except the text."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder) / short_hash(json.dumps(identity, sort_keys=True).encode())
        self.identity = identity
        self._keys = {}  # name of a file that was read or written here -> its text hashes

    def read(self, wanted: Set[bytes] | None = None) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield the content of each file: a list of text hashes and their vectors, float32 (texts, dimensions).

        Files known to contain none of the hashes in `wanted` are skipped. Damaged files are reported and removed.
        """
        for path in sorted(self.folder.glob("*.npy")):
            known = self._keys.get(path.name)
            if wanted is not None and known is not None and wanted.isdisjoint(known.tolist()):
                continue
            rows = read_array(path, "its vectors will be computed again")
            if rows is not None:
                self._keys[path.name] = rows["key"].copy()  # a view would keep the vectors in memory
                yield rows["key"].tolist(), rows["vector"]

    def write(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store float32 vectors (texts, dimensions) under the hashes of their texts in a new file."""
        rows = np.empty(len(keys), dtype=[("key", "V16"), ("vector", np.float32, vectors.shape[1:])])
        rows["key"], rows["vector"] = np.array(keys, dtype="V16"), vectors
        if not (self.folder / "identity.json").exists():  # not read by the program
            write_json(self.folder / "identity.json", self.identity)
        self._keys[write_array(self.folder, rows).name] = rows["key"].copy()


class TokenEmbeddingStore:
    """Token vectors of many texts, stored in a single array.

    `identity` holds everything the vectors depend on except the texts. Without a `folder`, they are kept in temporary
    files that are deleted with the store.
    """

    def __init__(self, folder: str | Path | None, identity: dict[str, Any], texts: Sequence[str]) -> None:
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory()
            folder = self._temporary.name
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for text in texts:
            digest.update(text_hash(text))
        self.folder = Path(folder) / f"tokens-{digest.hexdigest()[:32]}"
        self.identity = identity | {"texts": len(texts)}

    def complete(self) -> bool:
        """Whether all files exist and match their hashes; damage is reported."""
        record = self._record()
        if record is None:  # it is written last
            return False
        damaged = changed_file(self.folder, record["files"])
        if damaged:
            print(f"{self.folder} is damaged: its vectors will be computed again", file=sys.stderr)
        return not damaged

    def write(self, chunks: Iterable[list[np.ndarray]]) -> None:
        """Store `chunks`, lists with one float16 array (tokens, dimensions) per text.

        Raises UserError as soon as the size of the chunks so far shows that the disk is too small.
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
            np.save(file, np.cumsum([0, *sizes], dtype=np.int64))
        write_record(self.folder / "identity.json", self.identity, STORED, shape=[sum(sizes), dim])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Memory-mapped vectors and start offsets, as returned by Encoder.encode_passage_tokens."""
        record = self._record()
        assert record, "read before it was complete"
        shape, starts = tuple(record["shape"]), np.load(self.folder / "starts.npy")
        if not shape[0]:  # an empty file cannot be mapped
            return np.empty(shape, np.float16), starts
        return np.memmap(self.folder / "vectors.raw", np.float16, "r", shape=shape), starts

    def _record(self):
        return read_record(self.folder / "identity.json")

    def _check_space(self, needed):
        """Raise UserError if fewer than `needed` bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(f"the token vectors of {self.identity['texts']:,} passages take {needed / 1e9:,.1f} GB "
                            f"more, and {self.folder.parent} has {free / 1e9:,.1f} GB free: free some space, or "
                            "disable reranking (RERANKERS=\"\")")
