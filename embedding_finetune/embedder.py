"""Models turned into vectors: FlagEmbedding's BaseEmbedder, used as the experiment says."""

import numpy as np
import torch
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder

from embedding_finetune.files import ExperimentError
from embedding_finetune.hub import cannot_load, check_hub


class Embedder:
    """A model with its pooling, its query instruction and its lengths. Vectors are normalised float32."""

    def __init__(self, use, batch_size=0):
        """Load the model that `use` (a ModelUse) names; `batch_size` 0 chooses by device.

        Raises ExperimentError when the model cannot be had.
        """
        on_gpu = torch.cuda.is_available()
        # On a CPU a large batch only pads more and leaves the caches; 256 halves the speed of 32.
        self.batch_size = batch_size or (256 if on_gpu else 32)
        self.use = use
        check_hub(use.name)
        try:
            self._model = BaseEmbedder(
                use.name, pooling_method=use.pooling, normalize_embeddings=True, use_fp16=on_gpu,
                query_instruction_for_retrieval=use.query_instruction or None,
                query_max_length=use.query_max_len, passage_max_length=use.passage_max_len,
                batch_size=self.batch_size, devices="cuda:0" if on_gpu else "cpu")
        except (OSError, ValueError) as error:
            raise cannot_load(use.name, error) from None

    def encode_queries(self, texts):
        """Vectors of queries, instruction included; float32 of shape (texts, dimensions)."""
        return self._checked(self._model.encode_queries(list(texts)))

    def encode_passages(self, texts):
        """Vectors of passages; float32 of shape (texts, dimensions)."""
        return self._checked(self._model.encode_corpus(list(texts)))

    def _checked(self, vectors):
        vectors = np.asarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise ExperimentError(f"{self.use.name} gives vectors that are not finite: its weights are broken, train it again")
        return vectors

