"""Resumable search with many queries: the results of each block of queries are stored on disk."""

from pathlib import Path
from typing import Any

import numpy as np

from embedding_finetune.artifacts.arrays import read_array, write_array
from embedding_finetune.files import content_hash
from embedding_finetune.models.embedding_cache import text_hash
from embedding_finetune.retrieval.base import Retriever

BLOCK = 8192  # queries per block; a single block is not stored, since searching is as fast as reading


def resumable_search(retriever: Retriever, queries: list[str], depth: int, folder: Path, identity: Any) -> np.ndarray:
    """Positions as returned by `retriever.search_batch` for queries (a list of texts).

    With more than one block, each is stored in `folder` (see artifacts.arrays). Its key is the hash of its queries, the
    depth and `identity` (JSON), which identifies retriever and corpus. Damaged files are reported and computed again.
    """
    if len(queries) <= BLOCK:
        return retriever.search_batch(queries, depth)[1]
    blocks = []
    for start in range(0, len(queries), BLOCK):
        some = queries[start:start + BLOCK]
        key = content_hash(identity, depth, [text_hash(query).hex() for query in some])[:32]
        stored = (read_array(path, "its queries will be searched again") for path in folder.glob(f"{key}-*.npy"))
        positions = next((array for array in stored if array is not None), None)
        if positions is None:
            positions = retriever.search_batch(some, depth)[1]
            write_array(folder, positions, key)
        blocks.append(positions)
    return np.concatenate(blocks)
