"""Late interaction: every token of a query looks for its best token in a passage (MaxSim, see tokens).

One vector a passage has to say everything at once; the vectors of its tokens need not. Too many to search through one
by one, they take a second look at what a first stage has found. Any encoder has token vectors, though only a training
for it makes the most of them.
"""


import numpy as np

from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.models.multi_vector import maxsim_candidates, pool_tokens, to_int8
from embedding_finetune.retrieval.rerank import Reranker

FILES = "token_vectors.npy", "token_starts.npy"


class LateInteraction(Reranker):
    """Scores candidates by the token vectors of an encoder (see encoder.Encoder)."""

    def __init__(self, encoder, dtype="float16", merged=1):
        """Token vectors are kept as `dtype`, float16 or int8; so many of a passage's are merged into one on average."""
        self.dtype, self.merged = dtype, merged
        self.encoder, self.revision, self.config = encoder, encoder.revision, encoder.config.identity
        self.description = f"late interaction of {encoder.config.title}"

    @classmethod
    def of(cls, settings, label):
        return cls(make_encoder(settings, load_encoder_config(settings, label)), settings.token_dtype, settings.token_pool_factor)

    def build(self, texts):
        self.vectors, self.starts = self.encoder.encode_passage_tokens(texts)
        if self.merged > 1:
            self.vectors, self.starts = pool_tokens(self.vectors, self.starts, self.merged)
        if self.dtype == "int8":
            self.vectors = to_int8(self.vectors)
        self.bytes_per_passage = self.vectors.nbytes / max(1, len(texts))

    def save(self, folder):
        """Write to `folder` what `restore` maps into memory there."""
        for name, array in zip(FILES, (self.vectors, self.starts)):
            np.save(folder / name, array)

    def load(self, folder):
        """Take up what `save` wrote, without the passages: for `scores`, not for `score`. Returns the stage."""
        self.vectors, self.starts = (np.load(folder / name, mmap_mode="r") for name in FILES)
        return self

    def scores(self, texts, places):
        for tokens, own in zip(self.query_tokens(texts), places):
            yield maxsim_candidates(tokens, self.vectors, self.starts, own)

    def query_tokens(self, texts):
        """Yield the token vectors of queries: float32 (tokens, dimensions). Raises UserError for one without any."""
        for text, tokens in zip(texts, self.encoder.encode_query_tokens(texts)):
            if not len(tokens):
                raise UserError(f"the query {text[:100]!r} has no token but the model's special ones: leave it out")
            yield tokens.astype(np.float32)
