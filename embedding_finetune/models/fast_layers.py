"""Faster layers on CPUs: dropout and linear layers.

PyTorch draws masks on one thread at about 7 ns per element, and dropout inside scaled_dot_product_attention falls back
to a slow path. This module takes 16 random bits per element from NumPy's SFC64 generator (0.4 ns). It is seeded from
PyTorch's generator at each call, so seeds, checkpoints and gradient recomputation behave as usual. The probabilities
are rounded to 16 bits. A training step takes 0.8 to 0.97 of the time with PyTorch's dropout (benchmarks/logs.md).

PyTorch computes linear layers in float32 by MKL, which reaches less than half of the speed of oneDNN on AMD processors,
and convolutions by oneDNN. A linear layer is a convolution with a kernel of size 1.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask


def cpu_has(precision: str) -> bool:
    """Whether this processor has `bf16` or `fp16` instructions; emulation is slower than float32."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if precision in name)


def keep_mask(shape: torch.Size, p: float) -> tuple[torch.Tensor, float]:
    """Dropout mask and scale: each element is False with probability round(65536 p) / 65536."""
    threshold = round(p * 65536)
    seed = int(torch.randint(2**63 - 1, ()))
    count = shape.numel()
    bits = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy(bits >= threshold).view(shape), 65536 / (65536 - threshold)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, p):
        mask, ctx.factor = keep_mask(inputs.shape, p)
        ctx.save_for_backward(mask)
        return (inputs * mask).mul_(ctx.factor)

    @staticmethod
    def backward(ctx, gradient):
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.factor), None


class FastDropout(nn.Dropout):
    """nn.Dropout with masks from `keep_mask`."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _Dropout.apply(inputs, self.p) if self.training and self.p else inputs


class PointwiseLinear(nn.Linear):
    """nn.Linear, computed as a convolution with a kernel of size 1; differences are below 1e-6.

    On one thread PyTorch leaves a convolution to oneDNN only for 16 images or more, so texts or tokens are the images.
    """

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        images = max(inputs.shape[:-1])
        rows = inputs.reshape(images, -1, 1, self.in_features).permute(0, 3, 1, 2)  # a view: channels last in memory
        outputs = nn.functional.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], self.out_features)


def use_pointwise_linear(model: nn.Module) -> None:
    """Replace the linear layers of a float32 model on the CPU; in bfloat16, PyTorch's own use oneDNN."""
    _replace(model, nn.Linear, PointwiseLinear)


def with_pointwise_linear(model: nn.Module) -> nn.Module:
    """A copy of a float32 model on the CPU with such layers, for batches; both share their parameters.

    A convolution rearranges its weights at each call, so that a single query takes twice as long.
    """
    twin = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *model.buffers())})
    use_pointwise_linear(twin)
    return twin


def _replace(model, kind, make):
    """Put `make(layer)` in the place of each layer of exactly this kind."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child))


def attention_with_fast_dropout(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                                attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: Any = None,
                                **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Softmax attention with dropout on its weights; PyTorch's fused kernel if `dropout` is 0.

    Shapes are as in transformers.
    """
    if not dropout:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)  # query heads per key-value head
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        weights += attention_mask
    weights = _Dropout.apply(weights.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def use_fast_dropout(model: Any) -> None:
    """Replace dropout in the layers and attention of a transformers model on the CPU by that of this module."""
    _replace(model, nn.Dropout, lambda layer: FastDropout(layer.p).train(layer.training))
    if model.get_correct_attn_implementation(None) == "sdpa":  # what transformers chooses for this architecture
        AttentionInterface.register("fast_dropout", attention_with_fast_dropout)
        AttentionMaskInterface.register("fast_dropout", eager_mask)
        model.set_attn_implementation("fast_dropout")
