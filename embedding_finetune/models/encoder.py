"""Encoding of queries and passages with an EncoderConfig, in length-sorted batches and with a cache."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.hub import load, model_content
from embedding_finetune.models import multi_vector
from embedding_finetune.models.batching import padded_batches, prefetch, tokenize_texts
from embedding_finetune.models.compiled_model import CompiledModel, compiled_format, runtime_versions
from embedding_finetune.models.embedding_cache import EmbeddingCache, TokenEmbeddingStore, text_hash
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.fast_layers import with_pointwise_linear
from embedding_finetune.models.modeling import DenseLayers, encoding_dtype, load_encoder
from embedding_finetune.settings import Settings

CHUNK = 16384  # texts that are tokenised, sorted by length and stored together
TOKEN_CHUNK = 2048  # the same for token vectors, about a hundred per text
# Part of the cache key of all vectors. Increase it when a code change alters vectors, here or in a module used here
# (batching, modeling, multi_vector); tests/models/test_encoder.py fails in that case.
VERSION = 1
FEW = 8  # no progress bar for fewer texts


def pool(hidden: torch.Tensor, mask: torch.Tensor, method: str) -> torch.Tensor:
    """Pool token states to one vector per text.

    Takes (texts, tokens, dimensions) and the attention mask (texts, tokens); returns (texts, dimensions). `method` is
    `cls` (the first token), `mean` (over all tokens except padding) or `last_token`. Padding may be on either side.
    """
    if method == "mean":
        weights = mask.unsqueeze(-1).float()  # sums in half precision could overflow
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    first, last = mask.argmax(dim=1), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), first if method == "cls" else last]


def pooled_embeddings(hidden: torch.Tensor, dense: DenseLayers, mask: torch.Tensor,
                      config: EncoderConfig) -> torch.Tensor:
    """Pooled and, if configured, normalised vectors from last hidden states and the attention mask.

    `dense` holds the model's Dense layers (see modeling), `config` is an EncoderConfig. Returns float32 (texts,
    dimensions).
    """
    vectors = dense(pool(hidden, mask, config.pooling).float())
    return torch.nn.functional.normalize(vectors, dim=-1) if config.normalize else vectors


class Encoder:
    """Encoder for queries and passages with the pooling, Dense layers, prompts and lengths of an EncoderConfig.

    Vectors are float32, and of length 1 if the config normalises. The model is loaded only when a text is not in the
    cache.
    """

    def __init__(self, config: EncoderConfig, batch_size: int = 0, cache: str | Path | None = None) -> None:
        """Prepare the model of `config`, an EncoderConfig.

        `batch_size` 0 selects a size suitable for the device. `cache` is a folder for vectors. Raises UserError when
        the model is not available.
        """
        self.config = config
        self.batch_size = batch_size
        self.cache = cache
        self.revision = model_content(config.name)
        self._compiled = compiled_format(config.name)
        self._device = "cuda:0" if torch.cuda.is_available() and not self._compiled else "cpu"
        self._dtype = encoding_dtype(config.name, self._device)
        self._model: Any = None
        self._caches = {}  # (length, prompt) -> EmbeddingCache

    def encode_queries(self, texts: Iterable[str]) -> np.ndarray:
        """Vectors of queries, each prefixed with the query prompt: float32 (texts, dimensions)."""
        return self._encode("queries", texts)

    def encode_passages(self, texts: Iterable[str]) -> np.ndarray:
        """Vectors of passages, each prefixed with the passage prompt: float32 (texts, dimensions)."""
        return self._encode("passages", texts)

    def _asked(self, kind):
        """Maximum length and prompt of `queries` or `passages`."""
        side = {"queries": "query", "passages": "passage"}[kind]
        return getattr(self.config, f"{side}_max_len"), getattr(self.config, f"{side}_prompt")

    def _cache_of(self, kind):
        """The EmbeddingCache of `queries` or `passages`, the same object at each call; None without a cache."""
        asked = self._asked(kind)
        if self.cache and asked not in self._caches:
            self._caches[asked] = EmbeddingCache(self.cache, self._identity(*asked))
        return self._caches.get(asked)

    def _encode(self, kind, texts):
        texts = list(texts)
        keys = [text_hash(text) for text in texts]
        row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}  # identical texts share a row
        vectors = np.empty((len(row_of), 0), np.float32)
        for some, found in self._vectors(kind, dict(zip(keys, texts))):
            if not vectors.size:  # the number of dimensions is known from the first vectors
                vectors = np.empty((len(row_of), found.shape[1]), np.float32)
            vectors[[row_of[key] for key in some]] = found
        return vectors if len(row_of) == len(keys) else vectors[[row_of[key] for key in keys]]

    def _vectors(self, kind, texts):
        """Yield (hashes, vectors) of `texts` (hash -> text): those in the cache, then the others once computed."""
        cache, missing = self._cache_of(kind), dict(texts)
        for keys, vectors in cache.read(texts.keys()) if cache else ():
            known = [number for number, key in enumerate(keys) if key in texts]
            if known:
                yield [keys[number] for number in known], vectors[known]
            for number in known:
                missing.pop(keys[number], None)
        if missing and self._model is None:
            self._load()
        with tqdm(total=len(missing), desc=kind, unit="text", disable=len(missing) < FEW) as progress:
            for keys, tokens in prefetch(lambda keys: self._tokenise([texts[key] for key in keys], kind),
                                         _chunks(list(missing), CHUNK)):
                vectors, _ = self._compute(tokens, kind, progress)
                yield keys, vectors
                if cache:
                    cache.write(keys, vectors)

    def _identity(self, max_length, prompt):
        """Everything a vector depends on except the text. Batching is left out: it changes only the last bits."""
        packages = ("torch", "transformers", "tokenizers")
        of_both_sides = {name: value for name, value in self.config.identity.items()
                         if not name.endswith(("_prompt", "_max_len"))}
        return {"model": self.revision, **of_both_sides, "max_length": max_length, "prompt": prompt,
                "device": self._device, "dtype": str(self._dtype), "version": VERSION,
                **runtime_versions(self.config.name),
                **{package: importlib.metadata.version(package) for package in packages}}

    def _load(self):
        self._tokenizer = load("AutoTokenizer", self.config.name, self.config.trusted)
        self._added = multi_vector.special_token_ids(self._tokenizer)
        self._projection = multi_vector.load_projection(self.config.name).to(self._device)
        self._expansion = multi_vector.load_expansion(self.config.name)
        if self._compiled:
            self._model = CompiledModel(self.config.name)
            self._dense = DenseLayers.load(self.config.name, self.config.dense).eval()
        else:
            parts = load_encoder(self.config.name, self.config.dense, self.config.trusted, self._dtype)
            self._model, self._dense = (part.to(self._device).eval() for part in parts)
        is_float32 = self._device == "cpu" and self._dtype == torch.float32 and not self._compiled
        self._of_passages = with_pointwise_linear(self._model) if is_float32 else self._model
        if model_content(self.config.name) != self.revision:
            raise UserError(f"{self.config.name} has changed since this Encoder was made: create a new Encoder, so "
                            "that vectors of both versions are not mixed")

    def encode_passage_tokens(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token vectors of passages for late interaction (see multi_vector), without special tokens.

        Returns the vectors, float16 (tokens of all texts, dimensions), and the start offsets, int64 (texts + 1,): text
        i has the rows from starts[i] to starts[i + 1]. Both are memory-mapped files, in the cache or temporary. The
        pooled vectors of the same forward pass are added to the cache.
        """
        texts, (max_length, prompt) = list(texts), self._asked("passages")
        store = TokenEmbeddingStore(self.cache, self._identity(max_length, prompt) | {"pooling": "none"}, texts)
        if not store.complete():
            store.write(self._token_chunks("passages", texts))
        return store.read()

    def encode_query_tokens(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Token vectors of queries, which are not stored: a list of float16 (tokens, dimensions)."""
        return [tokens for chunk in self._token_chunks("queries", list(texts)) for tokens in chunk]

    def _token_chunks(self, kind, texts):
        """Yield the token vectors of each chunk of texts as a list."""
        if self._model is None:
            self._load()
        cache = self._cache_of(kind) if kind == "passages" else None
        with tqdm(total=len(texts), desc=f"tokens of {kind}", unit="text", disable=len(texts) < FEW) as progress:
            for chunk, tokens in prefetch(lambda chunk: self._tokenise(chunk, kind, self._expansion),
                                          _chunks(texts, TOKEN_CHUNK)):
                vectors, own = self._compute(tokens, kind, progress, of_tokens=True)
                if cache:
                    cache.write([text_hash(text) for text in chunk], vectors)
                yield own

    def _tokenise(self, texts, kind, expansion=0):
        """Tokenise texts with their prompt; queries may be expanded, see multi_vector.expand_queries."""
        max_length, prompt = self._asked(kind)
        tokens = tokenize_texts(self._tokenizer, [prompt + text for text in texts], max_length)
        if expansion and kind == "queries":
            return {"input_ids": multi_vector.expand_queries(self._tokenizer, tokens["input_ids"], expansion)}
        return tokens

    @torch.inference_mode()
    def _compute(self, tokens, kind, progress, of_tokens=False):
        """Vectors of tokenised texts and, with `of_tokens`, a list of their token vectors."""
        model = self._of_passages if kind == "passages" else self._model
        order, pooled, own = [], [], [np.empty(0)] * len(tokens["input_ids"])
        for rows, batch in padded_batches(self._tokenizer, tokens, self.batch_size, self._device):
            try:
                hidden = model(**batch).last_hidden_state
                pooled.append(pooled_embeddings(hidden, self._dense, batch["attention_mask"], self.config))
            except torch.cuda.OutOfMemoryError:
                raise UserError(f"{self.config.name} runs out of GPU memory while encoding: set ENCODE_BATCH_SIZE to "
                                "64 or less") from None
            order.extend(rows)
            if of_tokens:
                scaled = multi_vector.token_embeddings(hidden, batch, self._added, self._projection).half().cpu()
                for row, some in zip(rows, scaled):
                    own[row] = some[some.any(dim=-1)].numpy()
            progress.update(len(rows))
        pooled = torch.cat(pooled).cpu().numpy()  # once per chunk: every synchronisation leaves the GPU idle
        vectors = np.empty_like(pooled)
        vectors[order] = pooled
        if not np.isfinite(vectors).all():
            why = (' in float16: if it needs more range, set "dtype": "bfloat16" in the config.json of a copy of it'
                   if self._dtype == torch.float16 else ": its weights are broken")
            raise UserError(f"{self.config.name} gives vectors that are not finite{why}")
        return vectors, own


def _chunks(values, size):
    return (values[start:start + size] for start in range(0, len(values), size))


def make_encoder(settings: Settings, config: EncoderConfig, cached: bool = True) -> Encoder:
    """The Encoder of an EncoderConfig, with the batch size and cache folder of the settings.

    Use `cached=False` for live queries: reading and writing the cache would take longer than encoding them.
    """
    return Encoder(config, settings.encode_batch_size, cache=settings.paths.cache if cached else None)
