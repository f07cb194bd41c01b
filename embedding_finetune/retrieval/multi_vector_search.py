"""Multi-vector retrieval: late interaction over the whole corpus, with a faiss index of token vectors.

As in ColBERT (Khattab and Zaharia, SIGIR 2020, section 3.6), the passages with the nearest token vectors to each query
token are the candidates, which MaxSim then ranks exactly. It can find passages missed by BM25 and single-vector
retrieval; the index holds about a hundred vectors per passage.
"""

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.models.multi_vector import INT8, maxsim_candidates
from embedding_finetune.retrieval.ann import build_with_factory, num_ivf_lists
from embedding_finetune.retrieval.base import FEW, Retriever, top_k

REACH = 200  # nearest token vectors per query token
FLAT = 1 << 18  # up to this many vectors an exact index is fast enough


class MultiVectorSearch(Retriever):
    """Retriever over the token vectors of `stage`, a LateInteraction without a corpus.

    `factory` is any string of faiss.index_factory. The default is an exact index for up to FLAT vectors, else an IVF
    index of int8 vectors (SQ8) in which each query token searches one list in 32.
    """

    def __init__(self, stage, factory="", reach=REACH):
        self.stage, self.factory, self.reach = stage, factory, reach
        self.description = f"{stage.description} over all passages"

    def build(self, texts):
        self.stage.build(texts)
        vectors = self.stage.vectors
        count = len(vectors)
        lists = num_ivf_lists(count)
        self.factory = self.factory or ("Flat" if count <= FLAT else f"IVF{lists},SQ8 nprobe={max(1, lists // 32)}")
        self.faiss = build_with_factory(self.factory, vectors.shape, self._float)

    def _float(self, rows):
        found = self.stage.vectors[rows].astype(np.float32)
        return found / INT8 if self.stage.vectors.dtype == np.int8 else found

    def search_batch(self, texts, depth):
        depth = min(depth, len(self.tie_rank))
        scores, positions = np.zeros((len(texts), depth), np.float32), np.full((len(texts), depth), -1, np.int32)
        starts, vectors = self.stage.starts, self.stage.vectors
        queries = self.stage.query_tokens(texts)
        for row, tokens in enumerate(tqdm(queries, self.description, len(texts), disable=len(texts) < FEW)):
            _, near = self.faiss.search(tokens, min(self.reach, len(vectors)))
            places = np.unique(np.searchsorted(starts, near[near >= 0], side="right") - 1)
            own = dict(zip(((int(self.tie_rank[place]), int(place)) for place in places),
                           maxsim_candidates(tokens, vectors, starts, places).tolist()))
            found = top_k(own, depth)
            positions[row, :len(found)] = [place for _, place in found]
            scores[row, :len(found)] = list(found.values())
        return scores, positions
