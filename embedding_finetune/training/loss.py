"""Contrastive loss of FlagEmbedding, with deduplicated encoding, false-negative masking and GradCache."""

import contextlib
import inspect
import itertools

import torch
import torch.distributed as dist
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderModel
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from embedding_finetune.models.encoder import pool
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.multi_vector import maxsim, token_embeddings


def false_negatives(passage_keys, positive_keys, targets):
    """Mask of the candidates that are false negatives: bool [queries, passages].

    A passage (`passage_keys`, int64 [passages]) that is one of a query's positives (`positive_keys`, int64 [queries,
    any number], repetitions allowed) is masked, except the query's target (`targets`, [queries]).
    """
    positives = positive_keys.sort(dim=1).values
    keys = passage_keys.expand(len(positives), -1).contiguous()
    place = torch.searchsorted(positives, keys).clamp(max=positives.shape[1] - 1)
    return (positives.gather(1, place) == keys).scatter(1, targets.unsqueeze(1), False)


def dot(queries, passages):
    """Inner products: [queries, dim], [passages, dim] -> [queries, passages]."""
    return queries @ passages.T


class ContrastiveModel(nn.Module):
    """An encoder with pooling and optional Dense layers, and its contrastive loss on batches of `batches.Collator`.

    The loss is FlagEmbedding's (BiEncoderOnlyEmbedderModel), with three deviations. With one process and without false
    negatives, none of them changes its value:

    - Each distinct text is encoded once, in length-sorted sub-batches.
    - `mask_false_negatives` masks the positives of a query among its negatives. The distillation term of `kl_div` keeps
      them, since the teacher has scored them.
    - With `cross_device` the gradient equals that of one process on the joined batch. FlagEmbedding computes the whole
      loss on each of W processes, while gradients reach only the process's own embeddings, so averaging over processes
      leaves 1/W of the gradient. Adam is invariant to this scale; gradient clipping and an added distillation term are
      not.

    `architecture` is `single_vector` (one embedding per text, inner product), `multi_vector` (one embedding per token,
    MaxSim, see models.multi_vector, through `projection` if given) or `both` (mean of the two losses, as in BGE-M3,
    Chen et al. 2024, arXiv 2402.03216, without its sparse loss and self-distillation). `distillation` is None,
    `kl_div`, `m3_kd_loss` or `margin_mse`. `margin_mse` is the squared difference between the margins (positive minus
    negative) of model and teacher (Hofstätter et al. 2020, arXiv 2010.02666), times the temperature, to match the scale
    of the cross entropy it is added to. `mrl_dims` are the Matryoshka dimensions, including the full one: the loss is
    their mean, as with FlagEmbedding's use_mrl (the sum in Kusupati et al. 2022, arXiv 2205.13147); () for the full
    dimension alone. `added` are the ids of multi_vector.special_token_ids, `longest` is the maximum length of a text in
    tokens.
    """

    def __init__(self, encoder, *, dense=(), pooling="cls", normalize=True, temperature=0.02,
                 architecture="single_vector", projection=(), added=(), longest=0, mask_false_negatives=True,
                 cross_device=False, distillation=None, mrl_dims=()):
        super().__init__()
        self.encoder, self.dense, self.projection = encoder, DenseLayers(dense), DenseLayers(projection)
        self.pooling, self.normalize, self.temperature = pooling, normalize, temperature
        self.architecture, self.added, self.longest = architecture, list(added), longest
        self.mask_false_negatives, self.cross_device = mask_false_negatives, cross_device
        self.distillation, self.mrl_dims = distillation, tuple(mrl_dims) or (None,)
        self.takes_embeddings = "inputs_embeds" in inspect.signature(encoder.forward).parameters

    def forward(self, texts, rows=None, passage_keys=None, positive_keys=None, teacher_scores=None):
        """{"loss": the loss of a batch}, or, without `rows`, the result of `pool`."""
        pooled = self.pool(texts)
        if rows is None:
            return pooled
        return {"loss": self.loss(pooled, rows, passage_keys, positive_keys, teacher_scores)}

    def pool(self, texts):
        """Embeddings of the texts of the sub-batches, in their order: [texts, width], not normalized.

        With `single_vector` a row is one embedding. With `multi_vector` it holds the embeddings of all tokens,
        flattened and zero-padded to longest * dim values. With `both` it is the concatenation of the two.

        The sub-batches must be padded on the right (see batches.sub_batches): with `inputs_embeds`, models number
        positions from the left.
        """
        inputs = [{"input_ids": sub["input_ids"]} for sub in texts]
        if self.takes_embeddings:  # one lookup for all: each lookup's gradient is as large as the whole matrix
            embedded = self.encoder.get_input_embeddings()(torch.cat([sub["input_ids"].flatten() for sub in texts]))
            embedded = embedded.split([sub["input_ids"].numel() for sub in texts])
            inputs = [{"inputs_embeds": vectors.view(*sub["input_ids"].shape, -1)}
                      for sub, vectors in zip(texts, embedded)]
        pooled = []
        for sub, given in zip(texts, inputs, strict=True):
            hidden = self.encoder(**given, attention_mask=sub["attention_mask"]).last_hidden_state
            views = []
            if self.architecture != "multi_vector":
                views.append(self.dense(pool(hidden, sub["attention_mask"], self.pooling)))
            if self.architecture != "single_vector":
                tokens = token_embeddings(hidden, sub, self.added, self.projection)
                views.append(torch.nn.functional.pad(tokens, (0, 0, 0, self.longest - tokens.shape[1])).flatten(1))
            pooled.append(torch.cat(views, dim=1))
        return torch.cat(pooled)

    def views(self, pooled):
        """Split the result of `pool` into a list of (embeddings, similarity function)."""
        size, views = pooled.shape[1], []
        if self.architecture != "single_vector":
            dim = self.projection[-1].out_features if self.projection else self.encoder.config.hidden_size
            size -= self.longest * dim
            views = [(pooled[:, size:].unflatten(1, (self.longest, dim)), maxsim)]
        return views if self.architecture == "multi_vector" else [(pooled[:, :size], dot), *views]

    def score(self, queries, passages):
        """Mean similarity over the views: two results of `pool` -> [queries, passages]."""
        scores = [score(*((normalize(vectors, dim=-1) if self.normalize else vectors) for vectors in (one, other)))
                  for (one, score), (other, _) in zip(self.views(queries), self.views(passages))]
        return sum(scores) / len(scores)

    def loss(self, pooled, rows, passage_keys, positive_keys, teacher_scores=None):
        """Mean cross entropy of each query's target among all passages, plus the distillation term, if any.

        `rows` (int64 [queries + passages]) are the rows of `pooled` with the queries and passages. Passages come in
        groups of equal size, the query's positive first. `teacher_scores` is [queries, group]. For the keys see
        `false_negatives`.
        """
        losses = []
        with torch.autocast(pooled.device.type, enabled=False):  # bfloat16 rounds a cosine to 0.004: 0.2, over 0.02
            views = self.views(pooled.float()[rows])
            for (embeddings, score), dim in itertools.product(views, self.mrl_dims):
                vectors = normalize(embeddings[..., :dim], dim=-1) if self.normalize else embeddings[..., :dim]
                queries, passages = vectors.split([len(positive_keys), len(passage_keys)])
                losses.append(self._loss(score, queries, passages, passage_keys, positive_keys, teacher_scores))
        return sum(losses) / len(losses)

    def _loss(self, score, queries, passages, passage_keys, positive_keys, teacher):
        group = len(passages) // len(queries)
        gather = _gather if self.cross_device else lambda tensor: tensor
        all_queries, all_passages = gather(queries), gather(passages)
        scores = score(all_queries, all_passages) / self.temperature
        targets = torch.arange(len(all_queries), device=scores.device) * group
        if self.mask_false_negatives:
            known = false_negatives(gather(passage_keys), gather(positive_keys), targets)
            scores = scores.masked_fill(known, -torch.inf)
        if teacher is not None and self.distillation == "m3_kd_loss":
            loss = AbsEmbedderModel.distill_loss("m3_kd_loss", gather(teacher.softmax(dim=-1)), scores, group)
        else:
            loss = cross_entropy(scores, targets)
        if self.cross_device:  # same value; averaged over processes, the gradient of the joined batch
            loss = dist.get_world_size() * loss - (dist.get_world_size() - 1) * loss.detach()
        if teacher is not None and self.distillation != "m3_kd_loss":
            columns = torch.arange(len(passages), device=scores.device).view(len(queries), group)
            scores = (score(queries, passages) / self.temperature).gather(1, columns)
            if self.distillation == "kl_div":
                loss = loss + AbsEmbedderModel.distill_loss("kl_div", teacher.softmax(dim=-1), scores, group)
            else:
                margins, teacher_margins = (values[:, 1:] - values[:, :1] for values in (scores, teacher))
                loss = loss + self.temperature * (margins - teacher_margins).square().mean()
        return loss


def _gather(tensor):
    """Concatenate the tensors of all processes; gradients flow only into this process's part."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


class RandomState:
    """Snapshot of the random state: both passes of GradCache must sample the same dropout masks."""

    def __init__(self):
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @contextlib.contextmanager
    def replayed(self):
        devices = [torch.cuda.current_device()] if self.cuda is not None else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def grad_cache_step(model, wrapped, backward, texts, **labels):
    """Accumulate the gradients of a batch in the memory of one sub-batch; returns the detached loss.

    GradCache (Gao et al. 2021, arXiv 2101.06983): embed without a graph, compute the gradient of the loss with respect
    to the embeddings, then embed each sub-batch again and backpropagate its part of that gradient. `wrapped` is the
    model wrapped in DistributedDataParallel, or the model itself; gradients are synchronized once, with the last
    sub-batch. `backward(loss)` runs the backward pass of the loss and may scale it.
    """
    states, pooled = [], []
    with torch.no_grad():
        for sub in texts:
            states.append(RandomState())
            pooled.append(model([sub]))
    cache = torch.cat(pooled).requires_grad_()
    loss = model.loss(cache, **labels)
    backward(loss)
    gradients = cache.grad.split([len(part) for part in pooled])
    for number, (sub, state, gradient) in enumerate(zip(texts, states, gradients, strict=True), start=1):
        last = number == len(texts)
        synchronization = wrapped.no_sync if hasattr(wrapped, "no_sync") and not last else contextlib.nullcontext
        with synchronization(), state.replayed():
            torch.sum(wrapped([sub]) * gradient).backward()
    return loss.detach()
