"""The contrastive loss over a batch: FlagEmbedding's, without its waste, its false negatives and its memory limit."""

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
    """Which candidates must not count as negatives: bool [queries, passages].

    A passage (`passage_keys`, int64 [passages]) that is among a query's positives (`positive_keys`, int64 [queries, any
    number, repetitions allowed]) is no negative of it, except that the query's target (`targets`, [queries]) stays.
    """
    own = positive_keys.sort(dim=1).values
    keys = passage_keys.expand(len(own), -1).contiguous()
    place = torch.searchsorted(own, keys).clamp(max=own.shape[1] - 1)
    return (own.gather(1, place) == keys).scatter(1, targets.unsqueeze(1), False)


def dot(queries, passages):
    """Every query against every passage by inner product: [queries, dim], [passages, dim] -> [queries, passages]."""
    return queries @ passages.T


class ContrastiveModel(nn.Module):
    """An encoder with pooling and Dense layers, if any, and the loss of its texts' vectors; fed with batches of
    `batches.Collator`.

    The loss is FlagEmbedding's (BiEncoderOnlyEmbedderModel), with three deviations that do nothing to the mathematics
    of a plain run:

    - each distinct text is encoded once, in length-sorted sub-batches;
    - `mask_false_negatives` takes positives of a query out of its negatives (the distillation term of `kl_div` keeps
      them: there the teacher has judged them);
    - with `cross_device` the gradient equals that of one process on the joined batch. FlagEmbedding computes the whole
      loss on each of W processes while gradients reach only the own embeddings, so that averaging over processes leaves
      1/W of it (unnoticed by Adam, but not by gradient clipping nor beside a distillation term).

    `architecture` says what is compared: `dense`, one vector a text, by inner product; `late`, the vectors of all
    tokens, by MaxSim (see retrieval.tokens), through `projection` if there is one; `both`, with the mean of both
    losses, as BGE-M3 was trained (Chen et al. 2024, arXiv 2402.03216) but for its sparse third and its teaching of each
    by all. `distillation` is None, `kl_div`, `m3_kd_loss` or `margin_mse`: the squared difference between model and
    teacher in how far each negative is behind the positive (Hofstätter et al. 2020, arXiv 2010.02666), times the
    temperature, so that it weighs as the cross entropy does that it is added to. `mrl_dims` are the sizes of
    Matryoshka's truncated vectors, the whole one's among them: the loss is the mean over them, as under FlagEmbedding's
    use_mrl (Kusupati et al. 2022, arXiv 2205.13147, have the sum); () for whole ones alone. `added` are the ids of
    tokens.added_ids, `longest` is the length of the longest text.
    """

    def __init__(self, encoder, *, dense=(), pooling="cls", normalize=True, temperature=0.02, architecture="single_vector",
                 projection=(), added=(), longest=0, mask_false_negatives=True, cross_device=False, distillation=None,
                 mrl_dims=()):
        super().__init__()
        self.encoder, self.dense, self.projection = encoder, DenseLayers(dense), DenseLayers(projection)
        self.pooling, self.normalize, self.temperature = pooling, normalize, temperature
        self.architecture, self.added, self.longest = architecture, list(added), longest
        self.mask_false_negatives, self.cross_device = mask_false_negatives, cross_device
        self.distillation, self.mrl_dims = distillation, tuple(mrl_dims) or (None,)
        self.takes_embeddings = "inputs_embeds" in inspect.signature(encoder.forward).parameters

    def forward(self, texts, rows=None, passage_keys=None, positive_keys=None, teacher_scores=None):
        """{"loss": the loss of a batch}; without `rows` what `pool` returns."""
        pooled = self.pool(texts)
        if rows is None:
            return pooled
        return {"loss": self.loss(pooled, rows, passage_keys, positive_keys, teacher_scores)}

    def gradient_checkpointing_enable(self, **options):
        self.encoder.gradient_checkpointing_enable(**options)

    def pool(self, texts):
        """What is compared of each text of the sub-batches, in their order: [texts, dim], not normalised.

        One embedding; with `late` one a token in a row, zeros after the last, longest * dim numbers in all; with `both`
        the one, and then those.

        The sub-batches are padded on the right (see batches.sub_batches), as models that number the positions of
        embeddings expect it.
        """
        inputs = [{"input_ids": sub["input_ids"]} for sub in texts]
        if self.takes_embeddings:  # one look-up for all: each look-up's gradient is as large as the whole vocabulary
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
        """What `pool` returned, as it is compared: pairs of vectors and of the function that compares them."""
        of_tokens, size = self.architecture != "single_vector", pooled.shape[1]
        if of_tokens:
            dim = self.projection[-1].out_features if self.projection else self.encoder.config.hidden_size
            size -= self.longest * dim
        dense = [(pooled[:, :size], dot)] * (self.architecture != "multi_vector")
        return dense + [(pooled[:, size:].unflatten(1, (self.longest, dim)), maxsim) for _ in range(of_tokens)]

    def score(self, queries, passages):
        """Every query against every passage, by the mean of the views: two results of `pool` -> [queries, passages]."""
        scores = [score(*((normalize(vectors, dim=-1) if self.normalize else vectors) for vectors in (one, other)))
                  for (one, score), (other, _) in zip(self.views(queries), self.views(passages))]
        return sum(scores) / len(scores)

    def loss(self, pooled, rows, passage_keys, positive_keys, teacher_scores=None):
        """Mean cross entropy of each query's target among all passages, plus the distillation term if there is a
        teacher.

        `rows` int64 [queries + passages] names the rows of `pooled` that hold queries and passages; passages come in
        groups of equal size, the query's positive first. `teacher_scores` [queries, group]. See `false_negatives`.
        """
        losses = []
        with torch.autocast(pooled.device.type, enabled=False):  # bfloat16 rounds a cosine to 0.004: a fifth, over 0.02
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
        if self.cross_device:  # same value, the gradient of the joined batch once averaged over processes
            loss = dist.get_world_size() * loss - (dist.get_world_size() - 1) * loss.detach()
        if teacher is not None and self.distillation != "m3_kd_loss":
            columns = torch.arange(len(passages), device=scores.device).view(len(queries), group)
            scores = (score(queries, passages) / self.temperature).gather(1, columns)
            if self.distillation == "kl_div":
                loss = loss + AbsEmbedderModel.distill_loss("kl_div", teacher.softmax(dim=-1), scores, group)
            else:
                behind, taught = (own[:, 1:] - own[:, :1] for own in (scores, teacher))
                loss = loss + self.temperature * (behind - taught).square().mean()
        return loss


def _gather(tensor):
    """The tensors of all processes, one after the other; gradients reach the own part only."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


class RandomState:
    """The random state of the moment, to be replayed: both passes of GradCache must draw the same dropout masks."""

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
    """Accumulate a batch's gradients in the memory of one sub-batch; returns the (detached) loss.

    GradCache (Gao et al. 2021, arXiv 2101.06983): embed without a graph, take the loss's gradient with respect to the
    embeddings, then embed each sub-batch again and push its share of that gradient through. `wrapped` is the model
    as wrapped by DistributedDataParallel (or the model itself): gradients are exchanged once, with the last sub-batch.
    `backward(loss)` runs the loss's backward pass (and may scale it).
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
        waiting = wrapped.no_sync if hasattr(wrapped, "no_sync") and not last else contextlib.nullcontext
        with waiting(), state.replayed():
            torch.sum(wrapped([sub]) * gradient).backward()
    return loss.detach()
