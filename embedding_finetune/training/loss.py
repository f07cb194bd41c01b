"""Contrastive loss of FlagEmbedding, with deduplicated encoding, false-negative masking and GradCache."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from embedding_finetune.models.encoder import pool
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.multi_vector import maxsim, token_embeddings

SubBatches = Sequence[Mapping[str, Tensor]]  # see batches.sub_batches


def false_negatives(passage_keys: Tensor, positive_keys: Tensor, targets: Tensor) -> Tensor:
    """Mask of the candidates that are false negatives: bool [queries, passages].

    A passage (`passage_keys`, int64 [passages]) that is one of a query's positives (`positive_keys`, int64 [queries,
    any number], repetitions allowed) is masked, except the query's target (`targets`, [queries]).
    """
    positives = positive_keys.sort(dim=1).values
    keys = passage_keys.expand(len(positives), -1).contiguous()
    place = torch.searchsorted(positives, keys).clamp(max=positives.shape[1] - 1)
    return (positives.gather(1, place) == keys).scatter(1, targets.unsqueeze(1), False)


def dot(queries: Tensor, passages: Tensor) -> Tensor:
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
    `kl_div` or `margin_mse`: the squared difference between the margins (positive minus negative) of model and teacher
    (Hofstätter et al. 2020, arXiv 2010.02666), times the temperature, to match the scale of the cross entropy it is
    added to. `mrl_dims` are the Matryoshka dimensions, including the full one: the loss is
    their mean, as with FlagEmbedding's use_mrl (the sum in Kusupati et al. 2022, arXiv 2205.13147); () for the full
    dimension alone. `added` are the ids of multi_vector.special_token_ids, `longest` is the maximum length of a text in
    tokens.
    """

    def __init__(self, encoder: Any, *, dense: Iterable[nn.Module] = (), pooling: str = "cls",
                 normalize: bool = True, temperature: float = 0.02, architecture: str = "single_vector",
                 projection: Iterable[nn.Module] = (), added: Iterable[int] = (), longest: int = 0,
                 mask_false_negatives: bool = True, cross_device: bool = False, distillation: str | None = None,
                 mrl_dims: Iterable[int] = ()):
        super().__init__()
        self.encoder: Any = encoder
        self.dense, self.projection = DenseLayers(dense), DenseLayers(projection)
        self.pooling, self.normalize, self.temperature = pooling, normalize, temperature
        self.architecture, self.added, self.longest = architecture, list(added), longest
        self.mask_false_negatives, self.cross_device = mask_false_negatives, cross_device
        self.distillation, self.mrl_dims = distillation, tuple(mrl_dims) or (None,)
        self.takes_embeddings = "inputs_embeds" in inspect.signature(encoder.forward).parameters

    def forward(self, texts: SubBatches, rows: Tensor | None = None, passage_keys: Any = None,
                positive_keys: Any = None, teacher_scores: Tensor | None = None) -> Any:
        """{"loss": the loss of a batch}, or, without `rows`, the result of `pool`."""
        pooled = self.pool(texts)
        if rows is None:
            return pooled
        return {"loss": self.loss(pooled, rows, passage_keys, positive_keys, teacher_scores)}

    def pool(self, texts: SubBatches) -> Tensor:
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

    def views(self, pooled: Tensor) -> list:
        """Split the result of `pool` into a list of (embeddings, similarity function)."""
        size, views = pooled.shape[1], []
        if self.architecture != "single_vector":
            dim: Any = self.projection[-1].out_features if self.projection else self.encoder.config.hidden_size
            size -= self.longest * dim
            views = [(pooled[:, size:].unflatten(1, (self.longest, dim)), maxsim)]
        return views if self.architecture == "multi_vector" else [(pooled[:, :size], dot), *views]

    def score(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Mean similarity over the views: two results of `pool` -> [queries, passages]."""
        scores = [score(self._scaled(one), self._scaled(other))
                  for (one, score), (other, _) in zip(self.views(queries), self.views(passages))]
        return torch.stack(scores).mean(dim=0)

    def _scaled(self, embeddings):
        return normalize(embeddings, dim=-1) if self.normalize else embeddings

    def loss(self, pooled: Tensor, rows: Tensor, passage_keys: Tensor, positive_keys: Tensor,
             teacher_scores: Tensor | None = None) -> Tensor:
        """Mean cross entropy of each query's target among all passages, plus the distillation term, if any.

        `rows` (int64 [queries + passages]) are the rows of `pooled` with the queries and passages. Passages come in
        groups of equal size, the query's positive first. `teacher_scores` is [queries, group]. For the keys see
        `false_negatives`.
        """
        losses = []
        with torch.autocast(pooled.device.type, enabled=False):  # bfloat16 rounds a cosine to 0.004: 0.2, over 0.02
            views = self.views(pooled.float()[rows])
            for (embeddings, score), dim in itertools.product(views, self.mrl_dims):
                queries, passages = self._scaled(embeddings[..., :dim]).split([len(positive_keys), len(passage_keys)])
                losses.append(self._loss(score, queries, passages, passage_keys, positive_keys, teacher_scores))
            total: Any = sum(losses)
        return total / len(losses)

    def _loss(self, score, queries, passages, passage_keys, positive_keys, teacher):
        group = len(passages) // len(queries)
        gather = _gather if self.cross_device else lambda tensor: tensor
        all_queries, all_passages = gather(queries), gather(passages)
        scores = score(all_queries, all_passages) / self.temperature
        targets = torch.arange(len(all_queries), device=scores.device) * group
        if self.mask_false_negatives:
            known = false_negatives(gather(passage_keys), gather(positive_keys), targets)
            scores = scores.masked_fill(known, -torch.inf)
        loss = cross_entropy(scores, targets)
        if self.cross_device:  # same value; averaged over processes, the gradient of the joined batch
            loss = dist.get_world_size() * loss - (dist.get_world_size() - 1) * loss.detach()
        if teacher is None or self.distillation is None:
            return loss
        columns = torch.arange(len(passages), device=scores.device).view(len(queries), group)
        scores = (score(queries, passages) / self.temperature).gather(1, columns)
        if self.distillation == "kl_div":
            return loss - (scores.log_softmax(dim=-1) * teacher.softmax(dim=-1)).sum(dim=-1).mean()
        margins, teacher_margins = (values[:, 1:] - values[:, :1] for values in (scores, teacher))
        return loss + self.temperature * (margins - teacher_margins).square().mean()


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
    def replayed(self) -> Iterator[None]:
        """Context manager in which random numbers are drawn from this state; the state outside is kept."""
        devices = [torch.cuda.current_device()] if self.cuda is not None else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def grad_cache_step(model: ContrastiveModel, wrapped: Any, backward: Callable[[Tensor], Any], texts: SubBatches,
                    **labels: Tensor) -> Tensor:
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
    assert cache.grad is not None
    gradients = cache.grad.split([len(part) for part in pooled])
    for number, (sub, state, gradient) in enumerate(zip(texts, states, gradients, strict=True), start=1):
        last = number == len(texts)
        synchronization = wrapped.no_sync if hasattr(wrapped, "no_sync") and not last else contextlib.nullcontext
        with synchronization(), state.replayed():
            torch.sum(wrapped([sub]) * gradient).backward()
    return loss.detach()
