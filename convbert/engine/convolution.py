"""Both convolutions of a block over a packed batch, in which no record sees its neighbours.

Each has two forms: passes that torch has fast kernels for, on a CPU, and one function of rows for the compiler to
fuse, on a GPU.

Shapes: T tokens, G gapped rows, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from convbert.engine import compiler
from convbert.engine.compiler import RowKernel


class DepthwiseConvolution:
    """One kernel a channel, on a CPU over a buffer with zero rows between the records.

    Args:
        weight: (H, 1, K), as in a checkpoint.
    """

    def __init__(self, weight: Tensor) -> None:
        self.n_taps = weight.shape[-1]
        self.taps = weight[:, 0].T.contiguous()  # (K, H)
        # Rows as pixels of a one-line image whose channels lie innermost: the form that oneDNN has a depthwise
        # kernel for.
        self.image = weight[:, :, None].contiguous(memory_format=torch.channels_last)  # (H, 1, 1, K)

    def __call__(self, x: Tensor, gapped_rows: Tensor, n_gapped: int, is_inside: Tensor) -> Tensor:
        """(T, H) -> (T, H).

        Args:
            gapped_rows: (T,) row of each token in the buffer.
            n_gapped: G, its rows.
            is_inside: (T, K) whether each tap falls on the token's own record, as ``taps_of`` gives it.
        """
        if self.n_taps == 1:
            return x * self.taps[0]
        if compiler.is_fused(x.device):
            return _DEPTHWISE_TAPS(x, self.taps, is_inside)
        gapped = x.new_zeros(n_gapped, x.shape[1]).index_copy_(0, gapped_rows, x)  # (G, H)
        pixels = gapped[None, None].permute(0, 3, 1, 2)  # (1, H, 1, G)
        convolved = F.conv2d(pixels, self.image, groups=x.shape[1])  # (1, H, 1, G - K + 1)
        rows = convolved.permute(0, 2, 3, 1)[0, 0]
        return rows.index_select(0, gapped_rows - self.n_taps // 2)


def taps_of(is_inside: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (T, K) of the taps as the convolutions of its device want it: a factor, or a condition."""
    return is_inside if compiler.is_fused(is_inside.device) else is_inside.to(dtype)


def dynamic_convolution(logits: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    """Each token's own kernels over its span: out[t, n] = Σ_j softmax(logits)[t, n, j] · values[t + j - K//2, n].

    Zero outside the record. Paper equations 2 and 5.

    Args:
        logits: (T, N, K).
        values: (T, A).
        is_inside: (T, K) whether each tap falls on the token's own record, as ``taps_of`` gives it.

    Returns:
        (T, A).
    """
    return (_DYNAMIC_TAPS if compiler.is_fused(values.device) else _dynamic_passes)(logits, values, is_inside)


def _dynamic_passes(logits: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    n_tokens, n_heads, n_taps = logits.shape
    kernels = logits.softmax(-1).mul_(is_inside[:, None])
    padded = values.new_zeros(n_tokens + n_taps - 1, n_heads, values.shape[1] // n_heads)  # (T + K - 1, N, d)
    padded[n_taps // 2 : n_taps // 2 + n_tokens] = values.view(n_tokens, n_heads, -1)
    mixed = padded[:n_tokens] * kernels[..., :1]
    for tap in range(1, n_taps):
        mixed.addcmul_(padded[tap : tap + n_tokens], kernels[..., tap : tap + 1])
    if not mixed.sum(dtype=torch.float32).isfinite():  # 0 · inf is nan: spare the records beside one that overflows
        return dynamic_taps(logits, values, is_inside.bool())
    return mixed.flatten(1)


def dynamic_taps(logits: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    """``dynamic_convolution`` as one function of rows, summed in float32."""
    kernels = logits.float().softmax(-1).unbind(-1)  # K times (T, N)
    mixed = torch.zeros((), device=values.device)
    for own, reached in zip(kernels, _reached(values, is_inside), strict=True):
        mixed = mixed + reached.unflatten(1, (logits.shape[1], -1)) * own[..., None]
    return mixed.flatten(1).to(values.dtype)


def depthwise_taps(x: Tensor, taps: Tensor, is_inside: Tensor) -> Tensor:
    """``DepthwiseConvolution`` as one function of rows, summed in float32; ``taps`` is (K, H)."""
    mixed = torch.zeros((), device=x.device)
    for tap, reached in zip(taps.float(), _reached(x, is_inside), strict=True):
        mixed = mixed + reached * tap
    return mixed.to(x.dtype)


def _reached(x: Tensor, is_inside: Tensor) -> Iterator[Tensor]:
    """For each tap, the rows (T, …) that it falls on, in float32; zeros where that is another record's."""
    n_tokens, n_taps = is_inside.shape
    own = torch.arange(n_tokens, device=x.device)
    for tap in range(n_taps):
        rows = (own + (tap - n_taps // 2)).clamp(0, n_tokens - 1)
        yield torch.where(is_inside[:, tap, None], x[rows], 0).float()


_DYNAMIC_TAPS = RowKernel(dynamic_taps, dynamic=None)
_DEPTHWISE_TAPS = RowKernel(depthwise_taps, dynamic=None)
