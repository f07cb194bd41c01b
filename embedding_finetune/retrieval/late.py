"""Late interaction: every token of a query looks for its best token in a passage (MaxSim, see tokens).

One vector a passage has to say everything at once; the vectors of its tokens need not. Too many to search through one
by one, they take a second look at what a first stage has found. Any encoder has token vectors, though only a training
for it makes the most of them.
"""

from itertools import pairwise

import numpy as np
import torch
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.encoder import encoder_of
from embedding_finetune.retrieval.model_use import use_of
from embedding_finetune.retrieval.second_stage import FEW, SecondStage
from embedding_finetune.retrieval.tokens import NO_TOKEN

FILES = "token_vectors.npy", "token_starts.npy"
INT8 = 127  # what 1 is in int8; a component of a vector of length 1 is no larger
CHUNK = 1 << 18  # vectors that are turned into int8 together


class LateInteraction(SecondStage):
    """Scores candidates by the token vectors of an encoder (see encoder.Encoder)."""

    def __init__(self, encoder, dtype="float16", merged=1):
        """Token vectors are kept as `dtype`, float16 or int8; so many of a passage's are merged into one on average."""
        self.dtype, self.merged = dtype, merged
        self.encoder, self.content, self.used = encoder, encoder.content, encoder.use.identity
        self.about = f"late interaction of {encoder.use.title}"

    @classmethod
    def of(cls, settings, label):
        return cls(encoder_of(settings, use_of(settings, label)), settings.token_store, settings.token_merge)

    def build(self, texts):
        self.vectors, self.starts = self.encoder.encode_passage_tokens(texts)
        if self.merged > 1:
            self.vectors, self.starts = merge_tokens(self.vectors, self.starts, self.merged)
        if self.dtype == "int8":
            self.vectors = to_int8(self.vectors)
        self.bytes_per_passage = self.vectors.nbytes / max(1, len(texts))

    def save(self, folder):
        """Write to `folder` what `restore` maps into memory there."""
        for name, array in zip(FILES, (self.vectors, self.starts)):
            np.save(folder / name, array)

    def restore(self, folder):
        """Take up what `save` wrote, without the passages: for `scores`, not for `score`. Returns the stage."""
        self.vectors, self.starts = (np.load(folder / name, mmap_mode="r") for name in FILES)
        return self

    def scores(self, texts, places):
        for tokens, own in zip(self.query_tokens(texts), places):
            yield max_sim(tokens, self.vectors, self.starts, own)

    def query_tokens(self, texts):
        """Yield the token vectors of queries: float32 (tokens, dimensions). Raises UserError for one without any."""
        for text, tokens in zip(texts, self.encoder.encode_query_tokens(texts)):
            if not len(tokens):
                raise UserError(f"the query {text[:100]!r} has no token but the model's special ones: leave it out")
            yield tokens.astype(np.float32)


def max_sim(query, vectors, starts, places):
    """Mean over a query's tokens of the best cosine with a token of the passage, for the passages at `places`: float32.

    `query` is float32 (tokens, dimensions); `vectors` and `starts` as Encoder.encode_passage_tokens returns them. A
    passage without a token has NO_TOKEN.
    """
    own = [vectors[starts[place]:starts[place + 1]] for place in places]
    sizes = np.array([len(rows) for rows in own], dtype=np.int64)
    scores = np.full(len(places), NO_TOKEN, np.float32)
    if sizes.any():
        cosines = (torch.from_numpy(query) @ torch.from_numpy(np.concatenate(own)).float().T).numpy()
        begins = (np.cumsum(sizes) - sizes)[sizes > 0]
        scores[sizes > 0] = np.maximum.reduceat(cosines, begins, axis=1).mean(axis=0)
        if vectors.dtype == np.int8:
            scores[sizes > 0] /= INT8
    return scores


def merge_tokens(vectors, starts, factor):
    """Vectors and starts with `factor` times fewer vectors: those of a passage that lie close together become one, the
    mean of them (Ward's clustering; Clavié et al. 2024, arXiv 2409.14683, by sentence-transformers)."""
    from sentence_transformers.multi_vector_encoder.modules.token_pooling import HierarchicalTokenPooling

    pooling, texts = HierarchicalTokenPooling(factor, num_protected_tokens=0), pairwise(starts.tolist())
    merged = [pooling.pool_one(torch.from_numpy(vectors[start:end].astype(np.float32))).half().numpy()
              for start, end in tqdm(texts, "merging tokens", len(starts) - 1, disable=len(starts) < FEW)]
    return np.concatenate(merged), np.cumsum([0, *map(len, merged)])


def to_int8(vectors):
    """Components in steps of 1 / INT8, a chunk at a time."""
    found = np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), CHUNK):
        found[start:start + CHUNK] = np.rint(vectors[start:start + CHUNK].astype(np.float32) * INT8)
    return found
