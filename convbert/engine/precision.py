"""A precision's name and a device in, the kernels that compute a block's products in it out.

Shapes: T tokens, H hidden width; widths of a layer's input and output are I and O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convbert.activations import ACTIVATIONS
from convbert.engine import compiler
from convbert.engine.compiler import Fused
from convbert.engine.int8 import Int8Gelu, Int8Linear, Int8Residual, check_int8
from convbert.engine.linear import Grouped, Linear, Product, TanhGelu, parts_of
from convbert.errors import InputError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
PRECISIONS = tuple(_DTYPES)
"""int8: 8-bit integers in the products of the blocks on a CPU, float32 everywhere else."""


def kernels_for(precision: str, device: torch.device) -> Kernels:
    """The kernels of a precision.

    Raises:
        InputError: no such precision, or not on this device.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision ({precision}) must be one of {', '.join(PRECISIONS)}")
    if precision == "int8":
        if device.type != "cpu":
            raise InputError(f"precision int8 is for CPUs: on {device.type} use bf16 or fp16")
        check_int8()
        return _Int8Kernels()
    if precision == "bf16" and not computes_bf16(device):
        raise InputError(
            f"precision bf16 needs a GPU of compute capability 8.0 or more, which {device} has not: use fp16"
        )
    return Kernels(device, _DTYPES[precision])


def computes_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16: every CPU, AMD's GPUs, and Nvidia's from Ampere on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Kernels:
    """What a block is built from: products, sums and norms in one floating-point type.

    Attributes:
        dtype: of hidden states.
        is_fused: convolutions are functions of rows, each one kernel (convbert.engine.convolution).
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.is_fused = compiler.is_fused(device) or compiler.has_cpu_kernels(device, dtype)

    def placed(self, tensor: Tensor) -> Tensor:
        """A copy of a weight on the device, in the type of the hidden states."""
        return tensor.detach().to(self.device, self.dtype, copy=True)

    def linear(self, weight: Tensor, bias: Tensor) -> Product:
        """x (T, I) -> x · weightᵀ + bias (T, O)."""
        return Linear(self.placed(weight), self.placed(bias))

    def dense(self, module: Any) -> Product:
        """A linear layer, grouped or not."""
        parts = [self.linear(weight, bias) for weight, bias in parts_of(module)]
        return parts[0] if len(parts) == 1 else Grouped(parts)

    def residual(self, output: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """x (T, I), residual (T, O) -> LayerNorm(dense(x) + residual) (T, O), of a layers.ResidualOutput."""
        return _Residual(self.dense(output.dense), self._norm(output.LayerNorm))

    def feed_forward(self, layer: Any, activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """x (T, H) -> (T, H): the second half of a layers.EncoderLayer."""
        return _FeedForward(self._activated(layer.intermediate.dense, activation), self.residual(layer.output))

    def _activated(self, dense: Any, activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        """x (T, H) -> activation(dense(x)) (T, I), as ``residual`` takes it."""
        parts = parts_of(dense)
        if compiler.is_fused(self.device) and len(parts) == 1 and is_tanh_gelu(activation, self.dtype):
            return TanhGelu(*map(self.placed, parts[0]))
        return _Activated(self.dense(dense), activation)

    def _norm(self, norm: nn.LayerNorm) -> nn.LayerNorm:
        there = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, device=self.device, dtype=self.dtype)
        there.load_state_dict(norm.state_dict())
        return there.requires_grad_(False)


class _Int8Kernels(Kernels):
    """Products of integers, everything between them in float32."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)

    def linear(self, weight: Tensor, bias: Tensor) -> Product:
        return Int8Linear(self.placed(weight), self.placed(bias))

    def residual(self, output: Any) -> Callable[[Tensor, Tensor], Tensor]:
        dense, norm = self.dense(output.dense), self._norm(output.LayerNorm)
        return Int8Residual(dense, norm) if isinstance(dense, Int8Linear) else _Residual(dense, norm)

    def _activated(self, dense: Any, activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        product = self.dense(dense)  # in groups where the product after it is
        if activation is F.gelu and isinstance(product, Int8Linear):
            return Int8Gelu(product)
        return _Activated(product, activation)


class _Residual:
    """LayerNorm(dense(x) + residual)."""

    def __init__(self, dense: Product, norm: nn.LayerNorm) -> None:
        self.dense, self.norm = dense, norm

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        product = self.dense(x)
        if compiler.is_fused(product.device):
            return _summed_and_normalised(product, residual, self.norm.weight, self.norm.bias, self.norm.eps)
        return self.norm(product.add_(residual))


class _Activated:
    """activation(widen(x))."""

    def __init__(self, widen: Product, activation: Callable[[Tensor], Tensor]) -> None:
        self.widen = widen
        # in place, which saves a pass over the widest tensor
        self.activation = torch.ops.aten.gelu_ if activation is F.gelu else activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(self.widen(x))


class _FeedForward:
    """close(inner(x), x)."""

    def __init__(self, inner: Callable[[Tensor], Any], close: Callable[[Any, Tensor], Tensor]) -> None:
        self.inner, self.close = inner, close

    def __call__(self, x: Tensor) -> Tensor:
        return self.close(self.inner(x), x)


def is_tanh_gelu(activation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> bool:
    """Whether ``TanhGelu`` is an activation, or on the whole no further from it than the type's rounding."""
    if dtype == torch.bfloat16 and activation is F.gelu:
        return True
    return dtype in (torch.bfloat16, torch.float16) and activation is ACTIVATIONS["gelu_pytorch_tanh"]


def summed_and_normalised(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(x + residual) in float32, (T, O) -> (T, O) of the type of x."""
    return F.layer_norm(x.float() + residual.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)


_summed_and_normalised = Fused(summed_and_normalised)
