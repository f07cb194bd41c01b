"""Drawing random negatives, side by side in one run: this package's way against the tutorial's loop over a data set.

    python benchmarks/bench_negatives.py [--queries 6980] [--rounds 5]

The loop is what the tutorial does: for each row it draws numbers until the row's own is not among them, and looks up
the texts in a `datasets.Dataset`. Ours draws positions for all queries at once, then looks up the texts in an array.
Both end with lists of texts. Then ours with 10 and 100 times as many queries, positions alone. Texts are short and
made up: their length changes nothing. The last line of standard output is one JSON object.
"""

import argparse
import gc
import json
import statistics
import time

import numpy as np
from datasets import Dataset
from inputs import peak_gb

from embedding_finetune.data.negatives import sample_random

NUMBERS = 10, 50
CALLS = 9  # of ours a round, the median counts: one takes milliseconds, a stray collection of garbage as many


def loop(dataset, number, seed):
    """The tutorial's way: a list of lists of texts."""
    rng, found = np.random.default_rng(seed), []
    for row in range(len(dataset)):
        drawn = rng.integers(0, len(dataset), size=number)
        while row in drawn:
            drawn = rng.integers(0, len(dataset), size=number)
        found.append([dataset[int(place)]["pos"] for place in drawn])
    return found


def ours(texts, number, seed):
    """The same by positions, without a positive or a repetition."""
    return texts[sample_random([[row] for row in range(len(texts))], len(texts), number, seed)].tolist()


def timed(call, *arguments, calls=1):
    """(what a call returns, seconds: the median of so many calls)."""
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        found = call(*arguments)
        seconds.append(time.perf_counter() - began)
    return found, statistics.median(seconds)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--queries", type=int, default=6980)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    gc.freeze()  # else the libraries' own objects are looked through whenever one of the two has made many lists
    texts = [f"passage {number}" for number in range(options.queries)]
    dataset, result = Dataset.from_dict({"pos": texts}), {}
    for number in NUMBERS:
        ratios, seconds = [], []
        for seed in range(options.rounds):
            theirs, slow = timed(loop, dataset, number, seed)
            mine, fast = timed(ours, np.array(texts, dtype=object), number, seed, calls=CALLS)
            assert all(len(set(row)) == number and texts[place] not in row for place, row in enumerate(mine))
            assert len(theirs) == len(mine)
            ratios.append(slow / fast)
            seconds.append((slow, fast))
        print(f"{options.queries} queries, {number} negatives each: " + "; ".join(
            f"loop {slow:.2f} s, ours {fast:.3f} s" for slow, fast in seconds))
        result["ratio_tutorial_loop" + f"_{number}" * (number != NUMBERS[0])] = round(statistics.median(ratios), 1)
    for times in (1, 10, 100):
        size = times * options.queries
        _, seconds = timed(sample_random, [[row] for row in range(size)], size, NUMBERS[0], 0)
        print(f"{size:,} queries, {NUMBERS[0]} negatives each, positions: {seconds:.3f} s")
        result[f"seconds_{times}x"] = round(seconds, 4)
    result["peak_gb"] = round(peak_gb(), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
