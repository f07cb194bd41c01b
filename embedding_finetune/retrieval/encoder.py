"""Models turned into vectors, used as a ModelUse says, in length-sorted batches and with a cache."""

import importlib.metadata

import numpy as np
import torch
from tqdm.auto import tqdm

from embedding_finetune.files import UserError, sha256
from embedding_finetune.hub import load, model_content
from embedding_finetune.retrieval.compiled import CompiledModel, format_of, runtime_of
from embedding_finetune.retrieval.cpu import use_fast_linear
from embedding_finetune.retrieval.loading import DenseLayers, load_encoder
from embedding_finetune.retrieval.vectors import VectorCache, text_key

# Tokens in a batch, padding included. A CPU is fastest when activations stay in its caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
CHUNK = 16384  # texts that are tokenised, sorted and stored together
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


def text_vectors(model, dense, batch, use):
    """Vectors of tokenised texts (tensors by name) by a model and its Dense layers (see loading), as `use`, a ModelUse,
    says: float32 of shape (texts, dimensions)."""
    vectors = dense(pool(model(**batch).last_hidden_state, batch["attention_mask"], use.pooling).float())
    return torch.nn.functional.normalize(vectors, dim=-1) if use.normalize else vectors


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


class Encoder:
    """A model with its pooling, layers after it, prompts and lengths. Vectors are float32, and of length 1 where the
    model's use says so.

    The model is loaded when a text must be encoded that the cache does not know.
    """

    def __init__(self, use, batch_size=0, cache=None):
        """Prepare the model that `use` (a ModelUse) names; `batch_size` 0 chooses by device, `cache` is a folder for
        vectors.

        Raises UserError when the model cannot be had.
        """
        self.use = use
        self.batch_size = batch_size
        self.cache = cache
        self.content = model_content(use.name)
        self._compiled = format_of(use.name)
        self._device = "cuda:0" if torch.cuda.is_available() and not self._compiled else "cpu"
        self._model = self._tokenizer = None

    def encode_queries(self, texts):
        """Vectors of queries, prompt included; float32 of shape (texts, dimensions)."""
        return self._encode("queries", texts, self.use.query_max_len, self.use.query_prompt)

    def encode_passages(self, texts):
        """Vectors of passages, prompt included; float32 of shape (texts, dimensions)."""
        return self._encode("passages", texts, self.use.passage_max_len, self.use.passage_prompt)

    def _encode(self, kind, texts, max_length, prompt):
        texts = list(texts)
        keys = [text_key(text) for text in texts]
        cache = self.cache and VectorCache(self.cache, self._identity(max_length, prompt))
        vectors = cache.read() if cache else {}
        missing = list({key: text for key, text in zip(keys, texts) if key not in vectors}.items())
        if missing and self._model is None:
            self._load()
        with tqdm(total=len(missing), desc=kind, unit="text", disable=len(missing) < FEW) as progress:
            for start in range(0, len(missing), CHUNK):
                new_keys, new_texts = zip(*missing[start:start + CHUNK])
                new_vectors = self._compute([prompt + text for text in new_texts], max_length, progress)
                vectors.update(zip(new_keys, new_vectors))
                if cache:
                    cache.write(new_keys, new_vectors)
        return np.stack([vectors[key] for key in keys])

    def _identity(self, max_length, prompt):
        """Everything but the text that a vector depends on. Batches are no part: they change the last bits only."""
        packages = ("torch", "transformers", "tokenizers")
        return {"model": self.content, "pooling": self.use.pooling, "normalize": self.use.normalize,
                "max_length": max_length, "prompt": prompt, "device": self._device, "code": sha256(__file__),
                **{package: importlib.metadata.version(package) for package in packages}, **runtime_of(self.use.name)}

    def _load(self):
        dtype = torch.float32 if self._device == "cpu" else torch.float16
        self._tokenizer = load("AutoTokenizer", self.use.name, self.use.trusted)
        if self._compiled:
            self._model = CompiledModel(self.use.name)
            self._dense = DenseLayers.load(self.use.name, self.use.dense).eval()
        else:
            model, dense = load_encoder(self.use.name, self.use.dense, self.use.trusted, dtype)
            self._model, self._dense = model.to(self._device).eval(), dense.to(self._device).eval()
        if model_content(self.use.name) != self.content:
            raise UserError(f"{self.use.name} has changed since this Encoder was made: make it anew, so that no "
                            "vectors are mixed up")
        if self._device == "cpu" and not self._compiled:
            use_fast_linear(self._model)

    @torch.inference_mode()
    def _compute(self, texts, max_length, progress):
        tokens = self._tokenizer(texts, truncation=True, max_length=max_length)
        vectors = None
        sizes = [len(ids) for ids in tokens["input_ids"]]
        for rows in batches(sizes, self.batch_size, BATCH_TOKENS[torch.device(self._device).type]):
            batch = {name: [values[row] for row in rows] for name, values in tokens.items()}
            # At the left it would move the positions that a BERT counts, and the vectors would depend on the batch.
            batch = self._tokenizer.pad(batch, padding_side="right", return_tensors="pt")
            try:
                batch = batch.to(self._device)
                pooled = text_vectors(self._model, self._dense, batch, self.use)
            except torch.cuda.OutOfMemoryError:
                raise UserError(f"{self.use.name} runs out of GPU memory while encoding: set ENCODE_BATCH_SIZE to 64, "
                                "or less") from None
            if vectors is None:
                vectors = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            vectors[rows] = pooled.cpu().numpy()
            progress.update(len(rows))
        if not np.isfinite(vectors).all():
            raise UserError(f"{self.use.name} gives vectors that are not finite: its weights are broken")
        return vectors
