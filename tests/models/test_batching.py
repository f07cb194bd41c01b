"""Batches of like length: the cheapest cut is found, nothing is too large, and the next is laid out meanwhile."""

import itertools
import random
import threading

import pytest
import torch
from tiny_training import passages
from transformers import AutoTokenizer

from embedding_finetune.models import batching
from embedding_finetune.models.batching import batches, pad_batch, padded_batches, plan_sub_batches


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


@pytest.mark.parametrize("multiple", [1, 8])
def test_padding_is_the_tokenizers_own(tiny, multiple):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    tokens = tokenizer(passages(20))
    theirs = tokenizer.pad(tokens, padding_side="right", pad_to_multiple_of=multiple, return_tensors="pt")
    ours = pad_batch(tokenizer, tokens, multiple)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype and torch.equal(ours[name], values), name


def test_threads_tokenise_as_one_does(tiny, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 7)
    tokenizer, texts = AutoTokenizer.from_pretrained(tiny / "bert"), passages(300)
    for length in (8, 30, 12):  # each sets another length in the tokenizer
        expected = dict(tokenizer(texts, truncation=True, max_length=length))
        assert batching.tokenize_texts(tokenizer, texts, length) == expected


def test_what_is_made_ahead_comes_in_order_and_one_is_made_meanwhile():
    begun = [threading.Event() for _ in range(4)]
    found = batching.prefetch(lambda item: begun[item].set() or item * item, range(4))
    assert next(found) == (0, 0) and begun[1].wait(10) and not begun[3].is_set()
    assert list(found) == [(1, 1), (2, 4), (3, 9)]
    with pytest.raises(ZeroDivisionError):
        list(batching.prefetch(lambda item: 1 / item, [1, 0]))


def test_few_texts_are_cut_at_least_cost_and_a_memory_bound_holds(tiny):
    """A passage of 100 tokens among short ones is not what all are padded to; its batch is no larger than allowed."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    tokens = {"input_ids": [[5] * length for length in (7, 100, 8, 99, 7)]}
    cut = {tuple(rows): batch["input_ids"].shape for rows, batch in padded_batches(tokenizer, tokens, 0, "cpu")}
    assert cut == {(1, 3): (2, 100), (2, 0, 4): (3, 8)}
    long = {"input_ids": [[5] * 512] * 20}
    shapes = [batch["input_ids"].shape for _, batch in padded_batches(tokenizer, long, 0, "cpu")]
    assert sum(rows for rows, _ in shapes) == 20 and max(rows for rows, _ in shapes) <= 4096 // 512
    assert list(padded_batches(tokenizer, {"input_ids": []}, 0, "cpu")) == []
