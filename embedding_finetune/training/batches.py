"""Training batches: what is drawn, when it is drawn, and how its texts are laid out for the encoder.

What a row contributes is drawn from a generator of its own, seeded by seed, epoch and row: batches are a function of
the seed alone, worker processes and prefetching cannot change them, and an interrupted run finds its place again by
counting.
"""

import math
import random

import numpy as np
import torch

from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX, remove_query
from embedding_finetune.data.row_store import SCORES
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS, pad_batch, sub_batch_rows
from embedding_finetune.models.multi_vector import expand_queries

# Of ten times that a pseudo-query is drawn, it is taken out of its passage nine times: the model is to tell what goes
# together, and not to forget that equal words do (inverse cloze task, Lee et al. 2019, arXiv 1906.00300).
QUERY_REMOVAL_RATE = 0.9


class TrainingSet(torch.utils.data.Dataset):
    """Rows of training files; an item is (epoch, row), and reading it draws a positive and group - 1 negatives.

    As FlagEmbedding's AbsEmbedderTrainDataset does it: negatives are sampled without repetition, and only a row with
    too few of them repeats some. Besides its texts an item carries the keys that tell false negatives: of each
    passage, and of *all* positives of the query, gathered over every row that asks the same query. A passage from which
    a pseudo-query is taken out (HIDDEN) keeps its key.
    """

    def __init__(self, rows, config, group, seed):
        """`rows` are a store.Rows, and give the teacher's scores if they were read with them; `use` is a ModelUse."""
        self.rows, self.config, self.group, self.seed = rows, config, group, seed
        _, self.query = np.unique(rows.table["query_key"].to_numpy(), return_inverse=True)  # row -> number of its text
        positives = rows.table["pos"].combine_chunks()
        query, keys = np.repeat(self.query, np.diff(positives.offsets)), rows.keys[positives.flatten()]
        order = np.lexsort((keys, query))
        query, keys = query[order], keys[order]
        new = np.append(True, (query[1:] != query[:-1]) | (keys[1:] != keys[:-1]))
        self.keys, self.ends = keys[new], np.append(0, np.cumsum(np.bincount(query[new])))
        # One width for all queries, so that processes can exchange keys without agreeing on a shape first.
        self.width = int(np.diff(self.ends).max())

    def __len__(self):
        return len(self.rows)

    def draw(self, epoch, number):
        """(the row's positive, its group - 1 negatives), by their places in the row."""
        generator, (positives, negatives) = random.Random(f"{self.seed} {epoch} {number}"), self._passages(number)
        places, wanted = list(range(len(negatives))), self.group - 1
        return (generator.randrange(len(positives)),
                generator.sample(places * math.ceil(wanted / len(places)), wanted))

    def __getitem__(self, item):
        number, (positive, negatives) = item[1], self.draw(*item)
        query, drawn = self.rows.value("query", number), self._drawn(self._passages(number), positive, negatives)
        texts, own = [self.rows.text(position) for position in drawn], self.query[number]
        hide = random.Random(f"{self.seed} {item} hide").random() < QUERY_REMOVAL_RATE
        if hide and str(self.rows.value("id", number)).startswith(PSEUDO_QUERY_PREFIX):
            texts[0] = remove_query(texts[0], query)
        scores = self.rows.teacher and [self.rows.value(name, number) for name in SCORES]
        keys = self.keys[self.ends[own]:self.ends[own + 1]].tolist()
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
        """Of (what is said of a row's positives, of its negatives), what is said of those drawn."""
        return [sides[0][positive], *(sides[1][place] for place in negatives)]


class EpochSampler:
    """Batches of items (epoch, row); the order of an epoch's rows is SeedableRandomSampler's (accelerate)."""

    def __init__(self, rows, batch_size, seed, drop_last=False):
        self.rows, self.batch_size, self.seed, self.drop_last = rows, batch_size, seed, drop_last
        self.epoch = 0  # set by the training when an epoch begins

    def __len__(self):
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def __iter__(self):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, row) for row in order[start:start + self.batch_size]]


def sub_batches(tokenizer, token_ids, call_cost, limit=None, pad_to_multiple_of=None):
    """Lay out texts for the encoder: each distinct one once, in length-sorted sub-batches, padded on the right.

    `token_ids` is a list of lists. Returns the sub-batches (`input_ids`, `attention_mask`) and `rows`, a tensor:
    text i of the input is row `rows[i]` of the concatenated sub-batches.
    """
    distinct = sorted(set(map(tuple, token_ids)), key=lambda ids: (-len(ids), ids))
    place = {ids: row for row, ids in enumerate(distinct)}
    laid_out = []
    for rows in sub_batch_rows([len(ids) for ids in distinct], call_cost, limit):
        laid_out.append(pad_batch(tokenizer, {"input_ids": [distinct[row] for row in rows]}, pad_to_multiple_of or 1))
    return laid_out, torch.tensor([place[tuple(ids)] for ids in token_ids])


class Collator:
    """Items of a TrainingSet to the arguments of ContrastiveModel.forward, queries and passages laid out together."""

    def __init__(self, tokenizer, config, call_cost=BATCH_OVERHEAD_TOKENS["cpu"], limit=None, pad_to_multiple_of=None, expansion=0):
        """`expansion`: to how many tokens queries are filled up, see tokens.expanded."""
        self.tokenizer, self.config, self.expansion = tokenizer, config, expansion
        self.layout = {"call_cost": call_cost, "limit": limit, "pad_to_multiple_of": pad_to_multiple_of}

    def __call__(self, items):
        def tokenize(texts, max_length):
            return self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

        token_ids = tokenize([item["query"] for item in items], self.config.query_max_len)
        token_ids = expand_queries(self.tokenizer, token_ids, self.expansion)
        token_ids += tokenize([passage for item in items for passage in item["passages"]], self.config.passage_max_len)
        texts, rows = sub_batches(self.tokenizer, token_ids, **self.layout)
        batch = {
            "texts": texts,
            "rows": rows,
            "passage_keys": torch.tensor([key for item in items for key in item["passage_keys"]]),
            "positive_keys": torch.tensor([item["positive_keys"] for item in items]),
        }
        if items[0]["teacher_scores"] is not None:
            batch["teacher_scores"] = torch.tensor([item["teacher_scores"] for item in items])
        return batch
