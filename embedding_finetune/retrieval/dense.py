"""Dense (single-vector) retrieval by inner product."""

import tempfile

import numpy as np

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.ann import FLAT, ExactIndex, make_index, recall_vs_exact
from embedding_finetune.retrieval.base import Retriever
from embedding_finetune.settings import display_value

PART = 1 << 20  # passages whose vectors are in memory at a time


def encode_corpus(encoder, texts):
    """Encode passages; more than PART are written to a temporary memory-mapped file, PART at a time.

    The file is in the cache folder and is deleted when the process ends.
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

    A newly indexed corpus is searched exactly, a loaded one with the index that `where` names (see ann).
    """

    def __init__(self, encoder, where=FLAT):
        self.encoder, self.index_spec = encoder, where
        self.description = encoder.config.title

    def build(self, texts):
        self.vectors = self.nearest = None  # free the vectors of a previous corpus first
        self.vectors = encode_corpus(self.encoder, texts)
        self.nearest = ExactIndex(self.vectors)

    def save(self, folder):
        super().save(folder)
        np.save(folder / "vectors.npy", self.vectors)
        make_index(self.index_spec).build(self.vectors, folder)

    def load(self, folder):
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.nearest = make_index(self.index_spec).load(self.vectors, folder)
        return super().load(folder)

    def search_batch(self, texts, depth):
        return self.nearest.search_batch(self.encoder.encode_queries(texts), depth, self.tie_rank)

    def recall_vs_exact(self, texts):
        """Recall and latency of a loaded index compared with exact search, see ann.recall_vs_exact."""
        queries = self.encoder.encode_queries(texts)
        return {"index": display_value(self.index_spec)} | recall_vs_exact(self.nearest, queries, self.tie_rank)
