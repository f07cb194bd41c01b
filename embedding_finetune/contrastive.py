"""The contrastive loss over a batch: FlagEmbedding's, without its waste, its false negatives and its memory limit."""

import contextlib

import torch
from FlagEmbedding.abc.finetune.embedder.AbsModeling import EmbedderOutput
from FlagEmbedding.finetune.embedder.encoder_only.base import BiEncoderOnlyEmbedderModel
from torch.nn.functional import normalize


def false_negatives(passage_keys, positive_keys, targets):
    """Which candidates must not count as negatives: bool [queries, passages].

    A passage (`passage_keys`, int64 [passages]) that is among a query's positives (`positive_keys`, int64 [queries, any
    number, repetitions allowed]) is no negative of it, except that the query's target (`targets`, [queries]) stays.
    """
    mask = torch.stack([torch.isin(passage_keys, positives) for positives in positive_keys])
    return mask.scatter(1, targets.unsqueeze(1), False)


class ContrastiveModel(BiEncoderOnlyEmbedderModel):
    """FlagEmbedding's bi-encoder, fed with batches of `batches.Collator`.

    Three deviations, each without effect on the mathematics of a plain run:

    - each distinct text is encoded once, in length-sorted sub-batches;
    - `mask_false_negatives` takes positives of a query out of its negatives (the distillation term of `kl_div` keeps
      them: there the teacher has judged them);
    - with `negatives_cross_device` the gradient equals that of one process on the joined batch. FlagEmbedding computes
      the whole loss on each of W processes while gradients reach only the own embeddings, so that averaging over
      processes leaves 1/W of it (unnoticed by Adam, but not by gradient clipping nor beside a distillation term).
    """

    def __init__(self, *args, mask_false_negatives=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask_false_negatives = mask_false_negatives

    def forward(self, texts, rows=None, passage_keys=None, positive_keys=None, teacher_scores=None):
        """The loss of a batch; without `rows` the texts' pooled embeddings [texts, dim], not normalised."""
        pooled = self.pool(texts)
        if rows is None:
            return pooled
        return EmbedderOutput(loss=self.contrastive_loss(pooled, rows, passage_keys, positive_keys, teacher_scores))

    def pool(self, texts):
        """One embedding for each text of the sub-batches, in their order: [texts, dim]."""
        # One look-up for all sub-batches: each look-up's gradient is as large as the whole vocabulary.
        lookup = self.model.get_input_embeddings()
        embedded = lookup(torch.cat([sub["input_ids"].flatten() for sub in texts]))
        embedded = embedded.split([sub["input_ids"].numel() for sub in texts])
        pooled = []
        for sub, vectors in zip(texts, embedded, strict=True):
            mask = sub["attention_mask"]
            hidden = self.model(inputs_embeds=vectors.view(*mask.shape, -1), attention_mask=mask).last_hidden_state
            pooled.append(self._sentence_embedding(hidden, mask))
        return torch.cat(pooled)

    def contrastive_loss(self, pooled, rows, passage_keys, positive_keys, teacher_scores=None):
        """Mean cross entropy of each query's target among all passages, plus the distillation term if there is a teacher.

        `rows` int64 [queries + passages] names the rows of `pooled` that hold queries and passages; passages come in
        groups of equal size, the query's positive first. `teacher_scores` [queries, group]. See `false_negatives`.
        """
        if teacher_scores is not None:
            teacher_scores = teacher_scores.softmax(dim=-1)
        losses = []
        with torch.autocast(pooled.device.type, enabled=False):  # bfloat16 rounds a cosine to 0.004: a fifth, over a temperature of 0.02
            embeddings = pooled.float()[rows]
            for dim in self.mrl_dims if self.use_mrl else [None]:
                vectors = normalize(embeddings[:, :dim], dim=-1) if self.normalize_embeddings else embeddings[:, :dim]
                queries, passages = vectors.split([len(positive_keys), len(passage_keys)])
                losses.append(self._loss(queries, passages, passage_keys, positive_keys, teacher_scores))
        return sum(losses) / len(losses)

    def _loss(self, queries, passages, passage_keys, positive_keys, teacher):
        group = len(passages) // len(queries)
        distill = teacher is not None and self.kd_loss_type
        gather = self._dist_gather_tensor if self.negatives_cross_device else lambda tensor: tensor
        all_queries, all_passages = gather(queries), gather(passages)
        scores = self.compute_score(all_queries, all_passages)
        targets = torch.arange(len(all_queries), device=scores.device) * group
        if self.mask_false_negatives:
            scores = scores.masked_fill(false_negatives(gather(passage_keys), gather(positive_keys), targets), -torch.inf)
        if distill == "m3_kd_loss":
            loss = self.distill_loss(distill, gather(teacher), scores, group)
        else:
            loss = self.compute_loss(scores, targets)
        if self.negatives_cross_device:  # same value, the gradient of the joined batch once averaged over processes
            loss = self.world_size * loss - (self.world_size - 1) * loss.detach()
        if distill == "kl_div":
            loss = loss + self.distill_loss(distill, teacher, self.compute_local_score(queries, passages), group)
        return loss


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
    loss = model.contrastive_loss(cache, **labels)
    backward(loss)
    gradients = cache.grad.split([len(part) for part in pooled])
    for number, (sub, state, gradient) in enumerate(zip(texts, states, gradients, strict=True), start=1):
        last = number == len(texts)
        waiting = wrapped.no_sync if hasattr(wrapped, "no_sync") and not last else contextlib.nullcontext
        with waiting(), state.replayed():
            torch.sum(wrapped([sub]) * gradient).backward()
    return loss.detach()
