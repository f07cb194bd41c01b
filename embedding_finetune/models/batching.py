"""Texts laid out in batches of like length, since what is padded is computed, too."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Tokens in a batch, padding included. A CPU is fastest when activations stay in its caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
# What one call of a model costs beside its tokens, in tokens: estimates. (A CPU reranked 30 passages by MiniLM as fast
# with 16 to 128, within 15 %, and half as fast with 0.)
BATCH_OVERHEAD_TOKENS = {"cpu": 24, "cuda": 2048}
FEW = 128  # texts whose cheapest cut is looked for; among more, neighbours are of like length
PIECE = 1024  # texts that one thread tokenises


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


def padded_batches(tokenizer, tokens, batch_size, device):
    """Yield the row numbers of each batch, and the batch (tensors by name, on `device`) padded to its longest text.

    `tokens` is what the tokenizer made of the texts, not padded yet; for `batch_size` see `batches`. Where that is 0, a
    few texts, as the passages that are reranked for a query, are cut as `plan_sub_batches` cuts them.
    """
    lengths, kind = [len(ids) for ids in tokens["input_ids"]], device.partition(":")[0]
    if batch_size or len(lengths) > FEW:
        cut = batches(lengths, batch_size, BATCH_TOKENS[kind])
    else:
        cut = sub_batch_rows(lengths, BATCH_OVERHEAD_TOKENS[kind], limit=max(1, BATCH_TOKENS[kind] // max(lengths, default=1)))
    for rows in cut:
        batch = pad_batch(tokenizer, {name: [values[row] for row in rows] for name, values in tokens.items()})
        if device != "cpu":  # a copy from pinned memory is not waited for: the next batch is laid out meanwhile
            batch = {name: values.pin_memory() for name, values in batch.items()}
        yield rows, {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def pad_batch(tokenizer, tokens, multiple=1):
    """What tokenizer.pad gives for lists of token ids (and types) of texts, int64 tensors (texts, tokens) by name, in a
    tenth of its time: a GPU would wait for it.

    At the right: at the left it would move the positions that a BERT counts, and the vectors would depend on the batch.
    """
    import torch  # queries of an open index are laid out without it

    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    real = np.arange(-(-lengths.max() // multiple) * multiple) < lengths[:, None]
    filled = {"attention_mask": real.astype(np.int64)}
    for name in tokens.keys() - filled.keys():
        nothing = tokenizer.pad_token_id if name == "input_ids" else tokenizer.pad_token_type_id
        values = np.full(real.shape, nothing or 0)
        values[real] = np.fromiter(itertools.chain.from_iterable(tokens[name]), np.int64, lengths.sum())
        filled[name] = values
    return {name: torch.from_numpy(values) for name, values in filled.items()}


def tokenize_texts(tokenizer, texts, max_length):
    """What the tokenizer makes of texts, by as many threads as there are cores: lists by name."""
    def of(some):
        return tokenizer(some, truncation=True, max_length=max_length)

    if len(texts) <= PIECE:
        return of(texts)
    of(texts[:1])  # the first call sets the length in the tokenizer, which threads must not do side by side
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = [*threads.map(of, (texts[start:start + PIECE] for start in range(0, len(texts), PIECE)))]
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def prefetch(function, items):
    """Yield (item, function(item)) of each item; that of the next one is made in a thread meanwhile."""
    made = None
    with ThreadPoolExecutor(1) as thread:  # which begins with the second item: one alone, as a lone query, needs none
        for item in items:
            if made:
                coming = thread.submit(function, item)
                yield made
                made = item, coming.result()
            else:
                made = item, function(item)
        if made:
            yield made


def sub_batch_rows(lengths, call_cost, limit=None):
    """Yield the row numbers of each sub-batch as `plan_sub_batches` cuts them, longest texts first."""
    order, start = np.argsort(-np.asarray(lengths), kind="stable"), 0
    for size in plan_sub_batches(np.asarray(lengths)[order], call_cost, limit):
        yield order[start:start + size].tolist()
        start += size


def plan_sub_batches(lengths, call_cost, limit=None):
    """Cut texts, longest first, into the sub-batches that cost least; returns their sizes.

    A sub-batch of n texts costs n times its longest text (padding included) plus `call_cost`, all in tokens; the best
    cut is found by dynamic programming. `lengths` must descend; no sub-batch exceeds `limit` texts.
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
