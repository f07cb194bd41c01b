"""Dropout with quickly drawn masks: rate, scale, gradients and seeds are as with PyTorch's."""

import pytest
import torch
from transformers import AutoModel

from embedding_finetune.models.fast_layers import (
    FastDropout,
    PointwiseLinear,
    attention_with_fast_dropout,
    use_fast_dropout,
    with_pointwise_linear,
)


def test_rate_and_scale():
    torch.manual_seed(0)
    dropped = FastDropout(0.1)(torch.ones(1000, 1001))
    kept = dropped != 0
    assert kept.double().mean().item() == pytest.approx(0.9, abs=0.0015)  # five standard deviations
    assert dropped[kept].unique().item() == pytest.approx(1 / 0.9, rel=1e-4)
    for lag in (1, 2, 4):  # neighbours that share a 64-bit draw are independent
        assert (kept[:, lag:] & kept[:, :-lag]).double().mean().item() == pytest.approx(0.81, abs=0.003)


def test_gradient_passes_where_the_value_passed():
    inputs = torch.full((64, 65), 3.0, requires_grad=True)
    outputs = FastDropout(0.3)(inputs)
    outputs.sum().backward()
    torch.testing.assert_close(outputs.detach(), 3 * inputs.grad)


def test_masks_follow_torchs_seed():
    layer, ones = FastDropout(0.5), torch.ones(50)
    torch.manual_seed(1)
    first, second = layer(ones), layer(ones)
    torch.manual_seed(1)
    assert torch.equal(layer(ones), first) and not torch.equal(first, second)


@pytest.mark.parametrize("groups", [1, 2])  # 2 as in Qwen: two heads of the queries look at one of the keys
def test_attention_equals_the_fused_kernel_when_next_to_nothing_is_dropped(groups):
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    query, key, value = torch.randn(2, 4, 9, 8), *torch.randn(2, 2, 4 // groups, 9, 8)
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 9, 9).clone()
    mask[1, :, :, 6:] = torch.finfo(torch.float32).min
    fused, _ = attention_with_fast_dropout(module, query, key, value, mask, scaling=0.3)
    ours, _ = attention_with_fast_dropout(module, query, key, value, mask, dropout=1e-9, scaling=0.3)
    torch.testing.assert_close(ours, fused, atol=1e-5, rtol=1e-5)


def test_a_model_keeps_its_vectors_and_gets_noise_in_training(tiny):
    inputs = {"input_ids": torch.tensor([[2, 9, 8, 3], [2, 7, 3, 0]]),
              "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    real = inputs["attention_mask"].bool()
    plain, fast = (AutoModel.from_pretrained(tiny / "bert_dropout").eval() for _ in range(2))
    use_fast_dropout(fast)
    expected = plain(**inputs).last_hidden_state
    torch.testing.assert_close(fast(**inputs).last_hidden_state[real], expected[real])
    fast.train()
    torch.manual_seed(0)
    samples = torch.stack([fast(**inputs).last_hidden_state[0, 0] for _ in range(200)])
    plain.train()
    others = torch.stack([plain(**inputs).last_hidden_state[0, 0] for _ in range(200)])
    assert samples.std(0).mean().item() == pytest.approx(others.std(0).mean().item(), rel=0.1)
    torch.testing.assert_close(samples.mean(0), others.mean(0), atol=0.15, rtol=0)


@pytest.mark.parametrize("shape", [(2, 64, 24), (1, 24), (3, 40, 2, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_same_as_a_convolution(shape, bias):
    torch.manual_seed(0)
    linear, inputs = torch.nn.Linear(24, 40, bias=bias), torch.randn(*shape)
    torch.testing.assert_close(PointwiseLinear(linear)(inputs), linear(inputs), atol=1e-6, rtol=1e-5)


def test_a_model_keeps_its_vectors_weights_and_other_layers(tiny):
    plain = AutoModel.from_pretrained(tiny / "bert_dropout").eval()
    fast = with_pointwise_linear(plain)
    assert {id(shared) for shared in fast.parameters()} == {id(shared) for shared in plain.parameters()}
    assert not any(isinstance(module, PointwiseLinear) for module in plain.modules())
    replaced = [module for module in fast.modules() if isinstance(module, PointwiseLinear)]
    assert len(replaced) == sum(isinstance(module, torch.nn.Linear) for module in plain.modules()) > 0
    assert {name: value.tolist() for name, value in fast.state_dict().items()} == {
        name: value.tolist() for name, value in plain.state_dict().items()}
    inputs = {"input_ids": torch.randint(4, 30, (3, 64), generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        torch.testing.assert_close(fast(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
