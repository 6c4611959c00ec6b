"""Stands in for torch's variable-length attention, which has no kernel for a CPU."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def varlen_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int
) -> Tensor:
    """What torch's kernel, which sums in float32, gives record after record; rows behind the last are nobody's."""
    assert starts.dtype == key_starts.dtype == torch.int32
    assert longest == longest_key >= starts.diff().max()
    out = torch.full_like(v, torch.nan)
    for first, last in pairwise(starts.tolist()):
        own = (x[first:last].transpose(0, 1).float() for x in (q, k, v))
        out[first:last] = F.scaled_dot_product_attention(*own).transpose(0, 1).to(v.dtype)
    return out
