"""The kernels of a GPU, run by Triton's interpreter, against what they mean.

It has no products in bf16, so that these come in fp16; test_gpu.py has them on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convbert.engine.convolution import depthwise_taps, kernel_logits, mixed_taps
from convbert.engine.packing import layout
from convbert.engine.precision import summed_and_normalised

triton_kernels = pytest.importorskip("convbert.engine.triton_kernels", reason="no Triton here", exc_type=ImportError)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here Triton compiles: see test_gpu.py")

LENGTHS = np.array([1, 30, 5, 41, 2])
N_TOKENS = int(LENGTHS.sum())
TYPES = [(torch.float32, 1e-5), (torch.float16, 2e-3)]


def rows(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sides(n_taps: int) -> torch.Tensor:
    return torch.from_numpy(layout(LENGTHS, n_taps=n_taps, max_length=64).sides)


def assert_close(found: torch.Tensor, function: Callable[..., torch.Tensor], tolerance: float, *given: Any) -> None:
    """Against the function in float64."""
    exact = function(*(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given))
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [1, 40, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_sum_and_norm(width: int, dtype: torch.dtype, tolerance: float) -> None:
    x, residual = rows(N_TOKENS, width, seed=0, dtype=dtype), rows(N_TOKENS, width, seed=1, dtype=dtype)
    weight, bias = rows(width, seed=2, dtype=dtype), rows(width, seed=3, dtype=dtype)
    found = triton_kernels.summed_and_normalised(x.clone(), residual, weight, bias, 1e-5)
    assert_close(found, summed_and_normalised, tolerance, x, residual, weight, bias, 1e-5)


@pytest.mark.parametrize(("width", "n_taps"), [(40, 9), (300, 3), (16, 4), (1, 11)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_depthwise_convolution(width: int, n_taps: int, dtype: torch.dtype, tolerance: float) -> None:
    x, taps = rows(N_TOKENS, width, seed=0, dtype=dtype), rows(n_taps, width, seed=1, dtype=dtype)
    found = triton_kernels.depthwise_taps(x, taps, sides(n_taps))
    assert_close(found, depthwise_taps, tolerance, x, taps, sides(n_taps))


@pytest.mark.parametrize(("width", "n_logits"), [(36, 27), (128, 54), (6, 1), (64, 300)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_kernel_logits(width: int, n_logits: int, dtype: torch.dtype, tolerance: float) -> None:
    span_key, query = rows(N_TOKENS, width, seed=0, dtype=dtype), rows(N_TOKENS, 4 * width, seed=1, dtype=dtype)
    weight, bias = rows(n_logits, width, seed=2, dtype=dtype), rows(n_logits, seed=3, dtype=dtype)
    found = triton_kernels.kernel_logits(span_key, query[:, :width], weight, bias)
    assert_close(found, kernel_logits, 10 * tolerance, span_key, query[:, :width], weight, bias)


@pytest.mark.parametrize(("n_heads", "head_width", "n_taps"), [(3, 12, 9), (1, 64, 3), (2, 1, 4), (2, 8, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("is_attended", [True, False])
def test_mixing(
    n_heads: int, head_width: int, n_taps: int, dtype: torch.dtype, tolerance: float, is_attended: bool
) -> None:
    width = n_heads * head_width
    logits = rows(N_TOKENS, n_heads * n_taps, seed=0, dtype=dtype)
    values = rows(N_TOKENS, 4 * width, seed=1, dtype=dtype)[:, 3 * width :]
    attended = rows(N_TOKENS, width, seed=2, dtype=dtype)
    context = torch.cat([torch.full_like(attended, torch.nan) if is_attended else attended] * 2, 1)
    given = attended if is_attended else None
    triton_kernels.mixed_taps(context, logits, values, sides(n_taps), given, n_heads)

    def exact(*given: Any) -> torch.Tensor:
        context = torch.cat([attended, attended], 1).double()
        mixed_taps(context, *given, n_heads)
        return context

    assert_close(context, exact, tolerance, logits, values, sides(n_taps), given)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_stays_in_its_record() -> None:
    logits, values = rows(N_TOKENS, 18, seed=0, dtype=torch.float32), rows(N_TOKENS, 16, seed=1, dtype=torch.float32)
    others = torch.arange(N_TOKENS) != 0  # the first record has one token
    for convolve in (
        lambda x: triton_kernels.depthwise_taps(x, rows(9, 16, seed=2, dtype=x.dtype), sides(9)),
        lambda x: mixed(logits, x),
    ):
        spoilt = values.clone()
        spoilt[0] = torch.inf
        torch.testing.assert_close(convolve(spoilt)[others], convolve(values)[others], rtol=0, atol=0)


def mixed(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    context = values.new_zeros(N_TOKENS, 32)
    triton_kernels.mixed_taps(context, logits, values, sides(9), None, 2)
    return context[:, 16:]
