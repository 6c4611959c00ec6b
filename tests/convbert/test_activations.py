"""Every activation by its name, value and slope equal to Transformers'."""

from __future__ import annotations

import pytest
import torch

from convbert.activations import ACTIVATIONS

theirs = pytest.importorskip("transformers.activations")

WITH_WEIGHTS = {"prelu", "xielu"}  # refused: they hold weights of their own


def test_every_name_is_known() -> None:
    assert set(theirs.ACT2CLS) - WITH_WEIGHTS <= set(ACTIVATIONS)
    assert not WITH_WEIGHTS & set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_value_and_slope(name: str) -> None:
    if name not in theirs.ACT2CLS:
        pytest.skip(f"this Transformers has no {name}")
    results = []
    for function in (ACTIVATIONS[name], theirs.ACT2FN[name]):
        x = torch.linspace(-12, 12, 4801, requires_grad=True)
        y = function(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    (value, slope), (their_value, their_slope) = results
    torch.testing.assert_close(value, their_value, atol=2e-6, rtol=0)
    torch.testing.assert_close(slope, their_slope, atol=5e-6, rtol=0)
