"""Training batches: what is drawn, when it is drawn, and how its texts are laid out for the encoder.

The drawing of a positive and its negatives follows FlagEmbedding's AbsEmbedderTrainDataset, call for call, but happens in
the batch sampler with a generator of its own. Batches are thereby a function of the seed alone: worker processes and
prefetching cannot change them, and an interrupted run finds its place again by drawing without reading.
"""

import hashlib
import math
import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderCollator, AbsEmbedderTrainDataset

# What one call of the encoder costs beside its tokens, in tokens: estimates, not measurements.
CALL_COST = {"cpu": 24, "cuda": 2048}


def text_key(text):
    """A text's identity as a signed 64-bit number, so that it can travel between processes in a tensor."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


class TrainingSet(AbsEmbedderTrainDataset):
    """FlagEmbedding's training set; an item is a `draw`, hence reading it is free of chance.

    Besides query and passages an item carries the keys that tell false negatives: of each passage, and of *all*
    positives of the query, gathered over every row that asks the same query.
    """

    def __init__(self, args, tokenizer):
        super().__init__(args, tokenizer)
        self.sizes = []  # (positives, negatives) of each row
        positives = defaultdict(set)
        for rows in self.dataset.select_columns(["query", "pos", "neg"]).iter(1000):
            for query, pos, neg in zip(rows["query"], rows["pos"], rows["neg"], strict=True):
                self.sizes.append((len(pos), len(neg)))
                positives[text_key(query)].update(map(text_key, pos))
        # One width for all queries, so that processes can exchange keys without agreeing on a shape first.
        width = max(map(len, positives.values()))
        self.positive_keys = {query: (sorted(keys) * width)[:width] for query, keys in positives.items()}

    def draw(self, item, generator):
        """(item, its positive, its train_group_size - 1 negatives, seed of --shuffle_ratio or None)."""
        positives, negatives = self.sizes[item]
        wanted = self.args.train_group_size - 1
        positive = generator.choice(range(positives))
        shuffle_seed = generator.random() if self.shuffle_ratio > 0 else None
        drawn = generator.sample(list(range(negatives)) * math.ceil(max(wanted, negatives) / negatives), wanted)
        return item, positive, drawn, shuffle_seed

    def __getitem__(self, draw):
        item, positive, negatives, shuffle_seed = draw
        row, args = self.dataset[item], self.args
        texts = [row["pos"][positive], *(row["neg"][i] for i in negatives)]
        passages = list(texts)
        if shuffle_seed is not None:
            passages[0] = self._shuffle_text_seeded(passages[0], random.Random(shuffle_seed))
        query = row["query"]
        if args.query_instruction_for_retrieval is not None:
            query = args.query_instruction_format.format(row.get("prompt", args.query_instruction_for_retrieval), query)
        if args.passage_instruction_for_retrieval is not None:
            passages = [args.passage_instruction_format.format(args.passage_instruction_for_retrieval, p) for p in passages]
        return {
            "query": query,
            "passages": passages,
            "passage_keys": [text_key(text) for text in texts],
            "positive_keys": self.positive_keys[text_key(row["query"])],
            "teacher_scores": [row["pos_scores"][positive], *(row["neg_scores"][i] for i in negatives)]
            if args.knowledge_distillation else None,
        }

    def _shuffle_text_seeded(self, text, generator):
        """FlagEmbedding's _shuffle_text: now and then, a long text's three thirds in another order."""
        if len(text) <= 100 or generator.random() >= self.shuffle_ratio:
            return text
        third = len(text) // 3 + 1
        parts = [text[start:start + third] for start in range(0, len(text), third)]
        generator.shuffle(parts)
        return " ".join(parts)


class DrawingSampler:
    """Batches of draws. The order of an epoch's items is accelerate's SeedableRandomSampler's: seed + epoch.

    The draws go on from epoch to epoch in one stream, as in FlagEmbedding; `epoch` may be set to any value, the draws
    of the epochs before are then made up for (some ten microseconds an item).
    """

    def __init__(self, dataset, batch_size, seed, order_seed=None, drop_last=False):
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.order_seed = seed if order_seed is None else order_seed
        self.epoch = 0
        self._states = [random.Random(seed).getstate()]  # of the generator, at the start of each epoch

    def __len__(self):
        rows = len(self.dataset)
        return rows // self.batch_size if self.drop_last else math.ceil(rows / self.batch_size)

    def __iter__(self):
        while len(self._states) <= self.epoch:
            for _ in self._draws(len(self._states) - 1):
                pass
        yield from self._draws(self.epoch)

    def _draws(self, epoch):
        generator = random.Random()
        generator.setstate(self._states[epoch])
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.order_seed + epoch)).tolist()
        for batch in range(len(self)):
            items = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield [self.dataset.draw(item, generator) for item in items]
        if len(self._states) == epoch + 1:
            self._states.append(generator.getstate())


def plan_sub_batches(lengths, call_cost, limit=None):
    """Cut texts, longest first, into the sub-batches that cost least; returns their sizes.

    A sub-batch of n texts costs n times its longest text (padding included) plus `call_cost`, all in tokens; the best
    cut is found by dynamic programming. `lengths` must descend; no sub-batch exceeds `limit` texts.
    """
    lengths = np.asarray(lengths)
    best, size_ending_at = np.zeros(len(lengths) + 1), [0]  # cost of the first k texts; size of the sub-batch ending there
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


def sub_batches(tokenizer, token_ids, call_cost, limit=None, pad_to_multiple_of=None):
    """Lay out texts for the encoder: each distinct one once, in length-sorted, padded sub-batches.

    `token_ids` is a list of lists. Returns the sub-batches (`input_ids`, `attention_mask`) and `rows`, a tensor:
    text i of the input is row `rows[i]` of the concatenated sub-batches.
    """
    distinct = sorted(set(map(tuple, token_ids)), key=lambda ids: (-len(ids), ids))
    place = {ids: row for row, ids in enumerate(distinct)}
    padded, start = [], 0
    for size in plan_sub_batches([len(ids) for ids in distinct], call_cost, limit):
        texts = [list(ids) for ids in distinct[start:start + size]]
        padded.append(dict(tokenizer.pad({"input_ids": texts}, pad_to_multiple_of=pad_to_multiple_of, return_tensors="pt")))
        start += size
    return padded, torch.tensor([place[tuple(ids)] for ids in token_ids])


@dataclass
class Collator(AbsEmbedderCollator):
    """Items of a TrainingSet to the arguments of ContrastiveModel.forward; queries and passages are laid out together."""

    call_cost: int = CALL_COST["cpu"]
    limit: int | None = None

    def __call__(self, items):
        def tokenize(texts, max_length):
            return self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

        token_ids = tokenize([item["query"] for item in items], self.query_max_len)
        token_ids += tokenize([passage for item in items for passage in item["passages"]], self.passage_max_len)
        texts, rows = sub_batches(self.tokenizer, token_ids, self.call_cost, self.limit, self.pad_to_multiple_of)
        batch = {
            "texts": texts,
            "rows": rows,
            "passage_keys": torch.tensor([key for item in items for key in item["passage_keys"]]),
            "positive_keys": torch.tensor([item["positive_keys"] for item in items]),
        }
        if items[0]["teacher_scores"] is not None:
            batch["teacher_scores"] = torch.tensor([item["teacher_scores"] for item in items])
        return batch
