"""Queries, keys and values of a packed batch in, each record's own attention out, without padding.

Shapes: T tokens, R records of one length L, N heads, d head width, A = N·d.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from convbert.engine.packing import Run


def attend(fused: Tensor, runs: list[Run], *, n_heads: int, out: Tensor) -> None:
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
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (R, L, N, d)
        out[rows].view(run.n_records, run.length, n_heads, -1).copy_(attended)
