"""Multi-vector retrieval: late interaction over the whole corpus, with a faiss index of token vectors.

As in ColBERT (Khattab and Zaharia, SIGIR 2020, section 3.6), the passages with the nearest token vectors to each query
token are the candidates, which MaxSim then ranks exactly. It can find passages missed by BM25 and single-vector
retrieval; the index holds about a hundred vectors per passage.
"""

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.models.multi_vector import INT8, maxsim_candidates
from embedding_finetune.retrieval.ann import build_with_factory, num_ivf_lists
from embedding_finetune.retrieval.base import FEW, Hits, Retriever, best, padded
from embedding_finetune.retrieval.late_interaction import LateInteraction

REACH = 200  # nearest token vectors per query token
FLAT = 1 << 18  # up to this many vectors an exact index is fast enough


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
        return best(maxsim_candidates(tokens, vectors, starts, places.tolist()), places, depth)
