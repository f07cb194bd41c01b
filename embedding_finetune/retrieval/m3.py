"""BGE-M3 as it is meant: one vector, weights of words and vectors of tokens, all from one model, through FlagEmbedding.

(Chen et al. 2024, "M3-Embedding", arXiv 2402.03216.) As a first stage it is its dense third alone; this second look is
the whole.
"""

import pickle
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import torch
from huggingface_hub import hf_hub_download

from embedding_finetune.files import UserError
from embedding_finetune.hub import UNLOADABLE, cannot_load, model_content
from embedding_finetune.retrieval.late import max_sim
from embedding_finetune.retrieval.model_use import use_of
from embedding_finetune.retrieval.second_stage import SecondStage, check_finite

LAYERS = "sparse_linear.pt", "colbert_linear.pt"
WEIGHTS = 0.4, 0.2, 0.4  # of dense, sparse and multi-vector scores, as its authors' page has them


class M3(SecondStage):
    """Scores candidates by the weighted sum of the model's dense, sparse and multi-vector scores."""

    def __init__(self, use):
        """`use` is a ModelUse. Raises UserError when the model lacks the layers that make it a BGE-M3."""
        self.use, self.used, self.content = use, asdict(use), model_content(use.name)
        self.about = f"dense, sparse and multi-vector scores of {use.title}"
        self.model = None
        for layer in LAYERS:
            try:
                path = Path(use.name) / layer if Path(use.name).is_dir() else hf_hub_download(use.name, layer)
                torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise UserError(f"{use.title} has a {layer} with something else than weights in it, which is not "
                                "loaded") from None
            except (OSError, ValueError, RuntimeError, httpx.HTTPError):
                raise UserError(f"{use.title} has no {layer}: it is no BGE-M3, take another second stage, such as "
                                f"late_{use.label}") from None

    @classmethod
    def of(cls, settings, label):
        return cls(use_of(settings, label))

    def build(self, texts):
        vectors = self._encode("encode_corpus", [self.use.passage_prompt + text for text in texts],
                               self.use.passage_max_len)
        self.dense, self.words, tokens = (vectors[name] for name in ("dense_vecs", "lexical_weights", "colbert_vecs"))
        self.starts = np.cumsum([0, *map(len, tokens)])
        self.tokens = np.concatenate(tokens).astype(np.float16)
        words = 6 * sum(map(len, self.words))  # a number of a word and its weight, in 4 and 2 bytes
        self.bytes_per_passage = (self.tokens.nbytes + words) / max(1, len(texts))

    def scores(self, texts, places):
        queries = self._encode("encode_queries", [self.use.query_prompt + text for text in texts],
                               self.use.query_max_len)
        for dense, words, tokens, own in zip(*queries.values(), places):
            parts = (self.dense[own] @ dense, [self.model.compute_lexical_matching_score(words, self.words[place])
                                               for place in own],
                     max_sim(tokens.astype(np.float32), self.tokens, self.starts, own))
            scores = sum(weight * np.asarray(part, np.float32) for weight, part in zip(WEIGHTS, parts))
            yield check_finite(scores.astype(np.float32) / np.float32(sum(WEIGHTS)), self.about)

    def _encode(self, encode, texts, max_length):
        if self.model is None:
            from FlagEmbedding import BGEM3FlagModel
            gpu = torch.cuda.is_available()
            try:
                self.model = BGEM3FlagModel(self.use.name, pooling_method=self.use.pooling, use_fp16=gpu,
                                            normalize_embeddings=self.use.normalize,
                                            devices=["cuda:0" if gpu else "cpu"], trust_remote_code=self.use.trusted)
            except UNLOADABLE as error:
                raise cannot_load(self.use.title, error) from None
        found = getattr(self.model, encode)(texts, max_length=max_length, batch_size=16, return_dense=True,
                                            return_sparse=True, return_colbert_vecs=True)
        return {name: found[name] for name in ("dense_vecs", "lexical_weights", "colbert_vecs")}
