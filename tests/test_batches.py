"""Draws against FlagEmbedding's, the layout of a batch, and the plan of sub-batches against brute force."""

import itertools
import random

import pytest
import torch
from batches_for_tests import batch_of, data_arguments
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainDataset
from transformers import AutoTokenizer

from embedding_finetune.batches import DrawingSampler, TrainingSet, plan_sub_batches, sub_batches, text_key


@pytest.fixture(scope="module")
def dataset(tiny):
    return TrainingSet(data_arguments(tiny), tokenizer=None)


@pytest.mark.parametrize("group", [4, 12])  # 12 asks for more negatives than a row has: some come twice
def test_draws_are_flagembeddings(tiny, group):
    ours = TrainingSet(data_arguments(tiny, train_group_size=group), tokenizer=None)
    theirs = AbsEmbedderTrainDataset(data_arguments(tiny, train_group_size=group), tokenizer=None)
    random.seed(7)
    generator = random.Random(7)
    for item in (3, 0, 9, 3):
        query, passages, _ = theirs[item]
        row = ours[ours.draw(item, generator)]
        assert (row["query"], row["passages"]) == (query, passages)


def test_a_sampler_set_to_a_later_epoch_draws_what_an_uninterrupted_one_draws(dataset):
    through = DrawingSampler(dataset, 7, seed=1)
    epochs = []
    for through.epoch in range(3):
        epochs.append(list(through))
    assert epochs[0] != epochs[1]
    late = DrawingSampler(dataset, 7, seed=1)
    late.epoch = 2
    assert list(late) == epochs[2]
    assert len(epochs[2]) == len(late) == 9


def test_all_positives_of_a_query_are_known_wherever_they_stand(dataset):
    row = dataset[dataset.draw(0, random.Random(0))]
    assert set(row["positive_keys"]) == {text_key(text) for text in dataset.dataset[0]["pos"]}
    assert len({len(dataset[dataset.draw(i, random.Random(0))]["positive_keys"]) for i in range(10)}) == 1


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
        assert cost(plan_sub_batches(lengths, call_cost, limit)) == min(map(cost, plans))


def test_each_distinct_text_is_laid_out_once_and_found_again(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    token_ids = [[2, 9, 3], [2, 8, 8, 8, 3], [2, 9, 3], [2, 7, 3]]
    texts, rows = sub_batches(tokenizer, token_ids, call_cost=0)
    laid_out = [ids[mask.bool()].tolist() for sub in texts for ids, mask in zip(sub["input_ids"], sub["attention_mask"], strict=True)]
    assert len(laid_out) == 3
    assert [laid_out[row] for row in rows] == token_ids


def test_a_batch_holds_no_text_twice(tiny):
    batch, _ = batch_of(tiny)
    texts = [tuple(ids[mask.bool()].tolist()) for sub in batch["texts"]
             for ids, mask in zip(sub["input_ids"], sub["attention_mask"], strict=True)]
    assert len(texts) == len(set(texts)) < len(batch["rows"]) == 6 + 6 * 4
    assert batch["passage_keys"].dtype == torch.int64
