"""Texts laid out in batches of like length, since what is padded is computed, too."""

import numpy as np


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
