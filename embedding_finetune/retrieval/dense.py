"""Dense (single-vector) retrieval by inner product."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.ann import FLAT, ExactIndex, make_index, recall_vs_exact
from embedding_finetune.retrieval.base import Hits, Retriever
from embedding_finetune.settings import display_value

if TYPE_CHECKING:
    from embedding_finetune.models.encoder import Encoder

PART = 1 << 20  # passages whose vectors are in memory at a time


def encode_corpus(encoder: "Encoder", texts: list[str]) -> np.ndarray:
    """Encode passages: float32 (passages, dimensions). More than PART are written to a temporary memory-mapped file.

    The file is in the cache folder and is deleted when the process ends. Raises UserError when it cannot be written.
    """
    if len(texts) <= PART:
        return encoder.encode_passages(texts)
    try:
        with tempfile.TemporaryFile(dir=encoder.cache) as file:
            for start in range(0, len(texts), PART):
                some = encoder.encode_passages(texts[start:start + PART])
                file.write(some.data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(len(texts), some.shape[1]))
    except OSError as error:
        raise UserError(f"cannot write the vectors of {len(texts):,} passages to {encoder.cache or 'a temporary file'} "
                        f"({error.strerror}): free some space") from None


class Dense(Retriever):
    """Dense retriever: nearest vectors of an `encoder` (see encoder.Encoder) by inner product.

    A newly indexed corpus is searched exactly, a loaded one with the index that `index_spec` names (see ann).
    """

    def __init__(self, encoder: "Encoder", index_spec: str = FLAT) -> None:
        self.encoder, self.index_spec = encoder, index_spec
        self.description = encoder.config.title
        self.nearest = ExactIndex()

    @property
    def vectors(self) -> np.ndarray:
        """The vectors of the passages, float32 (passages, dimensions)."""
        return self.nearest.vectors

    def build(self, texts: list[str]) -> None:
        self.nearest = ExactIndex()  # frees the vectors of a previous corpus first
        self.nearest = ExactIndex(encode_corpus(self.encoder, texts))

    def save(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.vectors)
        make_index(self.index_spec).build(self.vectors, folder)

    def load(self, folder: Path) -> Self:
        self.nearest = make_index(self.index_spec).load(np.load(folder / "vectors.npy", mmap_mode="r"), folder)
        return self

    def search_batch(self, texts: list[str], depth: int) -> Hits:
        return self.nearest.search_batch(self.encoder.encode_queries(texts), depth)

    def recall_vs_exact(self, texts: list[str]) -> dict[str, Any]:
        """Recall and latency of a loaded index compared with exact search, see ann.recall_vs_exact."""
        queries = self.encoder.encode_queries(texts)
        return {"index": display_value(self.index_spec)} | recall_vs_exact(self.nearest, queries)
