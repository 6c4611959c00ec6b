"""A CPU's float products: the right numbers by either library, and the library that is the faster one for the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convbert.engine.linear import MKL_ROWS, Linear
from convbert.engine.threads import one_thread


class Operators(TorchDispatchMode):
    """The names of the operators that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def a_single_thread() -> Iterator[None]:
    with one_thread():
        yield


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WEIGHT, BIAS = numbers(24, 40), numbers(24)


def linear_on(monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype = torch.float32) -> Linear:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    return Linear(WEIGHT.to(dtype), BIAS.to(dtype))


def is_onednns(linear: Linear, n_rows: int) -> bool:
    with Operators() as operators, torch.inference_mode():
        linear(torch.ones(n_rows, 40, dtype=linear.bias.dtype))
    assert operators.names
    return "mkldnn::_linear_pointwise" in operators.names


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("n_rows", [1, MKL_ROWS - 1, MKL_ROWS, 1024])
def test_product_is_the_layers(n_rows: int, capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(n_rows, 40)
    expected = F.linear(x.double(), WEIGHT.double(), BIAS.double()).float()
    torch.testing.assert_close(linear_on(monkeypatch, capability)(x), expected, rtol=1e-5, atol=1e-5)


def test_with_avx2_many_rows_are_mkls(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = linear_on(monkeypatch, "AVX2")
    assert is_onednns(linear, MKL_ROWS - 1)
    assert not is_onednns(linear, MKL_ROWS)


def test_threads_that_share_a_product_have_as_many_rows_each(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = linear_on(monkeypatch, "AVX2")
    torch.set_num_threads(2)
    assert is_onednns(linear, 2 * MKL_ROWS - 1)
    assert not is_onednns(linear, 2 * MKL_ROWS)


def test_with_avx512_weights_are_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = linear_on(monkeypatch, "AVX512")
    assert linear.weight is None
    assert is_onednns(linear, 1024)


def test_without_mkl_weights_are_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert is_onednns(linear_on(monkeypatch, "AVX2"), 1024)


def test_a_type_without_a_kernel_of_onednn_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = linear_on(monkeypatch, "AVX2", torch.float16)
    assert linear.packed is None
    assert not is_onednns(linear, 3)
