"""Late interaction: MaxSim between the token vectors of query and passage (see multi_vector).

Any encoder can be used, though training for late interaction improves its token vectors. `LateInteraction` reranks the
candidates of a first stage. `MultiVectorSearch` searches the whole corpus with a faiss index of token vectors: as in
ColBERT (Khattab and Zaharia, SIGIR 2020, section 3.6), the passages with the nearest token vectors to each query token
are the candidates, which MaxSim then ranks exactly. It can find passages missed by BM25 and single-vector retrieval;
the index holds about a hundred vectors per passage.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import Encoder, make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.models.multi_vector import INT8, maxsim_candidates, pool_tokens, to_int8
from embedding_finetune.retrieval.ann import build_with_factory, num_ivf_lists
from embedding_finetune.retrieval.base import FEW, Hits, Retriever, best, padded
from embedding_finetune.retrieval.rerank import Reranker

if TYPE_CHECKING:
    from embedding_finetune.settings import Settings

FILES = "token_vectors.npy", "token_starts.npy"
REACH = 200  # nearest token vectors per query token
FLAT = 1 << 18  # up to this many vectors an exact index is fast enough


class LateInteraction(Reranker):
    """Reranker that scores candidates by MaxSim with the token vectors of an encoder (see encoder.Encoder)."""

    vectors: Any  # of all tokens, and the first position of each passage, see Encoder.encode_passage_tokens
    starts: Any

    def __init__(self, encoder: Encoder, dtype: str = "float16", pool_factor: int = 1) -> None:
        """Token vectors are stored as `dtype` (float16 or int8), reduced by `pool_factor`."""
        self.dtype, self.pool_factor = dtype, pool_factor
        self.encoder, self.revision, self.config = encoder, encoder.revision, encoder.config.identity
        self.description = f"late interaction of {encoder.config.title}"

    @classmethod
    def of(cls, settings: "Settings", label: str) -> Self:
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
        for name, array in zip(FILES, (self.vectors, self.starts)):
            np.save(folder / name, array)

    def load(self, folder: Path) -> Self:
        self.vectors, self.starts = (np.load(folder / name, mmap_mode="r") for name in FILES)
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


class MultiVectorSearch(Retriever):
    """Retriever over the token vectors of `stage`, a LateInteraction without a corpus.

    `factory` is any string of faiss.index_factory. The default is an exact index for up to FLAT vectors, else an IVF
    index of int8 vectors (SQ8) in which each query token searches one list in 32.
    """

    def __init__(self, stage: LateInteraction, factory: str = "", reach: int = REACH) -> None:
        self.stage, self.factory, self.reach = stage, factory, reach
        self.description = f"{stage.description} over all passages"

    def build(self, texts: list[str]) -> None:
        self.stage.build(texts)
        count = len(self.stage.vectors)
        lists = num_ivf_lists(count)
        self.factory = self.factory or ("Flat" if count <= FLAT else f"IVF{lists},SQ8 nprobe={max(1, lists // 32)}")
        self.faiss = build_with_factory(self.factory, self.stage.vectors.shape, self._float)

    def _float(self, rows: Any) -> np.ndarray:
        found = self.stage.vectors[rows].astype(np.float32)
        return found / INT8 if self.stage.vectors.dtype == np.int8 else found

    def search_batch(self, texts: list[str], depth: int) -> Hits:
        queries = tqdm(self.stage.query_tokens(texts), self.description, len(texts), disable=len(texts) < FEW)
        depth = min(depth, len(self.stage.starts) - 1)
        return padded((self._search(tokens, depth) for tokens in queries), len(texts), depth)

    def _search(self, tokens: np.ndarray, depth: int) -> Hits:
        vectors, starts = self.stage.vectors, self.stage.starts
        _, near = self.faiss.search(tokens, min(self.reach, len(vectors)))
        places = np.unique(np.searchsorted(starts, near[near >= 0], side="right") - 1)
        return best(maxsim_candidates(tokens, vectors, starts, places), places, depth)
