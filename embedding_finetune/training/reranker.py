"""What a reranker's training has in the place of an embedding model's: its loss, batches, dev look and export.

The loss is FlagEmbedding's: cross entropy of the positive among the passages of its query. The trainer, with its
checkpoints, log and resume, is the one of all trainings.
"""

import random

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.files import UserError, write_json
from embedding_finetune.models.batching import pad_batch, sub_batch_rows
from embedding_finetune.models.fast_layers import use_fast_dropout, use_fast_linear
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.cross_encoder import CrossEncoder, load_cross_encoder
from embedding_finetune.training.dev_evaluator import dev_corpus, dev_metrics

CANDIDATES = 30  # passages a dev query, by BM25
COLLAPSED = 0.01  # spread of a query's dev scores, in logits, below which they say nothing
CALIBRATION = "calibration.json"
CAUSES = "too high a learning rate, negatives that are too easy, or a sigmoid that is applied twice"
PAIRS = [("how far is the moon", "The Moon circles the Earth at a distance of 384,400 km."),
         ("what is a dot product?", "The Moon circles the Earth at a distance of 384,400 km."),
         ("what is a dot product?", "Multiply the numbers place by place, and add the products up.")]


class RerankerModel(nn.Module):
    """A sequence classifier (`encoder`) with one output, and the loss of its scores; fed by PairCollator."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.dense, self.projection = encoder, DenseLayers(), DenseLayers()

    def forward(self, texts, rows, group):
        """{"loss": mean cross entropy of each query's first passage among its `group`}."""
        scores = self.scores(texts, rows).view(-1, group)
        return {"loss": nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long,
                                                                        device=scores.device))}

    def scores(self, texts, rows):
        """Scores of the pairs of sub-batches `texts`, of which `rows` are the places: float32 (pairs,)."""
        return torch.cat([self.encoder(**sub).logits[:, 0].float() for sub in texts])[rows]

    def gradient_checkpointing_enable(self, **options):
        self.encoder.gradient_checkpointing_enable(**options)


def load_reranker_model(args, config, new_head):
    """Tokenizer and RerankerModel of the base that the training begins with, in float32."""
    tokenizer, model = load_cross_encoder(config.name, config.trusted, new_head)
    if args.device.type == "cpu":
        use_fast_dropout(model)
        if not args.bf16:  # with it, oneDNN multiplies in bfloat16
            use_fast_linear(model)
    return tokenizer, RerankerModel(model)


class PairCollator:
    """Items of a TrainingSet to the arguments of RerankerModel.forward: each query with each of its passages."""

    def __init__(self, tokenizer, config, call_cost):
        self.tokenizer, self.call_cost = tokenizer, call_cost
        self.max_length = config.query_max_len + config.passage_max_len

    def __call__(self, items):
        pairs = [(item["query"], passage) for item in items for passage in item["passages"]]
        return self.lay_out(pairs) | {"group": len(items[0]["passages"])}

    def lay_out(self, pairs, limit=None):
        """Length-sorted sub-batches of tokenised pairs, and the place of each pair in them."""
        tokens = self.tokenizer(*map(list, zip(*pairs)), truncation="only_second", max_length=self.max_length)
        texts, order = [], []
        for rows in sub_batch_rows([len(ids) for ids in tokens["input_ids"]], self.call_cost, limit):
            some = {name: [values[row] for row in rows] for name, values in tokens.items()}
            texts.append(pad_batch(self.tokenizer, some))
            order += rows
        return {"texts": texts, "rows": torch.tensor(order).argsort()}


class RerankerDevEvaluator:
    """Dev queries, each with its first CANDIDATES by BM25 among the dev positives and a seeded sample of the corpus.

    A positive that BM25 has not found stays lost, as in use. `of_bm25` is what `measure` says of BM25's own order.
    """

    def __init__(self, collection, size, collator, config, seed, device):
        corpus = dev_corpus(collection, size, seed)
        found = BM25().index(corpus).search(collection.queries, CANDIDATES)
        # In a random order: scores that are all the same must not profit from BM25's.
        run = {query: random.Random(f"{seed} {query}").sample(list(own), len(own)) for query, own in found.items()}
        self.collator, self.device, self.qrels, self.candidates = collator, device, collection.qrels, run
        self.pairs = [(config.query_prompt + collection.queries[query], config.passage_prompt + corpus[passage])
                      for query, own in run.items() for passage in own]
        self.right = [np.isin(own, collection.positives(query)) for query, own in run.items()]
        self.of_bm25 = self.measure([np.array([found[query][passage] for passage in own])
                                     for query, own in run.items()])
        self.latest = None

    @torch.no_grad()
    def scores(self, model):
        """The scores of each query's candidates, a list of float32 arrays."""
        model.eval()
        found = []
        for start in range(0, len(self.pairs), 256):
            batch = self.collator.lay_out(self.pairs[start:start + 256], limit=64)
            texts = [{name: tensor.to(self.device) for name, tensor in sub.items()} for sub in batch["texts"]]
            found.append(model.scores(texts, batch["rows"].to(self.device)).cpu().numpy())
        return np.split(np.concatenate(found), np.cumsum([len(right) for right in self.right])[:-1])

    def evaluate(self, model):
        """{"recall@10", "mrr@10", "spread"} of a model, see `measure`; its scores are kept as the latest."""
        self.latest = self.scores(model)
        return self.measure(self.latest)

    def measure(self, scores):
        """{"recall@10", "mrr@10", "spread"}: of the candidates in the order of their scores; the spread is the mean
        over queries of the scores' standard deviation."""
        rankings = {query: [own[place] for place in np.argsort(-found, kind="stable")]
                    for (query, own), found in zip(self.candidates.items(), scores, strict=True)}
        spread = float(np.mean([own.std() for own in scores if len(own)]))
        return dev_metrics(self.qrels, rankings) | {"spread": spread}


def calibrate(scores, right):
    """Platt's scaling (1999): {"scale", "bias", "log_loss", "log_loss_before", "pairs"}, so that sigmoid(scale * score
    + bias) is the probability that a candidate is right; `before` is that of sigmoid(score)."""
    scores, right = np.concatenate(scores).astype(np.float64), np.concatenate(right)
    count = int(right.sum()), int((~right).sum())
    target = np.where(right, (count[0] + 1) / (count[0] + 2), 1 / (count[1] + 2))  # Platt's, against certainty

    def loss(parameters, target=target):
        logits = parameters[0] * scores + parameters[1]
        return np.mean(np.logaddexp(0, logits) - target * logits)

    scale, bias = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"maxiter": 2000}).x
    return {"scale": float(scale), "bias": float(bias), "log_loss": float(loss([scale, bias], right)),
            "log_loss_before": float(loss([1.0, 0.0], right)), "pairs": len(scores)}


def training_warnings(before, after, of_bm25):
    """Sentences on a training that went wrong; `before` and `after` are what RerankDev.evaluate returned, `of_bm25` is
    its own.

    A new head learns nothing for many steps, and then all at once: where these did not suffice, its loss is still
    nearly that of guessing, and what comes out orders worse than BM25, whose hits it was given.
    """
    if after["spread"] < COLLAPSED:
        yield f"the scores have collapsed (spread {after['spread']:.4f} on dev): {CAUSES}"
    if before and after["mrr@10"] <= before["mrr@10"]:
        yield (f"training has not improved it on dev (mrr@10 {after['mrr@10']:.4f}, before {before['mrr@10']:.4f}): "
               f"{CAUSES}")
    elif after["mrr@10"] < of_bm25["mrr@10"]:
        yield (f"it orders BM25's hits worse than BM25 (mrr@10 {after['mrr@10']:.4f} on dev, BM25's "
               f"{of_bm25['mrr@10']:.4f}): give it more steps (EPOCHS) or pairs, or begin with a reranker (RERANKER)")


def export_reranker(model, tokenizer, folder, max_length, calibration, trusted=False):
    """Write a finished folder that transformers, sentence-transformers and FlagEmbedding score alike, weights last.

    Returns the largest difference of the check; raises UserError above 1e-4.
    """
    with staged_dir(folder, "reranker") as partial:
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}  # logits, not 0 to 1
        model.save_pretrained(partial)
        tokenizer.padding_side, tokenizer.model_max_length = "right", max_length
        tokenizer.save_pretrained(partial)
        if calibration:
            write_json(partial / CALIBRATION, calibration)
        return check_parity(partial, max_length, trusted)


def check_parity(folder, max_length, trusted):
    """The largest difference between three libraries' scores of some pairs, one of them cut; UserError above 1e-4."""
    import sentence_transformers
    from FlagEmbedding import FlagReranker

    pairs = [*PAIRS, (PAIRS[0][0], f"{PAIRS[0][1]} " * max_length)]
    ours = CrossEncoder(str(folder), trusted=trusted, max_length=max_length)
    options = {"use_fp16": False, "devices": ["cpu"], "max_length": max_length, "trust_remote_code": trusted}
    ours = np.array([ours.pairs(query, [passage])[0] for query, passage in pairs])
    others = {
        "sentence-transformers": sentence_transformers.CrossEncoder(
            str(folder), device="cpu", trust_remote_code=trusted).predict(pairs, show_progress_bar=False),
        "FlagEmbedding": FlagReranker(str(folder), **options).compute_score([list(pair) for pair in pairs])}
    worst = 0.0
    for name, scores in others.items():
        difference = float(np.abs(ours - np.asarray(scores)).max())
        if not difference <= 1e-4:
            raise UserError(f"parity check of {folder}: {name} gives other scores (by {difference:.5f}); the reranker "
                            "was not exported")
        worst = max(worst, difference)
    return worst
