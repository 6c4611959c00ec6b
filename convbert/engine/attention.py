"""Queries, keys and values of a packed batch in, each record's own attention out, without padding.

Shapes: T tokens, R records, L tokens of each record in a run, N heads, d head width, A = N·d.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convbert.engine.packing import Run

_WIDEST_HEAD = 256  # of FlashAttention 2, which also wants widths in steps of 8 and an Ampere GPU or a newer one


def attend_runs(fused: Tensor, runs: list[Run], *, n_heads: int, out: Tensor) -> None:
    """Attention of each run of equal lengths, written into ``out``.

    Args:
        fused: (T, …) whose first 3A columns are queries, keys and values.
        out: (T, A).
    """
    width = out.shape[1]
    for run in runs:
        rows = slice(run.first_row, run.first_row + run.n_records * run.length)
        heads = fused[rows, : 3 * width].view(run.n_records, run.length, 3, n_heads, -1)
        q, k, v = (heads[:, :, part].transpose(1, 2) for part in range(3))  # (R, N, L, d)
        k, v = k[:, :, : run.n_attended], v[:, :, : run.n_attended]
        if fused.dtype == torch.float16:  # in which some processors would sum
            q, k, v = q.float(), k.float(), v.float()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (R, L, N, d)
        out[rows].view(run.n_records, run.length, n_heads, -1).copy_(attended)


def attend_at_once(fused: Tensor, offsets: Tensor, *, longest: int, n_heads: int, width: int) -> Tensor:
    """Attention of all records in one call, where ``has_kernel`` allows it.

    Args:
        fused: (T, …) whose first 3A columns are queries, keys and values.
        offsets: (R + 1,) int32 first row of each record.
        longest: tokens of the longest.
        width: A.

    Returns:
        (T, A).
    """
    attend: Any = _at_once()
    q, k, v = fused[:, : 3 * width].view(len(fused), 3, n_heads, -1).unbind(1)  # (T, N, d)
    return attend(q, k, v, offsets, offsets, longest, longest).flatten(1)


def has_kernel(device: torch.device, dtype: torch.dtype, *, head_width: int) -> bool:
    """Whether torch attends to records of any lengths in one call on this device."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_width % 8 == 0
        and head_width <= _WIDEST_HEAD
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
        and _at_once() is not None
    )


@cache
def _at_once() -> Callable[..., Any] | None:
    """torch's attention of records of any lengths, which it has from 2.10 on; importing it takes seconds."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
