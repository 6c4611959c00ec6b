"""What lies between the products as one function of rows, against torch's own modules."""

from __future__ import annotations

import pytest
import torch

from convbert.engine.precision import summed_and_normalised


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
