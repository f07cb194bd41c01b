"""Models turned into vectors, used as a ModelUse says, in length-sorted batches and with a cache."""

import importlib.metadata

import numpy as np
import torch
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.hub import load, model_content
from embedding_finetune.models.batching import padded_batches, prefetch, tokenize_texts
from embedding_finetune.models.compiled_model import CompiledModel, compiled_format, runtime_versions
from embedding_finetune.models.embedding_cache import EmbeddingCache, TokenEmbeddingStore, text_hash
from embedding_finetune.models.fast_layers import use_fast_linear
from embedding_finetune.models.modeling import DenseLayers, encoding_dtype, load_encoder
from embedding_finetune.models.multi_vector import (
    expand_queries,
    load_expansion,
    load_projection,
    special_token_ids,
    token_embeddings,
)

CHUNK = 16384  # texts that are tokenised, sorted and stored together
TOKEN_CHUNK = 2048  # the same for token vectors, of which a text has a hundred
# Part of the key of all stored vectors. Raise it when a change of the code moves vectors, here or in what this module
# uses (batches, loading, token vectors); tests/retrieval/test_encoder.py fails then.
VERSION = 1
FEW = 8  # texts that need no progress bar


def pool(hidden, mask, method):
    """One vector a text: (texts, tokens, dimensions) and the attention mask (texts, tokens) -> (texts, dimensions).

    `method` is `cls` (the first token), `mean` (of all but padding) or `last_token`; padding may stand at either end.
    """
    if method == "mean":
        weights = mask.unsqueeze(-1).float()  # sums in half precision would overflow
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    first, last = mask.argmax(dim=1), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), first if method == "cls" else last]


def pooled_embeddings(hidden, dense, mask, config):
    """Vectors of texts from a model's last hidden states and the attention mask, by its Dense layers (see loading), as
    `use`, a ModelUse, says: float32 of shape (texts, dimensions)."""
    vectors = dense(pool(hidden, mask, config.pooling).float())
    return torch.nn.functional.normalize(vectors, dim=-1) if config.normalize else vectors


class Encoder:
    """A model with its pooling, layers after it, prompts and lengths. Vectors are float32, and of length 1 where the
    model's use says so.

    The model is loaded when a text must be encoded that the cache does not know.
    """

    def __init__(self, config, batch_size=0, cache=None):
        """Prepare the model that `use` (a ModelUse) names; `batch_size` 0 chooses by device, `cache` is a folder for
        vectors.

        Raises UserError when the model cannot be had.
        """
        self.config = config
        self.batch_size = batch_size
        self.cache = cache
        self.revision = model_content(config.name)
        self._compiled = compiled_format(config.name)
        self._device = "cuda:0" if torch.cuda.is_available() and not self._compiled else "cpu"
        self._dtype = encoding_dtype(config.name, self._device)
        self._model = self._tokenizer = None
        self._caches = {}  # length and prompt -> VectorCache

    def encode_queries(self, texts):
        """Vectors of queries, prompt included; float32 of shape (texts, dimensions)."""
        return self._encode("queries", texts)

    def encode_passages(self, texts):
        """Vectors of passages, prompt included; float32 of shape (texts, dimensions)."""
        return self._encode("passages", texts)

    def _asked(self, kind):
        """Length and prompt of `queries` or `passages`."""
        config = self.config
        return (config.query_max_len, config.query_prompt) if kind == "queries" else (config.passage_max_len, config.passage_prompt)

    def _cache_of(self, kind):
        """The VectorCache of `queries` or `passages`, the same object at each call; None without a cache."""
        asked = self._asked(kind)
        if self.cache and asked not in self._caches:
            self._caches[asked] = EmbeddingCache(self.cache, self._identity(*asked))
        return self._caches.get(asked)

    def _encode(self, kind, texts):
        place, distinct, cache = {}, [], self._cache_of(kind)
        order = []  # of each text, the row of its vector: equal texts share one
        for text in texts:
            order.append(place.setdefault(text_hash(text), len(place)))
            if len(distinct) < len(place):
                distinct.append(text)
        vectors, missing = np.empty((0, 0), np.float32), np.ones(len(distinct), bool)

        def take(rows, found):
            nonlocal vectors
            if not vectors.size:  # how wide they are, the first ones tell
                vectors = np.empty((len(distinct), found.shape[1]), np.float32)
            vectors[rows], missing[rows] = found, False

        for keys, found in cache.read(place.keys()) if cache else ():
            known = [number for number, key in enumerate(keys) if key in place]
            if known:
                take([place[keys[number]] for number in known], found[known])
        rows, keys = np.flatnonzero(missing), list(place)
        if len(rows) and self._model is None:
            self._load()
        with tqdm(total=len(rows), desc=kind, unit="text", disable=len(rows) < FEW) as progress:
            chunks = (rows[start:start + CHUNK] for start in range(0, len(rows), CHUNK))
            for some, tokens in prefetch(lambda some: self._tokenise([distinct[row] for row in some], kind), chunks):
                found, _ = self._compute(tokens, progress)
                take(some, found)
                if cache:
                    cache.write([keys[row] for row in some], found)
        return vectors if len(order) == len(distinct) else vectors[order]

    def _identity(self, max_length, prompt):
        """Everything but the text that a vector depends on. Batches are no part: they change the last bits only."""
        packages = ("torch", "transformers", "tokenizers")
        of_both_sides = {name: value for name, value in self.config.identity.items()
                         if not name.endswith(("_prompt", "_max_len"))}
        return {"model": self.revision, **of_both_sides, "max_length": max_length, "prompt": prompt,
                "device": self._device, "dtype": str(self._dtype), "version": VERSION, **runtime_versions(self.config.name),
                **{package: importlib.metadata.version(package) for package in packages}}

    def _load(self):
        self._tokenizer = load("AutoTokenizer", self.config.name, self.config.trusted)
        self._added, self._projection = special_token_ids(self._tokenizer), load_projection(self.config.name).to(self._device)
        self._expansion = load_expansion(self.config.name)
        if self._compiled:
            self._model = CompiledModel(self.config.name)
            self._dense = DenseLayers.load(self.config.name, self.config.dense).eval()
        else:
            model, dense = load_encoder(self.config.name, self.config.dense, self.config.trusted, self._dtype)
            self._model, self._dense = model.to(self._device).eval(), dense.to(self._device).eval()
        if model_content(self.config.name) != self.revision:
            raise UserError(f"{self.config.name} has changed since this Encoder was made: make it anew, so that no "
                            "vectors are mixed up")
        if self._device == "cpu" and not self._compiled:
            use_fast_linear(self._model)

    def encode_passage_tokens(self, texts):
        """Vectors of the tokens of passages, for late interaction (see tokens): prompt included, without the tokens
        that the tokenizer adds.

        A pair: float16 of shape (tokens of all texts, dimensions), and int64 (texts + 1,): those of text i begin at
        place i, and end where those of text i + 1 begin. They are memory-mapped files in the cache or, without one,
        temporary ones. The cache gets the passages' own vectors, too: both come of one pass.
        """
        texts, (max_length, prompt) = list(texts), self._asked("passages")
        store = TokenEmbeddingStore(self.cache, self._identity(max_length, prompt) | {"pooling": "none"}, texts)
        if not store.complete():
            store.write(self._token_chunks("passages", texts))
        return store.read()

    def encode_query_tokens(self, texts):
        """The same of queries, which are not stored: a list of float16 (tokens, dimensions)."""
        return [tokens for chunk in self._token_chunks("queries", list(texts)) for tokens in chunk]

    def _token_chunks(self, kind, texts):
        """Yield lists of the token vectors of texts, a chunk of them at a time."""
        if self._model is None:
            self._load()
        cache = self._cache_of(kind) if kind == "passages" else None
        with tqdm(total=len(texts), desc=f"tokens of {kind}", unit="text", disable=len(texts) < FEW) as progress:
            chunks = (texts[start:start + TOKEN_CHUNK] for start in range(0, len(texts), TOKEN_CHUNK))
            for chunk, tokens in prefetch(lambda chunk: self._tokenise(chunk, kind, self._expansion), chunks):
                vectors, own = self._compute(tokens, progress, of_tokens=True)
                if cache:
                    cache.write([text_hash(text) for text in chunk], vectors)
                yield own

    def _tokenise(self, texts, kind, expansion=0):
        """What the tokenizer makes of texts, prompt included; queries are filled up, see tokens.expanded."""
        max_length, prompt = self._asked(kind)
        tokens = tokenize_texts(self._tokenizer, [prompt + text for text in texts], max_length)
        if expansion and kind == "queries":
            return {"input_ids": expand_queries(self._tokenizer, tokens["input_ids"], expansion)}
        return tokens

    @torch.inference_mode()
    def _compute(self, tokens, progress, of_tokens=False):
        """Vectors of texts, given as lists of tokens, and a list of their tokens' vectors, if these are wanted."""
        order, pooled, own = [], [], [None] * len(tokens["input_ids"])
        for rows, batch in padded_batches(self._tokenizer, tokens, self.batch_size, self._device):
            try:
                hidden = self._model(**batch).last_hidden_state
                pooled.append(pooled_embeddings(hidden, self._dense, batch["attention_mask"], self.config))
            except torch.cuda.OutOfMemoryError:
                raise UserError(f"{self.config.name} runs out of GPU memory while encoding: set ENCODE_BATCH_SIZE to 64, "
                                "or less") from None
            order.extend(rows)
            if of_tokens:
                scaled = token_embeddings(hidden, batch, self._added, self._projection).half().cpu()
                for row, some in zip(rows, scaled):
                    own[row] = some[some.any(dim=-1)].numpy()
            progress.update(len(rows))
        pooled = torch.cat(pooled).cpu().numpy()  # once a chunk: a GPU that is waited for stands still
        vectors = np.empty_like(pooled)
        vectors[order] = pooled
        if not np.isfinite(vectors).all():
            why = (' in float16: if it needs more range, set "dtype": "bfloat16" in the config.json of a copy of it'
                   if self._dtype == torch.float16 else ": its weights are broken")
            raise UserError(f"{self.config.name} gives vectors that are not finite{why}")
        return vectors, own


def make_encoder(settings, config, cached=True):
    """The Encoder of a model's use, with the batch size and the cache that the settings say.

    `cached=False` is for queries that people ask: reading and writing the cache would cost more than encoding them.
    """
    return Encoder(config, settings.encode_batch_size, cache=settings.output_dir / "cache" if cached else None)
