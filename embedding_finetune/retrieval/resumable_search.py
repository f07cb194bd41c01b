"""Resumable search with many queries: the results of each block of queries are stored on disk."""

import hashlib
import io
import sys

import numpy as np

from embedding_finetune.files import atomic_write, content_hash, reading
from embedding_finetune.models.embedding_cache import text_hash

BLOCK = 8192  # queries per block; a single block is not stored, since searching is as fast as reading


def resumable_search(retriever, queries, depth, folder, identity):
    """Positions as returned by `retriever.search_batch` for queries (a list of texts).

    With more than one block, each is stored in `folder`, in a file named by the hash of its queries, the depth and
    `identity` (JSON), which identifies retriever and corpus. Damaged files are reported and computed again.
    """
    if len(queries) <= BLOCK:
        return retriever.search_batch(queries, depth)[1]
    blocks = []
    for start in range(0, len(queries), BLOCK):
        some = queries[start:start + BLOCK]
        path = folder / f"{content_hash(identity, depth, [text_hash(query).hex() for query in some])[:32]}.hits"
        positions = _read(path)
        if positions is None:
            positions = retriever.search_batch(some, depth)[1]
            _write(path, positions)
        blocks.append(positions)
    return np.concatenate(blocks)


def _write(path, positions):
    content = io.BytesIO()
    np.save(content, positions)
    with atomic_write(path, "wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def _read(path):
    if not path.exists():
        return None
    with reading(path):
        content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() == content[:32]:
        return np.load(io.BytesIO(content[32:]))
    print(f"{path} is damaged: its queries will be searched again", file=sys.stderr)
    return None
