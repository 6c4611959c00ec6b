"""Weights of linear layers in, their products as fast as the device has them out.

Shapes: T tokens; widths of a layer's input and output are I and O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convbert.layers import GroupedLinear

Product = Callable[[Tensor], Tensor]
MKL_ROWS = 256  # a thread: with fewer, MKL, which lays the weights out anew in each product, is slower than oneDNN


class Linear:
    """x · Wᵀ + b. On a CPU the weights are laid out once as oneDNN wants them, where it has a kernel for the type.

    Where MKL is faster for many rows, they are there twice. Some processors would sum half-precision products in half
    precision, and in another order for other numbers of rows: on a CPU they are summed in float32, and rounded once.

    Args:
        weight: (O, I) on its device, in the type to compute in.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.bias = bias
        self.weight: Tensor | None = weight
        self.packed: Tensor | None = None
        if weight.device.type != "cpu":
            return
        if weight.dtype == torch.float16:
            self.weight, self.bias = weight.float(), bias.float()
        elif _has_onednn_kernel(weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
            if not _has_faster_mkl(weight.dtype):
                self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        """(T, I) -> (T, O)."""
        if self.weight is None or (self.packed is not None and len(x) < MKL_ROWS * torch.get_num_threads()):
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return F.linear(x.to(self.bias.dtype), self.weight, self.bias).to(x.dtype)


class TanhGelu:
    """GELU(x · Wᵀ + b) by the formula with tanh, at the end of the product and without a pass of its own on a GPU.

    The formula is 0.0005 off at most. In bf16 the results are on the whole still closer to the exact ones than by
    GELU's own formula on the product, which is rounded before it there (docs/decisions/0018-triton.md).

    Args:
        weight: (O, I) on its device, in the type to compute in.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.t(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, I) -> (T, O)."""
        return torch._addmm_activation(self.bias, x, self.weight, use_gelu=True)


class Grouped:
    """Products side by side, each on its own columns: a block-diagonal matrix.

    Args:
        parts: one product for each group, all of the same widths.
    """

    def __init__(self, parts: Sequence[Product]) -> None:
        self.parts = list(parts)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, I) -> (T, O)."""
        columns = x.chunk(len(self.parts), dim=-1)
        return torch.cat([part(own.contiguous()) for part, own in zip(self.parts, columns, strict=True)], dim=-1)


def parts_of(module: nn.Linear | GroupedLinear) -> list[tuple[Tensor, Tensor]]:
    """Weight (O, I) and bias (O,) of a linear layer, or of each group of a grouped one."""
    if isinstance(module, GroupedLinear):
        weights = module.weight.detach().transpose(1, 2)  # (G, I/G, O/G) -> (G, O/G, I/G)
        return list(zip(weights, module.bias.detach().chunk(len(weights)), strict=True))
    return [(module.weight.detach(), module.bias.detach())]


def stacked(modules: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several linear layers on one input as those of one layer."""
    return torch.cat([m.weight.detach() for m in modules]), torch.cat([m.bias.detach() for m in modules])


def _has_onednn_kernel(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this type faster than in software on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def _has_faster_mkl(dtype: torch.dtype) -> bool:
    """Whether MKL's products of many rows are faster than oneDNN's: by a tenth with AVX2, not with AVX-512."""
    return (
        dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )
