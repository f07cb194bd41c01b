"""Length-sorted batching to reduce padding."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the queries of an open index are batched without it
    from torch import Tensor

Tokens = Mapping[str, Sequence[Sequence[int]]]  # output of a tokenizer: name -> lists of one value per token

# Tokens per batch, with padding. A CPU is fastest with small batches: their activations fit in its cache, and their
# memory is reused instead of being requested from the system again. A GPU needs large batches.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
# Estimated fixed cost of one model call, expressed in tokens. (On a CPU, reranking 30 passages with MiniLM took the
# same time within 15 % for values from 16 to 128, and twice as long for 0.)
BATCH_OVERHEAD_TOKENS = {"cpu": 24, "cuda": 2048}
FEW = 128  # sub-batches are optimised up to this many texts; among more, neighbours have similar lengths
PIECE = 1024  # texts per tokenisation task


def batches(lengths: Sequence[int], batch_size: int, batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each batch, longest texts first, so that running out of memory shows at once.

    A batch has `batch_size` texts. If that is 0, it has as many as fit into `batch_tokens` after padding.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = batch_size or max(1, batch_tokens // lengths[order[start]])
        yield order[start:start + size]
        start += size


def padded_batches(tokenizer: Any, tokens: Tokens, batch_size: int,
                   device: str) -> Iterator[tuple[Sequence[int] | np.ndarray, dict[str, Tensor]]]:
    """Yield the row numbers and the padded tensors (by name, on `device`) of each batch.

    `tokens` is the unpadded output of the tokenizer. For `batch_size` see `batches`; if it is 0, up to FEW texts (such
    as the passages reranked for one query) are split by `plan_sub_batches`.
    """
    lengths, kind = [len(ids) for ids in tokens["input_ids"]], device.partition(":")[0]
    if batch_size or len(lengths) > FEW:
        parts = batches(lengths, batch_size, BATCH_TOKENS[kind])
    else:
        limit = max(1, BATCH_TOKENS[kind] // max(lengths, default=1))
        parts = sub_batch_rows(lengths, BATCH_OVERHEAD_TOKENS[kind], limit)
    for rows in parts:
        batch = pad_batch(tokenizer, {name: [values[row] for row in rows] for name, values in tokens.items()})
        if device != "cpu":  # copies from pinned memory are asynchronous: the next batch is prepared meanwhile
            batch = {name: values.pin_memory() for name, values in batch.items()}
        yield rows, {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def pad_batch(tokenizer: Any, tokens: Tokens, multiple: int = 1) -> dict[str, Tensor]:
    """Pad lists of token ids (and token types) to int64 tensors (texts, tokens) by name, rounded up to `multiple`.

    Same result as `tokenizer.pad` in a tenth of the time, so that a GPU does not wait for it. Padding is on the right:
    on the left it would shift BERT's absolute positions, and vectors would depend on the batch.
    """
    import torch

    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    real = np.arange(-(-lengths.max() // multiple) * multiple) < lengths[:, None]
    filled = {"attention_mask": real.astype(np.int64)}
    for name in tokens.keys() - filled.keys():
        padding = tokenizer.pad_token_id if name == "input_ids" else tokenizer.pad_token_type_id
        filled[name] = np.full(real.shape, padding or 0)
        filled[name][real] = np.fromiter(itertools.chain.from_iterable(tokens[name]), np.int64, lengths.sum())
    return {name: torch.from_numpy(values) for name, values in filled.items()}


def tokenize_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, list[list[int]]]:
    """Tokenise texts with one thread per core; returns lists by name, truncated to `max_length` tokens."""
    def tokenize(some: Sequence[str]) -> dict[str, list[list[int]]]:
        return tokenizer(some, truncation=True, max_length=max_length)

    if len(texts) <= PIECE:
        return tokenize(texts)
    tokenize(texts[:1])  # the first call sets the tokenizer's length limit, which is not thread-safe
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = [*threads.map(tokenize, (texts[start:start + PIECE] for start in range(0, len(texts), PIECE)))]
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def prefetch(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) for each item, computing the next result in a background thread."""
    previous = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            coming = item, thread.submit(function, item)
            if previous:
                yield previous[0], previous[1].result()
            previous = coming
        if previous:
            yield previous[0], previous[1].result()


def sub_batch_rows(lengths: Sequence[int], call_cost: float, limit: int | None = None) -> Iterator[list[int]]:
    """Yield the row numbers of each sub-batch planned by `plan_sub_batches`, longest texts first."""
    order, start = np.argsort(-np.asarray(lengths), kind="stable"), 0
    for size in plan_sub_batches(np.asarray(lengths)[order], call_cost, limit):
        yield order[start:start + size].tolist()
        start += size


def plan_sub_batches(lengths: Sequence[int] | np.ndarray, call_cost: float, limit: int | None = None) -> list[int]:
    """Sizes of the cheapest split of texts into sub-batches, found by dynamic programming.

    A sub-batch of n texts costs n times its longest text (padding included) plus `call_cost`, all in tokens. `lengths`
    must be in descending order. No sub-batch exceeds `limit` texts.
    """
    lengths = np.asarray(lengths)
    best, size_ending_at = np.zeros(len(lengths) + 1), [0]  # cost of the first k texts, size of the last sub-batch
    for end in range(1, len(lengths) + 1):
        first = max(0, end - (limit or end))
        costs = best[first:end] + np.arange(end - first, 0, -1) * lengths[first:end] + call_cost
        best[end] = costs.min()
        size_ending_at.append(end - first - int(costs.argmin()))
    sizes, end = [], len(lengths)
    while end:
        sizes.insert(0, size_ending_at[end])
        end -= size_ending_at[end]
    return sizes
