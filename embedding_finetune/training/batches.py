"""Training batches: what is drawn, when it is drawn, and how its texts are laid out for the encoder.

What a row contributes is drawn from a generator of its own, seeded by seed, epoch and row: batches are a function of
the seed alone, worker processes and prefetching cannot change them, and an interrupted run finds its place again by
counting.
"""

import hashlib
import math
import random
from collections import defaultdict

import torch

from embedding_finetune.data.texts import PSEUDO, without
from embedding_finetune.retrieval.layout import padded, sub_batch_rows
from embedding_finetune.retrieval.tokens import expanded

# Of ten times that a pseudo-query is drawn, it is taken out of its passage nine times: the model is to tell what goes
# together, and not to forget that equal words do (inverse cloze task, Lee et al. 2019, arXiv 1906.00300).
HIDDEN = 0.9
# What one call of the encoder costs beside its tokens, in tokens: estimates, not measurements.
CALL_COST = {"cpu": 24, "cuda": 2048}


def text_key(text):
    """A text's identity as a signed 64-bit number, so that it can travel between processes in a tensor."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class TrainingSet(torch.utils.data.Dataset):
    """Rows of training files; an item is (epoch, row), and reading it draws a positive and group - 1 negatives.

    As FlagEmbedding's AbsEmbedderTrainDataset does it: negatives are sampled without repetition, and only a row with
    too few of them repeats some. Besides its texts an item carries the keys that tell false negatives: of each
    passage, and of *all* positives of the query, gathered over every row that asks the same query. A passage from which
    a pseudo-query is taken out (HIDDEN) keeps its key.
    """

    def __init__(self, rows, use, group, seed, teacher=False):
        """`rows` as rows.read_training_file returns them; `use` is a ModelUse; `teacher` adds the teacher's scores."""
        self.rows, self.use, self.group, self.seed, self.teacher = rows, use, group, seed, teacher
        positives = defaultdict(set)
        for row in rows:
            positives[text_key(row["query"])].update(map(text_key, row["pos"]))
        # One width for all queries, so that processes can exchange keys without agreeing on a shape first.
        width = max(map(len, positives.values()))
        self.positive_keys = {query: (sorted(keys) * width)[:width] for query, keys in positives.items()}

    def __len__(self):
        return len(self.rows)

    def draw(self, epoch, number):
        """(the row's positive, its group - 1 negatives), by their places in the row."""
        generator, row = random.Random(f"{self.seed} {epoch} {number}"), self.rows[number]
        places, wanted = list(range(len(row["neg"]))), self.group - 1
        return generator.randrange(len(row["pos"])), generator.sample(places * math.ceil(wanted / len(places)), wanted)

    def __getitem__(self, item):
        row, (positive, negatives) = self.rows[item[1]], self.draw(*item)
        texts = [row["pos"][positive], *(row["neg"][place] for place in negatives)]
        keys = [text_key(text) for text in texts]
        hide = random.Random(f"{self.seed} {item} hide").random() < HIDDEN
        if hide and str(row.get("id", "")).startswith(PSEUDO):
            texts[0] = without(texts[0], row["query"])
        scores = self.teacher and [row["pos_scores"][positive], *(row["neg_scores"][place] for place in negatives)]
        return {
            "query": self.use.query_prompt + row["query"],
            "passages": [self.use.passage_prompt + text for text in texts],
            "passage_keys": keys,
            "positive_keys": self.positive_keys[text_key(row["query"])],
            "teacher_scores": scores or None,
        }


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
        laid_out.append(padded(tokenizer, {"input_ids": [distinct[row] for row in rows]}, pad_to_multiple_of or 1))
    return laid_out, torch.tensor([place[tuple(ids)] for ids in token_ids])


class Collator:
    """Items of a TrainingSet to the arguments of ContrastiveModel.forward, queries and passages laid out together."""

    def __init__(self, tokenizer, use, call_cost=CALL_COST["cpu"], limit=None, pad_to_multiple_of=None, expansion=0):
        """`expansion`: to how many tokens queries are filled up, see tokens.expanded."""
        self.tokenizer, self.use, self.expansion = tokenizer, use, expansion
        self.layout = {"call_cost": call_cost, "limit": limit, "pad_to_multiple_of": pad_to_multiple_of}

    def __call__(self, items):
        def tokenize(texts, max_length):
            return self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

        token_ids = tokenize([item["query"] for item in items], self.use.query_max_len)
        token_ids = expanded(self.tokenizer, token_ids, self.expansion)
        token_ids += tokenize([passage for item in items for passage in item["passages"]], self.use.passage_max_len)
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
