"""Loss, batches, dev evaluation and export of cross-encoder rerankers.

The loss is FlagEmbedding's: cross entropy of the positive among the passages of its query. The trainer, with
checkpoints, log and resume, is the same as for embedding models.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.data.collection import Collection
from embedding_finetune.files import UserError
from embedding_finetune.models.batching import pad_batch, sub_batch_rows
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.fast_layers import use_fast_dropout
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.cross_encoder import CrossEncoder, load_cross_encoder
from embedding_finetune.training.arguments import TrainingSettings
from embedding_finetune.training.dev_evaluator import dev_corpus, dev_metrics
from embedding_finetune.training.loss import SubBatches

CANDIDATES = 30  # passages per dev query, retrieved by BM25
COLLAPSED = 0.01  # standard deviation of a query's dev scores (logits), below which they carry no information
CAUSES = "possible causes are a high learning rate, easy negatives, or a sigmoid that is applied twice"
PAIRS = [("how far is the moon", "The Moon circles the Earth at a distance of 384,400 km."),
         ("what is a dot product?", "The Moon circles the Earth at a distance of 384,400 km."),
         ("what is a dot product?", "Multiply the numbers place by place, and add the products up.")]


class RerankerModel(nn.Module):
    """A sequence classifier (`encoder`) with one output, and its loss on batches of PairCollator."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder: Any = encoder
        self.dense, self.projection = DenseLayers(), DenseLayers()

    def forward(self, texts: SubBatches, rows: torch.Tensor, group: int) -> dict[str, torch.Tensor]:
        """{"loss": mean cross entropy of each query's first passage among its `group`}."""
        scores = self.scores(texts, rows).view(-1, group)
        first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        return {"loss": nn.functional.cross_entropy(scores, first)}

    def scores(self, texts: SubBatches, rows: torch.Tensor) -> torch.Tensor:
        """Scores of the pairs, float32 (pairs,): pair i is row `rows[i]` of the concatenated sub-batches `texts`."""
        return torch.cat([self.encoder(**sub).logits[:, 0].float() for sub in texts])[rows]


def load_reranker_model(config: EncoderConfig, new_head: bool, device: torch.device) -> tuple[Any, RerankerModel]:
    """Tokenizer and RerankerModel of the initial model, in float32."""
    tokenizer, model = load_cross_encoder(config.name, config.trusted, new_head)
    if device.type == "cpu":
        use_fast_dropout(model)
    return tokenizer, RerankerModel(model)


class PairCollator:
    """Collate items of a TrainingSet into the arguments of RerankerModel.forward: query-passage pairs."""

    def __init__(self, tokenizer: Any, config: EncoderConfig, call_cost: int):
        self.tokenizer, self.call_cost = tokenizer, call_cost
        self.max_length = config.query_max_len + config.passage_max_len

    def __call__(self, items):
        pairs = [(item["query"], passage) for item in items for passage in item["passages"]]
        return self.lay_out(pairs) | {"group": len(items[0]["passages"])}

    def lay_out(self, pairs: Sequence[tuple[str, str]], limit: int | None = None) -> dict[str, Any]:
        """Length-sorted sub-batches of tokenized pairs, and the row of each pair in them."""
        tokens = self.tokenizer(*map(list, zip(*pairs)), truncation="only_second", max_length=self.max_length)
        texts, order = [], []
        for rows in sub_batch_rows([len(ids) for ids in tokens["input_ids"]], self.call_cost, limit):
            sub = {name: [values[row] for row in rows] for name, values in tokens.items()}
            texts.append(pad_batch(self.tokenizer, sub))
            order += rows
        return {"texts": texts, "rows": torch.tensor(order).argsort()}


class RerankerDevEvaluator:
    """Reranks, per dev query, the first CANDIDATES of BM25 among the passages of `dev_corpus`.

    A positive that BM25 did not retrieve counts as not found, as in production. `of_bm25` are the metrics of BM25's
    order.
    """

    def __init__(self, collection: Collection, training: TrainingSettings, collator: PairCollator,
                 device: torch.device):
        config, seed = training.encoder, training.seed
        corpus = dev_corpus(collection, training.dev_corpus_size, seed)
        found = BM25().index(corpus).search(collection.queries, CANDIDATES)
        # In random order, so that a model with constant scores does not profit from BM25's order.
        run = {query: random.Random(f"{seed} {query}").sample(list(hits), len(hits)) for query, hits in found.items()}
        self.collator, self.device, self.qrels, self.candidates = collator, device, collection.qrels, run
        self.pairs = [(config.query_prompt + collection.queries[query], config.passage_prompt + corpus[passage])
                      for query, hits in run.items() for passage in hits]
        self.of_bm25 = self.measure([np.array([found[query][passage] for passage in hits])
                                     for query, hits in run.items()])
        self.latest: list[np.ndarray] | None = None

    @torch.no_grad()
    def scores(self, model: RerankerModel) -> list[np.ndarray]:
        """Scores of each query's candidates, a list of float32 arrays."""
        model.eval()
        found = []
        for start in range(0, len(self.pairs), 256):
            batch = self.collator.lay_out(self.pairs[start:start + 256], limit=64)
            texts = [{name: tensor.to(self.device) for name, tensor in sub.items()} for sub in batch["texts"]]
            found.append(model.scores(texts, batch["rows"].to(self.device)).cpu().numpy())
        return np.split(np.concatenate(found), np.cumsum([len(hits) for hits in self.candidates.values()])[:-1])

    def evaluate(self, model: RerankerModel) -> dict[str, float]:
        """{"recall@10", "mrr@10", "spread"} of a model, see `measure`; keeps its scores in `latest`."""
        self.latest = self.scores(model)
        return self.measure(self.latest)

    def measure(self, scores: Sequence[np.ndarray]) -> dict[str, float]:
        """{"recall@10", "mrr@10", "spread"} of the candidates ranked by score. The spread is the standard deviation of
        a query's scores, averaged over queries.
        """
        rankings = {query: [candidates[place] for place in np.argsort(-found, kind="stable")]
                    for (query, candidates), found in zip(self.candidates.items(), scores, strict=True)}
        spread = float(np.mean([found.std() for found in scores if len(found)]))
        return dev_metrics(self.qrels, rankings) | {"spread": spread}


def training_warnings(before: Mapping | None, after: Mapping, of_bm25: Mapping) -> Iterator[str]:
    """Yield warnings about an unsuccessful training.

    `before` (or None) and `after` are results of RerankerDevEvaluator.evaluate, `of_bm25` is its attribute. The loss of
    a new head stays near that of random guessing for many steps and then drops quickly. With too few steps the model
    ranks worse than BM25, whose hits it reranks.
    """
    if after["spread"] < COLLAPSED:
        yield f"the scores have collapsed (spread {after['spread']:.4f} on dev): {CAUSES}"
    if before and after["mrr@10"] <= before["mrr@10"]:
        yield (f"training did not improve the reranker on dev (mrr@10 {after['mrr@10']:.4f}, before "
               f"{before['mrr@10']:.4f}): {CAUSES}")
    elif after["mrr@10"] < of_bm25["mrr@10"]:
        yield (f"the reranker ranks BM25's hits worse than BM25 itself (mrr@10 {after['mrr@10']:.4f} on dev, BM25 "
               f"{of_bm25['mrr@10']:.4f}): train with more steps (EPOCHS) or pairs, or start from a reranker "
               "(RERANKER_MODEL)")


def export_reranker(model: Any, tokenizer: Any, folder: Path, max_length: int, trusted: bool = False) -> float:
    """Write a finished reranker folder for transformers, sentence-transformers and FlagEmbedding, weights last.

    Returns the largest score difference of the parity check; raises UserError above 1e-4.
    """
    with staged_dir(folder, "reranker") as partial:
        # Identity: scores are logits, not probabilities.
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        model.save_pretrained(partial)
        tokenizer.padding_side, tokenizer.model_max_length = "right", max_length
        tokenizer.save_pretrained(partial)
        return check_parity(partial, max_length, trusted)


def check_parity(folder: Path, max_length: int, trusted: bool) -> float:
    """Largest difference between three libraries' scores of sample pairs, one truncated; UserError above 1e-4."""
    import sentence_transformers
    from FlagEmbedding import FlagReranker

    pairs, worst = [*PAIRS, (PAIRS[0][0], f"{PAIRS[0][1]} " * max_length)], 0.0
    ours = CrossEncoder(str(folder), trusted=trusted, max_length=max_length)
    expected = np.array([ours.pairs(query, [passage])[0] for query, passage in pairs])
    sentence = sentence_transformers.CrossEncoder(str(folder), device="cpu", trust_remote_code=trusted)
    flag = FlagReranker(str(folder), use_fp16=False, devices=["cpu"], max_length=max_length, trust_remote_code=trusted)
    for name, scores in (("sentence-transformers", sentence.predict(pairs)),
                         ("FlagEmbedding", flag.compute_score(pairs))):
        difference = float(np.abs(expected - np.asarray(scores)).max())
        if not difference <= 1e-4:
            raise UserError(f"parity check of {folder}: the scores of {name} differ by {difference:.5f}; the reranker "
                            "was not exported")
        worst = max(worst, difference)
    return worst
