"""Training batches: sampling of positives and negatives, and length-sorted sub-batches for the encoder.

Each row samples from its own generator, seeded by seed, epoch and row. Batches therefore depend on the seed alone, not
on worker processes or prefetching, and an interrupted run resumes by counting batches.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embedding_finetune.data.normalize import is_pseudo_query, remove_query
from embedding_finetune.data.row_store import SCORES, Rows
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS, pad_batch, sub_batch_rows
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.multi_vector import expand_queries

# Probability that a pseudo-query is removed from its passage. The remaining cases keep lexical overlap as a signal
# (inverse cloze task, Lee et al. 2019, arXiv 1906.00300).
QUERY_REMOVAL_RATE = 0.9


class TrainingSet(torch.utils.data.Dataset):
    """Rows of training files. Item (epoch, row) samples one positive and group - 1 negatives.

    As in FlagEmbedding's AbsEmbedderTrainDataset, negatives are sampled without replacement unless a row has too few.
    An item also carries the keys needed to mask false negatives: the key of each passage, and the keys of *all*
    positives of the query, collected over every row with the same query. A passage from which a pseudo-query was
    removed (QUERY_REMOVAL_RATE) keeps its key.
    """

    def __init__(self, rows: Rows, config: EncoderConfig, group: int, seed: int):
        """`rows` have teacher scores if they were read; `group` is the number of passages per query."""
        self.rows, self.config, self.group, self.seed = rows, config, group, seed
        _, self.query = np.unique(rows.table["query_key"].to_numpy(), return_inverse=True)  # row -> query number
        positives = rows.table["pos"].combine_chunks()
        query, keys = np.repeat(self.query, np.diff(positives.offsets)), rows.keys[positives.flatten()]
        order = np.lexsort((keys, query))
        query, keys = query[order], keys[order]
        new = np.append(True, (query[1:] != query[:-1]) | (keys[1:] != keys[:-1]))
        self.keys, self.ends = keys[new], np.append(0, np.cumsum(np.bincount(query[new])))
        # The same width for all queries, so that processes can gather keys without exchanging shapes first.
        self.width = int(np.diff(self.ends).max())

    def __len__(self):
        return len(self.rows)

    def draw(self, epoch: int, number: int) -> tuple[int, list[int]]:
        """Indices, within the row, of (the sampled positive, the group - 1 sampled negatives)."""
        generator, (positives, negatives) = random.Random(f"{self.seed} {epoch} {number}"), self._passages(number)
        places, wanted = list(range(len(negatives))), self.group - 1
        return (generator.randrange(len(positives)),
                generator.sample(places * math.ceil(wanted / len(places)), wanted))

    def __getitem__(self, item):
        number, (positive, negatives) = item[1], self.draw(*item)
        query, drawn = self.rows.value("query", number), self._drawn(self._passages(number), positive, negatives)
        texts, query_number = [self.rows.text(position) for position in drawn], self.query[number]
        hide = random.Random(f"{self.seed} {item} hide").random() < QUERY_REMOVAL_RATE
        if hide and is_pseudo_query(str(self.rows.value("id", number))):
            texts[0] = remove_query(texts[0], query)
        scores = self.rows.teacher and [self.rows.value(name, number) for name in SCORES]
        keys = self.keys[self.ends[query_number]:self.ends[query_number + 1]].tolist()
        return {
            "query": self.config.query_prompt + query,
            "passages": [self.config.passage_prompt + text for text in texts],
            "passage_keys": self.rows.keys[drawn].tolist(),
            "positive_keys": (keys * self.width)[:self.width],
            "teacher_scores": self._drawn(scores, positive, negatives) if scores else None,
        }

    def _passages(self, number):
        return self.rows.value("pos", number), self.rows.value("neg", number)

    @staticmethod
    def _drawn(sides, positive, negatives):
        """Select the sampled entries from `sides`: (values of the row's positives, values of its negatives)."""
        return [sides[0][positive], *(sides[1][place] for place in negatives)]


class EpochSampler:
    """Batches of items (epoch, row), shuffled per epoch in the order of accelerate's SeedableRandomSampler."""

    def __init__(self, rows: int, batch_size: int, seed: int, drop_last: bool = False):
        self.rows, self.batch_size, self.seed, self.drop_last = rows, batch_size, seed, drop_last
        self.epoch = 0  # set by the trainer at the start of each epoch

    def __len__(self):
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def __iter__(self):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, row) for row in order[start:start + self.batch_size]]


def sub_batches(tokenizer: Any, token_ids: Sequence[Sequence[int]], call_cost: int,
                limit: int | None = None) -> tuple[list, torch.Tensor]:
    """Deduplicate tokenized texts and group them into length-sorted sub-batches, padded on the right.

    `token_ids` is a list of lists. Returns the sub-batches (`input_ids`, `attention_mask`) and the tensor `rows`:
    input text i is row `rows[i]` of the concatenated sub-batches.
    """
    distinct = sorted(set(map(tuple, token_ids)), key=lambda ids: (-len(ids), ids))
    place = {ids: row for row, ids in enumerate(distinct)}
    laid_out = []
    for rows in sub_batch_rows([len(ids) for ids in distinct], call_cost, limit):
        laid_out.append(pad_batch(tokenizer, {"input_ids": [distinct[row] for row in rows]}))
    return laid_out, torch.tensor([place[tuple(ids)] for ids in token_ids])


class Collator:
    """Collate items of a TrainingSet into the arguments of ContrastiveModel.forward."""

    def __init__(self, tokenizer: Any, config: EncoderConfig, call_cost: int = BATCH_OVERHEAD_TOKENS["cpu"],
                 limit: int | None = None, expansion: int = 0):
        """`expansion` is the number of tokens that queries are padded to, see multi_vector.expand_queries."""
        self.tokenizer, self.config, self.expansion = tokenizer, config, expansion
        self.call_cost, self.limit = call_cost, limit

    def __call__(self, items):
        def tokenize(texts, max_length):
            return self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

        token_ids = tokenize([item["query"] for item in items], self.config.query_max_len)
        token_ids = expand_queries(self.tokenizer, token_ids, self.expansion)
        token_ids += tokenize([passage for item in items for passage in item["passages"]], self.config.passage_max_len)
        texts, rows = sub_batches(self.tokenizer, token_ids, self.call_cost, self.limit)
        batch = {
            "texts": texts,
            "rows": rows,
            "passage_keys": torch.tensor([key for item in items for key in item["passage_keys"]]),
            "positive_keys": torch.tensor([item["positive_keys"] for item in items]),
        }
        if items[0]["teacher_scores"] is not None:
            batch["teacher_scores"] = torch.tensor([item["teacher_scores"] for item in items])
        return batch
