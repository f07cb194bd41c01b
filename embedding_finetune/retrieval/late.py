"""Late interaction: every token of a query looks for its best token in a passage.

One vector a passage has to say everything at once; the vectors of its tokens need not. Too many to search through one
by one, they take a second look at what a first stage has found. (MaxSim: Khattab and Zaharia, "ColBERT", SIGIR 2020,
arXiv 2004.12832; here the mean over the query's tokens, so that scores lie between -1 and 1 as cosines do. Any encoder
has token vectors, though only a training for it makes the most of them.)
"""

from dataclasses import asdict

import numpy as np
import torch

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.encoder import Encoder
from embedding_finetune.retrieval.model_use import use_of
from embedding_finetune.retrieval.second_stage import SecondStage, kind

FILES = "token_vectors.npy", "token_starts.npy"


@kind("late")
class LateInteraction(SecondStage):
    """Scores candidates by the token vectors of an encoder (see encoder.Encoder)."""

    def __init__(self, encoder):
        self.encoder, self.content, self.used = encoder, encoder.content, asdict(encoder.use)
        self.about = f"late interaction of {encoder.use.title}"

    @classmethod
    def of(cls, settings, label):
        return cls(Encoder(use_of(settings, label), settings.encode_batch_size, cache=settings.output_dir / "cache"))

    def build(self, texts):
        self.vectors, self.starts = self.encoder.encode_passage_tokens(texts)
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
        for text, tokens, own in zip(texts, self.encoder.encode_query_tokens(texts), places):
            if not len(tokens):
                raise UserError(f"the query {text[:100]!r} has no token but the model's special ones: leave it out")
            yield max_sim(tokens.astype(np.float32), self.vectors, self.starts, own)


def max_sim(query, vectors, starts, places):
    """Mean over a query's tokens of the best cosine with a token of the passage, for the passages at `places`: float32.

    `query` is float32 (tokens, dimensions); `vectors` and `starts` as Encoder.encode_passage_tokens returns them. A
    passage without a token has -1.
    """
    own = [vectors[starts[place]:starts[place + 1]] for place in places]
    sizes = np.array([len(rows) for rows in own], dtype=np.int64)
    scores = np.full(len(places), -1, np.float32)
    if sizes.any():
        cosines = (torch.from_numpy(query) @ torch.from_numpy(np.concatenate(own)).float().T).numpy()
        begins = (np.cumsum(sizes) - sizes)[sizes > 0]
        scores[sizes > 0] = np.maximum.reduceat(cosines, begins, axis=1).mean(axis=0)
    return scores
