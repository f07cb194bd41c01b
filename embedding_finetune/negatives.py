"""Negatives for training queries."""

import numpy as np

from embedding_finetune.files import ExperimentError


def sample_random(positives, pool_size, number, seed):
    """Draw `number` distinct random negatives for each query, never one of its positives.

    `positives` lists for each query the positions (0 to pool_size - 1) of its positives in the pool of passages. Returns an
    int array of shape (queries, number) of positions in the pool; each set of negatives is equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), run for all queries at once: `number` vectorised steps, whatever
    the number of queries. The positives are left out by drawing from a pool that is smaller by their number and moving each
    draw past the positives before it, so nothing has to be drawn again.
    Raises ExperimentError when a query has fewer than `number` passages to draw from.
    """
    taken = [sorted(set(row)) for row in positives]
    available = pool_size - np.array([len(row) for row in taken])
    if available.size and available.min() < number:
        raise ExperimentError(f"{number} negatives a query were asked for, but a query has only {available.min()} other passages "
                              "in the training part: ask for fewer negatives or give more pairs (raise MAX_PAIRS)")
    rng = np.random.default_rng(seed)
    chosen = np.empty((len(taken), number), dtype=np.int64)
    for step in range(number):
        last = available - number + step
        draw = rng.integers(0, last + 1)
        met_before = (chosen[:, :step] == draw[:, None]).any(axis=1)
        chosen[:, step] = np.where(met_before, last, draw)
    past_the_end = pool_size  # moves nothing
    for column in range(max(map(len, taken), default=0)):
        obstacle = np.array([row[column] if column < len(row) else past_the_end for row in taken])
        chosen += chosen >= obstacle[:, None]
    return chosen
