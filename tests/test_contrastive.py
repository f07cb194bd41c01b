"""The loss against FlagEmbedding's and against hand-computed values; GradCache against plain gradients."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches_for_tests import batch_of, gradients, load
from FlagEmbedding.finetune.embedder.encoder_only.base import BiEncoderOnlyEmbedderModel

from embedding_finetune.contrastive import false_negatives, grad_cache_step


def test_a_positive_of_the_query_is_never_its_negative():
    # Query 0 has positives 7 and 9, query 1 has 8. Candidates: 7 (target of 0), 9, 8 (target of 1), 7 again.
    mask = false_negatives(torch.tensor([7, 9, 8, 7]), torch.tensor([[7, 9], [8, 8]]), torch.tensor([0, 2]))
    assert mask.tolist() == [[False, True, False, True], [False, False, False, False]]


def test_masked_loss_by_hand(tiny):
    model = load(tiny / "bert", temperature=1.0)
    # One-dimensional "embeddings", so that scores are products: query 0 = 1, query 1 = 2; passages 1, 2, 3, 4.
    model.normalize_embeddings = False
    pooled = torch.tensor([[1.0], [2.0], [1.0], [2.0], [3.0], [4.0]])
    labels = {"rows": torch.arange(6), "passage_keys": torch.tensor([5, 6, 7, 5]), "positive_keys": torch.tensor([[5], [7]])}
    # Query 0: target 1 against 2, 3 (the 4 is its own positive again); query 1: target 6 against 2, 4, 8.
    expected = (-1 + math.log(math.e + math.e**2 + math.e**3) - 6 + math.log(math.e**2 + math.e**4 + math.e**6 + math.e**8)) / 2
    assert model.contrastive_loss(pooled, **labels).item() == pytest.approx(expected, rel=1e-6)
    model.mask_false_negatives = False
    unmasked = expected + (math.log(sum(math.e**s for s in (1, 2, 3, 4))) - math.log(sum(math.e**s for s in (1, 2, 3)))) / 2
    assert model.contrastive_loss(pooled, **labels).item() == pytest.approx(unmasked, rel=1e-6)


@pytest.mark.parametrize("teacher", [None, "kl_div", "m3_kd_loss"])
@pytest.mark.parametrize("mrl", [False, True])
def test_loss_equals_flagembedding(tiny, teacher, mrl):
    options = {"kd_loss_type": teacher or "kl_div", "use_mrl": mrl, "mrl_dims": [8, 32] if mrl else []}
    batch, features = batch_of(tiny, scores=teacher is not None)
    ours = load(tiny / "bert", mask_false_negatives=False, **options).train()
    theirs = BiEncoderOnlyEmbedderModel(ours.model, temperature=0.05, normalize_embeddings=True, **options).train()
    expected = theirs(**features).loss
    assert ours(**batch).loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("scores", [False, True])
def test_grad_cache_equals_plain_gradients_with_the_same_dropout(tiny, scores):
    batch, _ = batch_of(tiny, scores=scores, limit=5)
    assert len(batch["texts"]) > 3
    model = load(tiny / "bert_dropout").train()
    torch.manual_seed(3)
    loss = model(**batch).loss
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


def test_two_processes_with_shared_negatives_equal_one_on_the_joined_batch(tiny, tmp_path):
    """Plain and cached, with masking and a teacher: the averaged gradients are those of the joined batch."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                          Path(__file__).with_name("two_processes.py"), tiny, tmp_path],
                         env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    batch, _ = batch_of(tiny, scores=True, items=range(8), limit=5)
    model = load(tiny / "bert").train()
    model(**batch).loss.backward()
    expected = gradients(model)
    for name in ("plain", "cached"):
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), expected, atol=1e-5, rtol=1e-4)
