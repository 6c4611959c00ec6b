"""Float weights in, products of 8-bit integers out, each token quantised by its own range.

Weights are symmetric, a scale for each output channel; activations are asymmetric, a scale and a zero
point for each token, found as it comes (dynamic quantisation). So a token's result depends on nothing
but its own row, and a record's on nothing but the record. LayerNorm, softmax, attention and the
convolutions stay in float32. With x ≈ s·(u - z) and w ≈ c·i, x·w = s·(c·Σ u·i - z·c·Σ i).

Shapes: T tokens; widths of a layer's input and output are I and O.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convbert.engine.compiler import RowKernel
from convbert.errors import InputError


class Quantised(NamedTuple):
    """Rows as integers: values ≈ scale · (levels - zero)."""

    levels: Tensor  # (T, I) uint8
    scale: Tensor  # (T, 1)
    zero: Tensor  # (T, 1)


class Int8Linear:
    """x · Wᵀ + b over integers.

    Args:
        weight: (O, I) float32 on a CPU.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127  # (O,)
        levels = (weight / scales[:, None]).round().to(torch.int8).contiguous()  # prepacking reads past strides
        self.packed = torch.ops.onednn.qlinear_prepack(levels, None)
        self.scales, self.no_zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self.sums = scales * levels.sum(1)  # (O,) c · Σ i
        self.bias = bias

    def product(self, x: Quantised) -> Tensor:
        """c · Σ u·i: (T, O) float32, to be rescaled with each token's scale and zero point."""
        return torch.ops.onednn.qlinear_pointwise(
            x.levels, 1.0, 0, self.packed, self.scales, self.no_zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(T, I) -> (T, O)."""
        quantised = quantise(x)
        return _RESCALED(self.product(quantised), quantised.scale, quantised.zero, self.sums, self.bias)


class Int8Residual:
    """LayerNorm(x · Wᵀ + b + residual)."""

    def __init__(self, dense: Int8Linear, norm: nn.LayerNorm) -> None:
        self.dense, self.norm = dense, norm

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """(T, I), (T, O) -> (T, O)."""
        quantised, dense, norm = quantise(x), self.dense, self.norm
        parts = (quantised.scale, quantised.zero, dense.sums, dense.bias, residual, norm.weight, norm.bias, norm.eps)
        return _NORMALISED(dense.product(quantised), *parts)


def quantise(x: Tensor) -> Quantised:
    """Rows (T, I) as integers."""
    return Quantised(*_QUANTISED(x.contiguous(), most_levels()))


def check_int8() -> None:
    """Whether this build of torch multiplies 8-bit integers on this processor.

    Raises:
        InputError: it does not.
    """
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise InputError("precision int8 needs a torch that is built with oneDNN for this processor: use fp32")


def most_levels() -> int:
    """Levels of an activation: 256, or 128 where a processor without VNNI adds pairs of products in 16 bits,
    which two products of 255 · 127 do not fit (oneDNN developer guide, "Nuances of int8 computations")."""
    return 256 if torch.cpu._is_vnni_supported() else 128


def _quantise(x: Tensor, n_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (n_levels - 1)).clamp(min=1e-12)
    zero = (-low / scale).round()
    levels = (x * (1 / scale) + zero).round().clamp(0, n_levels - 1)
    return levels.to(torch.uint8), scale, zero


def _rescaled(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """In place, which saves the caches a tensor as wide as the widest."""
    return product.sub_(zero * sums).mul_(scale).add_(bias)


def _normalised(
    product: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> Tensor:
    summed = _rescaled(product, scale, zero, sums, bias) + residual
    return F.layer_norm(summed, weight.shape, weight, shift, eps)


_QUANTISED = RowKernel(_quantise)
_RESCALED = RowKernel(_rescaled)
_NORMALISED = RowKernel(_normalised)
