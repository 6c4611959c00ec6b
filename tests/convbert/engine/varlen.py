"""Stands in for torch's variable-length attention, which has no kernel for a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def varlen_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int
) -> Tensor:
    """What torch's kernel gives, record after record."""
    assert starts.dtype == key_starts.dtype == torch.int32
    assert longest == longest_key == starts.diff().max()
    parts = zip(*(x.split(starts.diff().tolist()) for x in (q, k, v)), strict=True)
    attended = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)).transpose(0, 1) for part in parts]
    return torch.cat(attended)
