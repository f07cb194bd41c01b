"""The loss against FlagEmbedding's and against hand-computed values; GradCache against plain gradients."""

import math

import pytest
import torch
from batches_for_tests import batch_of, gradients, load
from FlagEmbedding.finetune.embedder.encoder_only.base import BiEncoderOnlyEmbedderModel
from forked import run_forked
from several_processes import CASES, JOINED, case_model, together
from tiny import tiny_bert, tiny_xlmr
from tiny_training import passages
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.models.multi_vector import new_projection
from embedding_finetune.training.loss import ContrastiveModel, false_negatives, grad_cache_step


@pytest.mark.parametrize("queries, group, width", [(1, 1, 1), (5, 3, 4), (17, 8, 1000)])
def test_false_negatives_are_those_of_a_plain_loop(queries, group, width):
    torch.manual_seed(0)
    low, high = -2**63, 2**63 - 1  # keys are hashes: any number of 64 bits
    known = torch.cat([torch.tensor([low, high, 0, -1]), torch.randint(low, high, (20,))])
    passages = known[torch.randint(len(known), (queries * group,))]
    positives = torch.cat([known[torch.randint(len(known), (queries, 1))],
                           torch.randint(low, high, (queries, width - 1))], dim=1)
    positives[:, 0::7] = known[torch.randint(len(known), positives[:, 0::7].shape)]
    targets = torch.arange(queries) * group
    expected = [[key in own and place != target for place, key in enumerate(passages.tolist())]
                for own, target in zip(positives.tolist(), targets.tolist(), strict=True)]
    assert false_negatives(passages, positives, targets).tolist() == expected
    assert queries == 1 or sum(map(sum, expected)) > 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest result."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def test_false_negatives_take_no_cube_of_memory():
    with Largest() as largest:
        false_negatives(torch.arange(256), torch.arange(64 * 200).view(64, 200), torch.arange(64) * 4)
    assert largest.elements <= 64 * 256


def test_masked_loss_by_hand(tiny):
    # One-dimensional "embeddings", so that scores are products: query 0 = 1, query 1 = 2; passages 1, 2, 3, 4.
    model = load(tiny / "bert", temperature=1.0, normalize=False)
    pooled = torch.tensor([[1.0], [2.0], [1.0], [2.0], [3.0], [4.0]])
    labels = {"rows": torch.arange(6), "passage_keys": torch.tensor([5, 6, 7, 5]),
              "positive_keys": torch.tensor([[5], [7]])}
    # Query 0: target 1 against 2, 3 (the 4 is its own positive again); query 1: target 6 against 2, 4, 8.
    expected = (-1 + math.log(math.e + math.e**2 + math.e**3)
                - 6 + math.log(math.e**2 + math.e**4 + math.e**6 + math.e**8)) / 2
    assert model.loss(pooled, **labels).item() == pytest.approx(expected, rel=1e-6)
    model.mask_false_negatives = False
    unmasked = (-1 + math.log(math.e + math.e**2 + math.e**3 + math.e**4)
                - 6 + math.log(math.e**2 + math.e**4 + math.e**6 + math.e**8)) / 2
    assert model.loss(pooled, **labels).item() == pytest.approx(unmasked, rel=1e-6)


@pytest.mark.parametrize("teacher", [None, "kl_div"])
@pytest.mark.parametrize("mrl", [(), (8, 32)])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_loss_equals_flagembedding(tiny, teacher, mrl, pooling):
    batch, features = batch_of(tiny, scores=teacher is not None)
    ours = load(tiny / "bert", pooling=pooling, mask_false_negatives=False, distillation=teacher, mrl_dims=mrl).train()
    theirs = BiEncoderOnlyEmbedderModel(
        ours.encoder, temperature=0.05, normalize_embeddings=True, sentence_pooling_method=pooling,
        kd_loss_type=teacher or "kl_div", use_mrl=bool(mrl), mrl_dims=list(mrl)).train()
    expected = theirs(**features).loss
    assert ours(**batch)["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_margin_of_a_teacher_by_hand(tiny):
    """Two queries with a positive and two negatives each: both terms by a plain loop; none where the margins agree."""
    torch.manual_seed(5)
    pooled, teacher = torch.randn(8, 4), torch.randn(2, 3)
    labels = {"rows": torch.arange(8), "passage_keys": torch.arange(6), "positive_keys": torch.tensor([[0], [3]])}
    model = load(tiny / "bert", distillation="margin_mse", temperature=0.5, normalize=False)
    scores = (pooled[:2] @ pooled[2:].T / 0.5).tolist()
    alone = sum(math.log(sum(map(math.exp, own))) - own[3 * query] for query, own in enumerate(scores)) / 2
    apart = [(own[3 * query + place] - own[3 * query]) - (teacher[query, place] - teacher[query, 0]).item()
             for query, own in enumerate(scores) for place in (1, 2)]
    expected = alone + 0.5 * sum(value**2 for value in apart) / 4
    assert model.loss(pooled, **labels, teacher_scores=teacher).item() == pytest.approx(expected, rel=1e-5)
    agrees = torch.tensor([own[3 * query:3 * query + 3] for query, own in enumerate(scores)]) + 7
    assert model.loss(pooled, **labels, teacher_scores=agrees).item() == pytest.approx(alone, rel=1e-5)


class IdsOnly(torch.nn.Module):
    """An encoder whose forward takes token ids and no embeddings, as those of some models on the hub."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("make", [tiny_bert, tiny_xlmr])
def test_an_encoder_that_takes_no_embeddings_has_the_same_loss_and_gradients(tiny, tmp_path, make):
    """XLM-RoBERTa counts positions from its padding: embeddings must not change them."""
    make(tmp_path, passages(300))
    batch, _ = batch_of(tiny, limit=5, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    results = []
    for wrap in (lambda encoder: encoder, IdsOnly):
        encoder = AutoModel.from_pretrained(tmp_path)
        model = ContrastiveModel(wrap(encoder), temperature=0.05).eval()
        loss = model(**batch)["loss"]
        loss.backward()
        results.append((loss.detach(), gradients(encoder)))
        cached = grad_cache_step(model, model, torch.Tensor.backward, **batch)
        assert cached.item() == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scores", [False, True])
def test_grad_cache_equals_plain_gradients_with_the_same_dropout(tiny, scores):
    batch, _ = batch_of(tiny, scores=scores, limit=5)
    assert len(batch["texts"]) > 3
    model = load(tiny / "bert_dropout", distillation="kl_div" if scores else None).train()
    torch.manual_seed(3)
    loss = model(**batch)["loss"]
    loss.backward()
    plain = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    cached_loss = grad_cache_step(model, model, lambda loss: loss.backward(), **batch)
    after = torch.rand(1)
    assert cached_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(gradients(model), plain, atol=1e-6, rtol=1e-5)
    torch.manual_seed(3)
    model(**batch)
    assert torch.rand(1) == after, "the replay must leave the random state where one pass leaves it"


@pytest.mark.parametrize("architecture, dim", [("multi_vector", 0), ("both", 8)])
def test_the_loss_over_tokens_is_that_of_plain_loops_and_of_grad_cache(tiny, architecture, dim):
    """Each view has FlagEmbedding's loss, by means over a query's tokens of the best cosine; `both` is their mean."""
    batch, features = batch_of(tiny, limit=5)
    torch.manual_seed(2)
    options = {"architecture": architecture, "projection": new_projection(32, dim), "added": [2, 3], "longest": 48}
    model = load(tiny / "bert", **options).eval()
    assert AutoTokenizer.from_pretrained(tiny / "bert")("")["input_ids"] == [2, 3]
    loss = model(**batch)["loss"]
    loss.backward()
    found = gradients(model)
    texts = {side: [model.encoder(**{name: values[row:row + 1] for name, values in features[side].items()
                                     if name != "token_type_ids"}).last_hidden_state[0][1:size - 1]
                    for row, size in enumerate(features[side]["attention_mask"].sum(1).tolist())]
             for side in ("queries", "passages")}
    queries, passages = ([torch.nn.functional.normalize(model.projection(text), dim=-1) for text in texts[side]]
                         for side in ("queries", "passages"))
    scores = torch.stack([torch.stack([(one @ other.T).max(1).values.mean() for other in passages])
                          for one in queries]) / 0.05
    targets = torch.arange(6) * 4
    known = false_negatives(batch["passage_keys"], batch["positive_keys"], targets)
    expected = torch.nn.functional.cross_entropy(scores.masked_fill(known, -torch.inf), targets)
    if architecture == "both":
        dense = load(tiny / "bert").eval()
        expected = (expected + dense(**batch)["loss"]) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    model.zero_grad()
    cached = grad_cache_step(model, model, lambda loss: loss.backward(), **batch)
    assert cached.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(gradients(model), found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_with_shared_negatives_equal_one_on_the_joined_batch(tiny, tmp_path, world):
    """Plain and cached, with masking, over two accumulated batches: the averaged gradients are those of one process,
    with a teacher, truncated vectors, token vectors, and both."""
    status, said = run_forked(together, "gradients", tiny, tmp_path, world, log=tmp_path / "log")
    assert status == 0, said
    found = torch.load(tmp_path / f"gradients_{world}.pt")
    for case in CASES:
        model, losses = case_model(tiny, case), []
        for first in (0, JOINED):
            batch, _ = batch_of(tiny, scores=True, items=range(first, first + JOINED), limit=5)
            losses.append(model(**batch)["loss"])
            losses[-1].backward()
        expected = sum(losses).item() / 2, gradients(model)
        for cached in (False, True):
            loss, averaged = found[case, cached]
            assert loss.item() == pytest.approx(expected[0], abs=1e-5)
            torch.testing.assert_close(averaged, expected[1], atol=1e-5, rtol=1e-4)
