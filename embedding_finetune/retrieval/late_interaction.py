"""Reranking by late interaction: MaxSim between the token vectors of query and passage (see multi_vector).

Any encoder can be used, though training for late interaction improves its token vectors. An exhaustive search would be
too slow, so only the candidates of a first stage are scored.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from embedding_finetune.artifacts.arrays import link_or_write
from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import Encoder, make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.models.multi_vector import maxsim_candidates, pool_tokens, to_int8
from embedding_finetune.retrieval.rerank import Reranker
from embedding_finetune.settings import Settings

FILES = "token_vectors.raw", "token_starts.npy"
DTYPES = {"float16": np.float16, "int8": np.int8}


class LateInteraction(Reranker):
    """Reranker that scores candidates by MaxSim with the token vectors of an encoder (see encoder.Encoder)."""

    vectors: Any  # of all tokens, and the first position of each passage, see Encoder.encode_passage_tokens
    starts: Any

    def __init__(self, encoder: Encoder, dtype: str = "float16", pool_factor: int = 1) -> None:
        """Token vectors are stored as `dtype` (float16 or int8), reduced by `pool_factor`."""
        self.dtype, self.pool_factor = dtype, pool_factor
        self.encoder, self.revision, self.config = encoder, encoder.revision, encoder.config.identity
        self.description = f"late interaction of {encoder.config.model_name}"

    @classmethod
    def of(cls, settings: Settings, label: str) -> Self:
        encoder = make_encoder(settings, load_encoder_config(settings, label))
        return cls(encoder, settings.token_dtype, settings.token_pool_factor)

    def build(self, texts: list[str]) -> None:
        self.vectors, self.starts = self.encoder.encode_passage_tokens(texts)
        if self.pool_factor > 1:
            self.vectors, self.starts = pool_tokens(self.vectors, self.starts, self.pool_factor)
        if self.dtype == "int8":
            self.vectors = to_int8(self.vectors)
        self.bytes_per_passage = self.vectors.nbytes / max(1, len(texts))

    def save(self, folder: Path) -> None:
        link_or_write(self.vectors, folder / FILES[0])
        np.save(folder / FILES[1], self.starts)

    def load(self, folder: Path) -> Self:
        self.starts = np.load(folder / FILES[1], mmap_mode="r")
        tokens, dtype = int(self.starts[-1]), DTYPES[self.dtype]
        if tokens:
            self.vectors = np.memmap(folder / FILES[0], dtype, "r").reshape(tokens, -1)
        else:  # an empty file cannot be mapped
            self.vectors = np.empty((0, 0), dtype)
        return self

    def scores(self, texts: list[str], places: Iterable) -> Iterator[np.ndarray]:
        for tokens, own in zip(self.query_tokens(texts), places):
            yield maxsim_candidates(tokens, self.vectors, self.starts, own)

    def query_tokens(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Yield token vectors per query, float32 (tokens, dimensions). Raises UserError for a query without tokens."""
        for text, tokens in zip(texts, self.encoder.encode_query_tokens(texts)):
            if len(tokens) == 0:
                raise UserError(f"the query {text[:100]!r} has no tokens except special ones: remove it")
            yield tokens.astype(np.float32)
