"""Models turned into vectors: FlagEmbedding's BaseEmbedder, used as the experiment says, with a faster loop and a cache."""

import importlib.metadata

import numpy as np
import torch
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
from tqdm.auto import tqdm

from embedding_finetune.cpu import use_fast_linear
from embedding_finetune.files import ExperimentError, sha256
from embedding_finetune.hub import cannot_load, model_content
from embedding_finetune.vector_cache import VectorCache, text_key

# Tokens in a batch, padding included. A CPU is fastest when a layer's activations stay in its caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
CHUNK = 16384  # texts that are tokenised, sorted and stored together


class LengthSortedEmbedder(BaseEmbedder):
    """BaseEmbedder with another loop: same tokens, same model, same pooling, different batches.

    BaseEmbedder puts a fixed number of texts in a batch, and runs the first batch twice to see whether it fits. Here a batch
    holds a number of tokens: many short texts or few long ones. `batch_size` 0 takes that number from BATCH_TOKENS.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.model.to(self.target_devices[0]).eval()
        if self.target_devices == ["cpu"]:
            use_fast_linear(self.model)

    @torch.inference_mode()
    def encode_single_device(self, sentences, batch_size, max_length, device, progress, convert_to_numpy=True):
        """Vectors of a list of texts, in their order; `progress` is a tqdm bar that counts texts."""
        tokens = self.tokenizer(sentences, truncation=True, max_length=max_length)
        vectors = None
        for rows in batches([len(ids) for ids in tokens["input_ids"]], batch_size, BATCH_TOKENS[torch.device(device).type]):
            batch = {name: [values[row] for row in rows] for name, values in tokens.items()}
            batch = self.tokenizer.pad(batch, return_tensors="pt").to(device)
            pooled = self.pooling(self.model(**batch, return_dict=True).last_hidden_state, batch["attention_mask"])
            pooled = torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(sentences), pooled.shape[1]), dtype=np.float32)
            vectors[rows] = pooled
            progress.update(len(rows))
        return vectors


def batches(lengths, batch_size, batch_tokens):
    """Row numbers of each batch, longest texts first: if memory does not suffice, that shows at once.

    A batch has `batch_size` texts or, if that is 0, as many as fill `batch_tokens` when padded to the longest of them.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = batch_size or max(1, batch_tokens // lengths[order[start]])
        yield order[start:start + size]
        start += size


class Embedder:
    """A model with its pooling, its query instruction and its lengths. Vectors are normalised float32.

    The model is loaded when a text must be encoded that the cache does not know.
    """

    def __init__(self, use, batch_size=0, cache=None):
        """Prepare the model that `use` (a ModelUse) names; `batch_size` 0 chooses by device, `cache` is a folder for vectors.

        Raises ExperimentError when the model cannot be had.
        """
        self.use = use
        self.batch_size = batch_size
        self.cache = cache
        self._device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._content = model_content(use.name)
        self._model = None

    def encode_queries(self, texts):
        """Vectors of queries, instruction included; float32 of shape (texts, dimensions)."""
        return self._encode("queries", texts, self.use.query_max_len, self.use.query_instruction)

    def encode_passages(self, texts):
        """Vectors of passages; float32 of shape (texts, dimensions)."""
        return self._encode("passages", texts, self.use.passage_max_len, "")

    def _encode(self, kind, texts, max_length, instruction):
        texts = list(texts)
        keys = [text_key(text) for text in texts]
        cache = self.cache and VectorCache(self.cache, self._identity(max_length, instruction))
        vectors = cache.read() if cache else {}
        missing = list({key: text for key, text in zip(keys, texts) if key not in vectors}.items())
        if missing and self._model is None:
            self._model = self._load()
        with tqdm(total=len(missing), desc=kind, unit="text", disable=not missing) as progress:
            for start in range(0, len(missing), CHUNK):
                new_keys, new_texts = zip(*missing[start:start + CHUNK])
                new_vectors = self._compute(kind, list(new_texts), progress)
                vectors.update(zip(new_keys, new_vectors))
                if cache:
                    cache.write(new_keys, new_vectors)
        return np.stack([vectors[key] for key in keys])

    def _identity(self, max_length, instruction):
        """Everything but the text that a vector depends on. Batches are no part of it: they change the last bits only."""
        return {"model": self._content, "pooling": self.use.pooling, "max_length": max_length, "instruction": instruction,
                "device": self._device, "code": sha256(__file__),
                **{package: importlib.metadata.version(package) for package in ("FlagEmbedding", "torch", "transformers", "tokenizers")}}

    def _load(self):
        on_gpu = self._device != "cpu"
        try:
            model = LengthSortedEmbedder(
                self.use.name, pooling_method=self.use.pooling, normalize_embeddings=True, use_fp16=on_gpu,
                query_instruction_for_retrieval=self.use.query_instruction or None,
                query_max_length=self.use.query_max_len, passage_max_length=self.use.passage_max_len,
                batch_size=self.batch_size, devices=self._device)
        except (OSError, ValueError) as error:
            raise cannot_load(self.use.name, error) from None
        if model_content(self.use.name) != self._content:
            raise ExperimentError(f"{self.use.name} has changed since this Embedder was made: make it anew, so that no vectors are mixed up")
        return model

    def _compute(self, kind, texts, progress):
        encode = self._model.encode_queries if kind == "queries" else self._model.encode_corpus
        try:
            vectors = encode(texts, progress=progress)
        except torch.cuda.OutOfMemoryError:
            raise ExperimentError(f"{self.use.name} runs out of GPU memory while encoding {kind}: set ENCODE_BATCH_SIZE to 64, or less") from None
        if not np.isfinite(vectors).all():
            raise ExperimentError(f"{self.use.name} gives vectors that are not finite: its weights are broken, train it again")
        return vectors
