"""Products of 8-bit integers against the formula, on any processor, in C++ and as written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from convbert import InputError
from convbert.engine import cpu_kernels, int8
from convbert.engine.int8 import Int8Linear, Int8Residual, most_levels, quantise
from convbert.engine.precision import kernels_for


@pytest.fixture(params=["in C++", "as written"])
def rows_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of running row functions."""
    if request.param == "as written":
        monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    else:
        request.getfixturevalue("in_cpp")


def rows(n_rows: int, width: int) -> torch.Tensor:
    """Rows of very different ranges."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_rows, width, generator=generator) * torch.logspace(-3, 2, n_rows)[:, None]


def parameters(width: int, out_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    spread = torch.logspace(-2, 1, out_width)[:, None]  # channels of very different ranges
    weight = torch.randn(out_width, width, generator=generator) * spread
    return weight, torch.randn(out_width, generator=generator)


def error_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(T, O) most that rounding x and w can change x · w: half a step of each times the sum of the other."""
    x_step = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / (most_levels() - 1)
    w_step = weight.abs().amax(1) / 127
    rounded = 0.5 * x_step[:, None] * weight.abs().sum(1) + 0.5 * x.abs().sum(1)[:, None] * w_step
    return rounded + x.shape[1] * x_step[:, None] * w_step + 1e-4  # both at once, and the zero point's own rounding


@pytest.mark.usefixtures("rows_run")
def test_products_are_within_the_rounding_of_their_factors() -> None:
    x, (weight, bias) = rows(40, 96), parameters(96, 24)
    result = Int8Linear(weight, bias)(x)
    expected = x.double() @ weight.double().T + bias
    transposed = Int8Linear(weight.T.contiguous().T, bias)(x)
    torch.testing.assert_close(transposed, result)  # the layout of the weights does not matter
    assert ((result - expected).abs() <= error_bound(x, weight)).all()
    assert ((result - expected).norm(dim=1) / expected.norm(dim=1)).mean() < 0.02


@pytest.mark.usefixtures("rows_run")
def test_a_row_is_quantised_by_its_own_range() -> None:
    x = rows(40, 64)
    together = quantise(x)
    values = together.scale * (together.levels.float() - together.zero)
    assert ((values - x).abs() <= together.scale).all()
    for row in (0, 17, 39):
        alone = quantise(x[row : row + 1])
        torch.testing.assert_close(alone.levels, together.levels[row : row + 1], rtol=0, atol=1)
        torch.testing.assert_close(alone.scale, together.scale[row : row + 1])


def test_the_largest_products_do_not_overflow() -> None:
    """256 levels times 127 twice is more than 16 bits hold, in which processors without VNNI add pairs."""
    x = torch.linspace(0, 1, 64)[None].repeat(64, 1).fill_(1.0)
    weight = torch.ones(16, 64)
    torch.testing.assert_close(Int8Linear(weight, torch.zeros(16))(x), torch.full((64, 16), 64.0), rtol=0.02, atol=0)


@pytest.mark.parametrize("levels", [0.0, 3.0, -3.0])
def test_rows_without_a_range_stay_finite(levels: float) -> None:
    x = torch.full((3, 8), levels)
    weight, bias = parameters(8, 4)
    expected = x @ weight.T + bias
    torch.testing.assert_close(Int8Linear(weight, bias)(x), expected, rtol=0.03, atol=1e-2)


@pytest.mark.usefixtures("rows_run")
@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_feed_forward_and_residual_are_close_to_float(activation) -> None:
    torch.manual_seed(0)
    inner, outer, norm = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64), torch.nn.LayerNorm(64)
    x = torch.randn(33, 64)
    with torch.inference_mode():
        close = Int8Residual(Int8Linear(outer.weight.detach(), outer.bias.detach()), norm)
        output = SimpleNamespace(dense=outer, LayerNorm=norm)
        layer = SimpleNamespace(intermediate=SimpleNamespace(dense=inner), output=output)
        block = kernels_for("int8", torch.device("cpu")).feed_forward(layer, activation)
        expected = norm(outer(activation(inner(x))) + x)
        assert (block(x) - expected).abs().max() < 0.05
        wide = activation(inner(x))
        assert (close(wide, x) - expected).abs().max() < 0.05


def test_a_torch_without_onednn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(supported_engines=["none"]))
    with pytest.raises(InputError, match="built with oneDNN"):
        int8.check_int8()


@pytest.mark.parametrize(("has_vnni", "n_levels"), [(True, 256), (False, 128)])
def test_activations_have_as_many_levels_as_the_processor_adds_exactly(
    has_vnni: bool, n_levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    levels = quantise(rows(5, 1000)).levels
    assert (levels.amin(1).tolist(), levels.amax(1).tolist()) == ([0] * 5, [n_levels - 1] * 5)
