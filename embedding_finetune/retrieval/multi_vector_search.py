"""Late interaction as a first stage: all passages searched by their token vectors, through an index of faiss.

As ColBERT did it (Khattab and Zaharia, SIGIR 2020, section 3.6): every token of a query looks for its nearest token
vectors in the whole corpus; the passages that have them are the candidates, and MaxSim ranks these exactly. It finds
what neither shared words nor one vector find, at the price of an index of a hundred vectors a passage.
"""

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.models.multi_vector import INT8, maxsim_candidates
from embedding_finetune.retrieval.ann import build_with_factory, num_ivf_lists
from embedding_finetune.retrieval.base import FEW, Retriever, top_k

REACH = 200  # token vectors that each token of a query looks at
FLAT = 1 << 18  # vectors up to which an exact index is quick enough


class MultiVectorSearch(Retriever):
    """Finds passages by the token vectors of a LateInteraction; `stage` is one, without a corpus.

    `factory` is any index that faiss can make; by default an exact one for few vectors, and lists of int8 vectors (IVF,
    SQ8) of which a query's token looks into one in 32 for many.
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
