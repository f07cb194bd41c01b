"""Reranking with the dense, sparse and multi-vector scores of BGE-M3, through FlagEmbedding.

(Chen et al. 2024, "M3-Embedding", arXiv 2402.03216.) First-stage retrieval uses only its dense vectors. The reranker
computes all three scores itself, so they do not depend on the model of the first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import is_offline_mode

from embedding_finetune.files import UserError, read_jsonl, write_jsonl
from embedding_finetune.hub import UNLOADABLE, cannot_load, model_content, model_file, snapshot
from embedding_finetune.models.embedding_cache import TokenEmbeddingStore
from embedding_finetune.models.encoder import TOKEN_CHUNK
from embedding_finetune.models.encoder_config import EncoderConfig, load_encoder_config
from embedding_finetune.models.modeling import encoding_dtype
from embedding_finetune.models.multi_vector import maxsim_candidates
from embedding_finetune.retrieval.rerank import Reranker, check_finite
from embedding_finetune.settings import Settings

LAYERS = "sparse_linear.pt", "colbert_linear.pt"
WEIGHTS = 0.4, 0.2, 0.4  # of dense, sparse and multi-vector scores, from the model card; they sum to 1
FILES, WORDS = ("m3_tokens.npy", "m3_starts.npy", "m3_vectors.npy"), "m3_words.jsonl"  # files of a saved index
BATCH = 16  # texts; FlagEmbedding's default of 256 is slow on a CPU


def layer_weights(config: EncoderConfig, layer: str) -> torch.Tensor:
    """The weights in a file of LAYERS, loaded without executing pickled code.

    Raises UserError when the file is missing or damaged, or does not hold weights.
    """
    path = model_file(config.name, layer)
    if path is None:
        offline = " (or it was not downloaded before going offline)" if is_offline_mode() else ""
        raise UserError(f"{config.title} has no {layer}: it is no BGE-M3{offline}, choose another reranker, such as "
                        f"late_{config.label}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["weight"]
    except UNLOADABLE:
        raise UserError(f"{config.title} has a {layer} that is damaged or holds something else than weights, which "
                        "is not loaded: download it again") from None


class M3(Reranker):
    """Reranker that scores candidates by the weighted sum of dense, sparse and multi-vector scores."""

    def __init__(self, config: EncoderConfig) -> None:
        """Raises UserError when the model lacks the layers of a BGE-M3."""
        self.encoder_config, self.config, self.revision = config, config.identity, model_content(config.name)
        self.description = f"dense, sparse and multi-vector scores of {config.title}"
        self.model: Any = None
        self.token_dim = [len(layer_weights(config, layer)) for layer in LAYERS][-1]

    @classmethod
    def of(cls, settings: Settings, label: str) -> M3:
        """The reranker with the model of a label."""
        return cls(load_encoder_config(settings, label))

    def build(self, texts: Sequence[str]) -> None:
        dense, self.words = [], []

        def token_vectors():  # dense vectors and word weights of the same pass are kept in memory
            prompted = [self.encoder_config.passage_prompt + text for text in texts]
            for found in self._encoded(prompted, self.encoder_config.passage_max_len):
                dense.append(found["dense_vecs"].astype(np.float32))
                self.words.extend(found["lexical_weights"])
                yield [tokens.astype(np.float16) for tokens in found["colbert_vecs"]]

        store = TokenEmbeddingStore(None, {}, texts)
        store.write(token_vectors())
        self.tokens, self.starts = store.read()
        self.dense = np.concatenate(dense)
        words = 6 * sum(map(len, self.words))  # word id in 4 bytes and weight in 2
        self.bytes_per_passage = (self.dense.nbytes + self.tokens.nbytes + words) / max(1, len(texts))

    def save(self, folder: Path) -> None:
        for name, array in zip(FILES, (self.tokens, self.starts, self.dense)):
            np.save(folder / name, array)
        write_jsonl(folder / WORDS, self.words)

    def load(self, folder: Path) -> M3:
        """Load what `save` wrote and return the reranker; only `scores` works, since the passages are missing."""
        self.tokens, self.starts, self.dense = (np.load(folder / name, mmap_mode="r") for name in FILES)
        self.words = read_jsonl(folder / WORDS)
        return self

    def scores(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        queries = [self.encoder_config.query_prompt + text for text in texts]
        encoded = (query for found in self._encoded(queries, self.encoder_config.query_max_len)
                   for query in zip(found["dense_vecs"], found["lexical_weights"], found["colbert_vecs"]))
        for (dense, words, tokens), own in zip(encoded, places):
            parts = (self.dense[np.asarray(own, int)] @ dense.astype(np.float32),
                     [self.model.compute_lexical_matching_score(words, self.words[place]) for place in own],
                     maxsim_candidates(tokens.astype(np.float32), self.tokens, self.starts, own))
            weighted = [weight * np.asarray(part, np.float32) for weight, part in zip(WEIGHTS, parts)]
            yield check_finite(np.sum(weighted, axis=0), self.description)

    def _encoded(self, texts, max_length):
        """Yield FlagEmbedding's output for each chunk of texts, which include their prompts."""
        for start in range(0, len(texts), TOKEN_CHUNK):
            found = self._loaded().encode(texts[start:start + TOKEN_CHUNK], max_length=max_length, batch_size=BATCH,
                                          return_dense=True, return_sparse=True, return_colbert_vecs=True)
            found["lexical_weights"] = [{word: float(weight) for word, weight in words.items()}  # sums in float64
                                        for words in found["lexical_weights"]]
            yield found

    def _loaded(self):
        if self.model is None:
            from FlagEmbedding import BGEM3FlagModel  # takes seconds to import
            config, device = self.encoder_config, "cuda:0" if torch.cuda.is_available() else "cpu"
            dtype = encoding_dtype(config.name, device)
            folder = snapshot(config.name)  # FlagEmbedding would also download the ONNX version of the model
            try:
                self.model = BGEM3FlagModel(folder, pooling_method=config.pooling, colbert_dim=self.token_dim,
                                            normalize_embeddings=config.normalize, devices=[device],
                                            use_fp16=dtype == torch.float16, use_bf16=dtype == torch.bfloat16,
                                            trust_remote_code=config.trusted)
            except UNLOADABLE as error:
                raise cannot_load(config.title, error) from None
        return self.model
