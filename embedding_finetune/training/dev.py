"""The dev set: a look at recall@10 and MRR@10 while the training goes on, by which the best checkpoint is chosen."""

import random

import torch

from embedding_finetune.data.texts import PSEUDO, without
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.retrieval.layout import CALL_COST
from embedding_finetune.retrieval.tokens import expanded
from embedding_finetune.training.batches import sub_batches


def dev_passages(collection, size, seed):
    """The passages of a dev search, id -> text: the dev positives, out of which pseudo-queries are taken, and a seeded
    sample of `size` others of the corpus."""
    judged, _ = collection.pool()
    others = sorted(set(collection.corpus) - set(judged))
    others = random.Random(seed).sample(others, min(size, len(others)))
    texts = {passage: collection.corpus[passage] for passage in judged + others}
    for query in collection.queries:
        for passage in collection.positives(query) if query.startswith(PSEUDO) else ():
            texts[passage] = without(texts[passage], collection.queries[query])
    return texts


def dev_metrics(qrels, rankings):
    """{"recall@10", "mrr@10"} of rankings (query id -> passage ids, best first), as evaluation.metrics defines them."""
    run = {query: {passage: -float(rank) for rank, passage in enumerate(ranking)}
           for query, ranking in rankings.items()}
    found = mean(per_query(qrels, run))
    return {name: found[name] for name in ("recall@10", "mrr@10")}


class DevSet:
    """Dev queries over their positives, out of which pseudo-queries are taken, and a seeded sample of the corpus."""

    def __init__(self, collection, size, tokenizer, use, seed, device, expansion=0):
        """`collection` is the dev part; `size` passages beside the positives are sampled; `use` is a ModelUse;
        `expansion` as in batches.Collator."""
        self.qrels, self.query_ids, self.device = collection.qrels, list(collection.queries), device

        def lay_out(prompt, texts, max_length, length=0):
            tokens = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_length)
            token_ids = expanded(tokenizer, tokens["input_ids"], length)
            return sub_batches(tokenizer, token_ids, CALL_COST[device.type], limit=64)

        self.queries = lay_out(use.query_prompt, collection.queries.values(), use.query_max_len, expansion)
        corpus = dev_passages(collection, size, seed)
        self.passage_ids = list(corpus)
        self.corpus = lay_out(use.passage_prompt, corpus.values(), use.passage_max_len)

    def _encode(self, model, laid_out):
        texts, rows = laid_out
        pooled = [model([{name: tensor.to(self.device) for name, tensor in sub.items()}]) for sub in texts]
        return torch.cat(pooled).float()[rows.to(self.device)]

    @torch.no_grad()  # not inference_mode: what the model keeps for later must be able to take part in a backward pass
    def evaluate(self, model):
        """{"recall@10", "mrr@10"} of a loss.ContrastiveModel, means over queries; equal scores keep their order."""
        model.eval()
        scores = model.score(self._encode(model, self.queries), self._encode(model, self.corpus))
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()
        return dev_metrics(self.qrels, {query: [self.passage_ids[place] for place in places]
                                        for query, places in zip(self.query_ids, best, strict=True)})
