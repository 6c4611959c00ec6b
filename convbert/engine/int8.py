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

from convbert.engine.compiler import Fused
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
        levels = quantise(x)
        return _rescaled(self.product(levels), levels.scale, levels.zero, self.sums, self.bias)


class Int8Gelu:
    """GELU(x · Wᵀ + b) as integers, ready for the next product."""

    def __init__(self, dense: Int8Linear) -> None:
        self.dense = dense

    def __call__(self, x: Tensor) -> Quantised:
        """(T, I) -> (T, O)."""
        levels, dense = quantise(x), self.dense
        rows = (dense.product(levels), levels.scale, levels.zero, dense.sums, dense.bias)
        return Quantised(*_gelu_quantised(*rows, most_levels()))


class Int8Residual:
    """LayerNorm(x · Wᵀ + b + residual)."""

    def __init__(self, dense: Int8Linear, norm: nn.LayerNorm) -> None:
        self.dense, self.norm = dense, norm

    def __call__(self, x: Tensor | Quantised, residual: Tensor) -> Tensor:
        """(T, I), (T, O) -> (T, O)."""
        levels, dense, norm = x if isinstance(x, Quantised) else quantise(x), self.dense, self.norm
        parts = (levels.scale, levels.zero, dense.sums, dense.bias, residual, norm.weight, norm.bias, norm.eps)
        return _normalised(dense.product(levels), *parts)


def quantise(x: Tensor) -> Quantised:
    """Rows (T, I) as integers."""
    return Quantised(*_quantised(x, most_levels()))


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


def quantised(x: Tensor, n_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (T, I) as so many levels, with each row's scale and zero point."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (n_levels - 1)).clamp(min=1e-12)
    zero = (-low / scale).round()
    levels = (x * (1 / scale) + zero).round().clamp(0, n_levels - 1)
    return levels.to(torch.uint8), scale, zero


def rescaled(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """x · Wᵀ + b of the product (T, O) of their integers, in place."""
    return product.sub_(zero * sums).mul_(scale).add_(bias)


def gelu_quantised(
    product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, bias: Tensor, n_levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """GELU of what ``rescaled`` gives, as ``quantised`` gives it; the product is written over."""
    return quantised(torch.ops.aten.gelu_(rescaled(product, scale, zero, sums, bias)), n_levels)


def normalised(
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
    """LayerNorm of what ``rescaled`` gives and the residual (T, O); the product is written over."""
    summed = rescaled(product, scale, zero, sums, bias).add_(residual)
    return F.layer_norm(summed, weight.shape, weight, shift, eps)


_quantised = Fused(quantised)
_rescaled = Fused(rescaled)
_gelu_quantised = Fused(gelu_quantised)
_normalised = Fused(normalised)
