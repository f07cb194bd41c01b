"""Evaluation on dev queries during training: recall@10 and MRR@10, used to select the best checkpoint."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.multi_vector import expand_queries
from embedding_finetune.settings import Settings
from embedding_finetune.training.arguments import TrainingSettings
from embedding_finetune.training.batches import sub_batches
from embedding_finetune.training.loss import ContrastiveModel

DEPTH = 10  # passages per query that the metrics take into account
TOGETHER = 1 << 26  # values in the padded query embeddings that are scored in one call


def dev_corpus(collection: Collection, size: int, seed: int) -> dict[str, str]:
    """Passages of the dev evaluation, id -> text: the dev positives and a seeded sample of `size` other passages.

    Copies of dev queries are left out.
    """
    judged, _ = collection.positive_pool()
    others = sorted(set(collection.corpus).difference(judged, *collection.copies.values()))
    others = random.Random(seed).sample(others, min(size, len(others)))
    return {passage: collection.corpus[passage] for passage in judged + others}


def dev_metrics(qrels: dict[str, dict[str, int]], rankings: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """{"recall@10", "mrr@10"} of rankings (query id -> passage ids, best first), see evaluation.metrics."""
    run = {query: {passage: -float(rank) for rank, passage in enumerate(ranking)}
           for query, ranking in rankings.items()}
    found = mean(per_query(qrels, run))
    return {name: found[name] for name in ("recall@10", "mrr@10")}


class DevEvaluator:
    """Searches the passages of `dev_corpus` for the dev queries."""

    def __init__(self, collection: Collection, training: Settings | TrainingSettings, tokenizer: Any,
                 config: EncoderConfig, device: torch.device, expansion: int = 0):
        """`collection` is the dev split. `training` gives the size and the seed of the sample of other passages.
        `expansion` as in batches.Collator.
        """
        self.qrels, self.query_ids, self.device = collection.qrels, list(collection.queries), device

        def lay_out(prompt, texts, max_length, length=0):
            tokens = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_length)
            token_ids = expand_queries(tokenizer, tokens["input_ids"], length)
            return sub_batches(tokenizer, token_ids, BATCH_OVERHEAD_TOKENS[device.type], limit=64)

        self.queries = lay_out(config.query_prompt, collection.queries.values(), config.query_max_len, expansion)
        corpus = dev_corpus(collection, training.dev_corpus_size, training.seed)
        self.passage_ids = list(corpus)
        self.corpus = lay_out(config.passage_prompt, corpus.values(), config.passage_max_len)

    def _embed(self, model, sub):
        return model([{name: tensor.to(self.device) for name, tensor in sub.items()}]).float()

    def _embed_queries(self, model):
        """Embeddings of the distinct queries, in main memory, without trailing columns that are zero for all of them:
        multi-vector embeddings are mostly padding.
        """
        found = []
        for sub in self.queries[0]:
            embedded = self._embed(model, sub)
            used = int(embedded.any(dim=0).nonzero()[-1:].sum()) + 1
            found.append(embedded[:, :used].to("cpu", copy=True))
        width = max(embedded.shape[1] for embedded in found)
        return torch.cat([_widened(embedded, width) for embedded in found])

    @torch.no_grad()  # not inference_mode: tensors that the model caches may be used in a backward pass later
    def evaluate(self, model: ContrastiveModel) -> dict[str, float]:
        """{"recall@10", "mrr@10"} of the model, averaged over queries; ties are in corpus order.

        Passages are scored one sub-batch at a time, keeping the top passages of each query, since the token vectors of
        one passage of 512 tokens take 1.6 MB.
        """
        model.eval()
        texts, rows = self.corpus
        queries, start = self._embed_queries(model), 0
        best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)  # scores, places
        for sub in texts:
            passages = self._embed(model, sub)
            chunks = queries.split(max(1, TOGETHER // passages.shape[1]))
            scores = torch.cat([model.score(_widened(chunk.to(self.device), passages.shape[1]), passages).cpu()
                                for chunk in chunks])
            places = ((rows >= start) & (rows < start + len(passages))).nonzero()[:, 0]  # equal texts share a row
            found = scores[:, rows[places] - start], places.expand(len(queries), -1)
            best = _best(*(torch.cat(both, dim=1) for both in zip(best, found)))
            start += len(passages)
        rankings = best[1][self.queries[1]].tolist()
        return dev_metrics(self.qrels, {query: [self.passage_ids[place] for place in places]
                                        for query, places in zip(self.query_ids, rankings, strict=True)})


def _widened(embedded, width):
    """Embeddings (texts, values), zero-padded on the right to `width` values."""
    return torch.nn.functional.pad(embedded, (0, width - embedded.shape[1]))


def _best(scores, places):
    """The top passages of each query: scores and places in the corpus, both (queries, at most DEPTH); ties by place."""
    order = places.argsort(dim=1)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :DEPTH]
    return scores.gather(1, order), places.gather(1, order)
