"""Batches of like length: the cheapest cut is found, and nothing is too large."""

import itertools
import random

from embedding_finetune.retrieval.layout import batches, plan_sub_batches


def test_batches_are_full_but_not_overfull():
    lengths = [3, 10, 1, 2, 10, 4, 30]
    assert [list(rows) for rows in batches(lengths, 0, 20)] == [[6], [1, 4], [5, 0, 3, 2]]
    assert [list(rows) for rows in batches(lengths, 3, 20)] == [[6, 1, 4], [5, 0, 3], [2]]


def test_the_plan_is_the_cheapest_one():
    draw = random.Random(0)
    for _ in range(6):
        lengths = sorted((draw.randint(1, 50) for _ in range(7)), reverse=True)
        call_cost, limit = draw.choice([0, 10, 60]), draw.choice([None, 3])

        def cost(sizes, lengths=lengths, call_cost=call_cost):
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            return sum(size * lengths[start] + call_cost for size, start in zip(sizes, starts, strict=True))

        plans = [sizes for count in range(1, 8) for sizes in itertools.product(range(1, (limit or 7) + 1), repeat=count)
                 if sum(sizes) == 7]
        plan = plan_sub_batches(lengths, call_cost, limit)
        assert sum(plan) == 7 and max(plan) <= (limit or 7) and cost(plan) == min(map(cost, plans))
