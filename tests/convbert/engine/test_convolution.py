"""Both convolutions over a packed batch, pass by pass and as functions of rows, against the reference modules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from convbert import layers
from convbert.engine.convolution import DepthwiseConvolution, KernelLogits, mix_into, sides_of
from convbert.engine.packing import layout

N_HEADS, WIDTH = 2, 16
LENGTHS = np.array([3, 1, 1, 9, 2])


@pytest.fixture(params=["passes", "C++", "as written"])
def form(request: pytest.FixtureRequest) -> str:
    """A CPU without a compiler, one with it, and a GPU without Triton; test_triton_kernels.py has the fourth."""
    if request.param == "as written":
        request.getfixturevalue("as_on_a_gpu")
    if request.param == "C++":
        request.getfixturevalue("in_cpp")
    return request.param


def by_record(function: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
    """A function of records (1, L, …) on each record of packed rows."""
    parts = zip(*(x.split(LENGTHS.tolist()) for x in rows), strict=True)
    return torch.cat([function(*(x[None] for x in part))[0] for part in parts])


def rows(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(int(LENGTHS.sum()), *shape, generator=torch.Generator().manual_seed(seed))


def sides(n_taps: int, form: str) -> torch.Tensor:
    where = layout(LENGTHS, n_taps=n_taps, max_length=9)
    return sides_of(torch.from_numpy(where.sides), n_taps, torch.float32, is_fused=form != "passes")


@torch.inference_mode()
def test_dynamic_convolution_is_the_references_on_each_record(form: str) -> None:
    logits, values, attended = rows(N_HEADS, 3, seed=0), rows(WIDTH, seed=1), rows(WIDTH, seed=2)
    expected = by_record(layers.dynamic_convolution, logits.softmax(-1), values.unflatten(1, (N_HEADS, -1)))
    columns = torch.cat([values, values], 1)[:, WIDTH:]  # as they stand beside others in a block
    for given in (None,) if form == "passes" else (None, attended):
        context = torch.cat([attended if given is None else torch.zeros_like(values), torch.zeros_like(values)], 1)
        is_fused = form != "passes"
        mix_into(context, logits.flatten(1), columns, sides(3, form), given, n_heads=N_HEADS, is_fused=is_fused)
        torch.testing.assert_close(context, torch.cat([attended, expected.flatten(1)], 1))


@torch.inference_mode()
def test_kernels_come_from_the_spans_key_and_the_query(form: str) -> None:
    span_key, query = rows(WIDTH, seed=0), torch.cat([rows(WIDTH, seed=1)] * 2, 1)[:, :WIDTH]
    layer = torch.nn.Linear(WIDTH, 3 * N_HEADS)
    torch.testing.assert_close(KernelLogits(layer.weight, layer.bias)(span_key, query), layer(span_key * query))


@torch.inference_mode()
@pytest.mark.parametrize("n_taps", [1, 3])
def test_depthwise_convolution_is_the_references_on_each_record(form: str, n_taps: int) -> None:
    x = rows(WIDTH, seed=2)
    reference = layers.SeparableConv1d(in_width=WIDTH, out_width=WIDTH, kernel_size=n_taps).depthwise
    expected = by_record(lambda record: reference(record.transpose(1, 2)).transpose(1, 2), x)
    where = layout(LENGTHS, n_taps=n_taps, max_length=9)
    gapped = torch.from_numpy(where.gapped_rows)
    depthwise = DepthwiseConvolution(reference.weight, is_fused=form != "passes")
    result = depthwise(x, gapped, where.n_gapped_rows, sides(n_taps, form))
    torch.testing.assert_close(result, expected)


@torch.inference_mode()
@pytest.mark.parametrize("no_number", [torch.nan, torch.inf])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_a_neighbour_that_is_no_number_stays_outside(
    no_number: float, dtype: torch.dtype, tolerance: float, form: str
) -> None:
    if form == "C++" and dtype != torch.float32:
        pytest.skip("its kernels are for float32")
    is_fused = form != "passes"
    logits, values = rows(N_HEADS, 5, seed=0).to(dtype), rows(WIDTH, seed=1).to(dtype)
    where = layout(LENGTHS, n_taps=5, max_length=9)
    mask = sides_of(torch.from_numpy(where.sides), 5, dtype, is_fused=is_fused)
    gapped = torch.from_numpy(where.gapped_rows)
    depthwise = DepthwiseConvolution(torch.ones(WIDTH, 1, 5, dtype=dtype), is_fused=is_fused)
    spoilt = values.clone()
    spoilt[3] = no_number  # the second record
    others = torch.arange(len(values)) != 3

    def mixed(x: torch.Tensor) -> torch.Tensor:
        context = x.new_zeros(len(x), 2 * WIDTH)
        mix_into(context, logits.flatten(1), x, mask, n_heads=N_HEADS, is_fused=is_fused)
        return context[:, WIDTH:]

    for convolve in (
        mixed,
        lambda x: depthwise(x, gapped, where.n_gapped_rows, mask),
    ):
        result, expected = convolve(spoilt), convolve(values)
        torch.testing.assert_close(result[others], expected[others], atol=tolerance, rtol=0)
        assert not result[~others].isfinite().any()
