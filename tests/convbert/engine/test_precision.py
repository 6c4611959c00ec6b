"""Which precision runs where, and what lies between the products against torch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from convbert import ConvBertConfig, ConvBertModel, InputError
from convbert.activations import ACTIVATIONS
from convbert.engine import precision
from convbert.engine.int8 import Int8Linear
from convbert.engine.precision import computes_bf16, is_tanh_gelu, kernels_for, summed_and_normalised


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]
)
def test_the_sum_and_its_norm_are_rounded_once(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in [(9, 32), (9, 32), (32,), (32,)]
    )
    norm = torch.nn.LayerNorm(32, eps=1e-12, dtype=torch.float64)
    norm.load_state_dict({"weight": weight, "bias": bias})
    result = summed_and_normalised(x, residual, weight, bias, 1e-12)
    assert result.dtype == dtype
    with torch.inference_mode():
        torch.testing.assert_close(result.double(), norm(x.double() + residual.double()), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("gelu", torch.bfloat16, True),
        ("gelu", torch.float16, False),  # whose rounding is finer than the formula is exact
        ("gelu", torch.float32, False),
        ("gelu_new", torch.bfloat16, True),
        ("gelu_new", torch.float16, True),
        ("gelu_new", torch.float32, False),
        ("relu", torch.bfloat16, False),
        ("gelu_10", torch.bfloat16, False),
    ],
)
def test_which_activation_is_taken_with_its_product(name: str, dtype: torch.dtype, expected: bool) -> None:
    assert is_tanh_gelu(ACTIVATIONS[name], dtype) is expected


def test_int8_packs_each_groups_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []

    class Counted(Int8Linear):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
            packed.append(weight.shape)
            super().__init__(weight, bias)

    monkeypatch.setattr(precision, "Int8Linear", Counted)
    config = ConvBertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_groups=2
    )
    layer = ConvBertModel(config).encoder.layer[0]
    kernels_for("int8", torch.device("cpu")).feed_forward(layer, F.gelu)
    assert packed == [(32, 16)] * 2 + [(16, 32)] * 2


def test_a_precision_that_is_none_or_not_the_devices_is_named() -> None:
    with pytest.raises(InputError, match="int8 is for CPUs: on cuda use bf16"):
        kernels_for("int8", torch.device("cuda"))
    with pytest.raises(InputError, match=r"precision \(int4\) must be one of fp32, bf16, fp16, int8"):
        kernels_for("int4", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "capability", "hip", "expected"),
    [
        ("cuda", (7, 5), None, False),
        ("cuda", (8, 0), None, True),
        ("cuda", (9, 0), None, True),
        ("cuda", (7, 5), "6.2", True),
        ("cpu", (7, 5), None, True),
    ],
)
def test_bf16_is_refused_on_gpus_that_do_not_compute_in_it(
    device: str, capability: tuple[int, int], hip: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert computes_bf16(torch.device(device)) is expected
    if expected:
        assert kernels_for("bf16", torch.device(device)).dtype == torch.bfloat16
    else:
        with pytest.raises(InputError, match=r"bf16 needs a GPU of compute capability 8.0 .* cuda .*: use fp16"):
            kernels_for("bf16", torch.device(device))
        assert kernels_for("fp16", torch.device(device)).dtype == torch.float16
