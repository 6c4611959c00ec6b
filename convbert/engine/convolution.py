"""Both convolutions of a block over a packed batch, in which no record sees its neighbours.

Each has two forms: passes that torch has fast kernels for, and one function of rows, which is one kernel on a GPU and
one that torch compiles on a CPU.

Shapes: T tokens, G gapped rows, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from convbert.engine import compiler
from convbert.engine.compiler import Fused
from convbert.engine.linear import Linear

_MOST_LOGITS = 512  # of a token: for more Triton compiles half a minute or more


class DepthwiseConvolution:
    """One kernel a channel, in passes over a buffer with zero rows between the records.

    Args:
        weight: (H, 1, K), as in a checkpoint.
        is_fused: as one function of rows.
    """

    def __init__(self, weight: Tensor, *, is_fused: bool) -> None:
        self.is_fused = is_fused
        self.n_taps = weight.shape[-1]
        self.taps = weight[:, 0].T.contiguous()  # (K, H)
        # Rows as pixels of a one-line image whose channels lie innermost: the form that oneDNN has a depthwise
        # kernel for.
        self.image = weight[:, :, None].contiguous(memory_format=torch.channels_last)  # (H, 1, 1, K)

    def __call__(self, x: Tensor, gapped_rows: Tensor | None, n_gapped: int, sides: Tensor) -> Tensor:
        """(T, H) -> (T, H).

        Args:
            gapped_rows: (T,) row of each token in the buffer; None for a function of rows, which needs none.
            n_gapped: G, its rows.
            sides: as ``sides_of`` gives it.
        """
        if self.n_taps == 1:
            return x * self.taps[0]
        if self.is_fused:
            return _depthwise_taps(x, self.taps, sides)
        assert gapped_rows is not None
        gapped = x.new_zeros(n_gapped, x.shape[1]).index_copy_(0, gapped_rows, x)  # (G, H)
        pixels = gapped[None, None].permute(0, 3, 1, 2)  # (1, H, 1, G)
        convolved = F.conv2d(pixels, self.image, groups=x.shape[1])  # (1, H, 1, G - K + 1)
        rows = convolved.permute(0, 2, 3, 1)[0, 0]
        return rows.index_select(0, gapped_rows - self.n_taps // 2)


def sides_of(sides: Tensor, n_taps: int, dtype: torch.dtype, *, is_fused: bool) -> Tensor:
    """Where each token's record begins and ends, as the convolutions want it.

    Args:
        sides: (T, 2) how many tokens of its own record stand before each token and behind it.

    Returns:
        The same for functions of rows; for passes the mask (T, K) of its taps, as factors.
    """
    return sides if is_fused else _is_inside(sides, n_taps).to(dtype)


def _is_inside(sides: Tensor, n_taps: int) -> Tensor:
    """(T, 2) -> (T, K) whether each tap falls on the token's own record."""
    steps = torch.arange(n_taps, device=sides.device) - n_taps // 2
    return (steps >= -sides[:, :1]) & (steps <= sides[:, 1:])


class KernelLogits:
    """The logits of each token's own kernels, from its span's key and its query (paper equation 4).

    Args:
        weight: (N·K, A).
        bias: (N·K,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.product = Linear(weight, bias)

    def __call__(self, span_key: Tensor, query: Tensor) -> Tensor:
        """Twice (T, A) -> (T, N·K)."""
        if compiler.is_fused(span_key.device) and len(self.weight) <= _MOST_LOGITS:
            return _kernel_logits(span_key, query, self.weight, self.bias)
        return self.product(span_key * query)


def kernel_logits(span_key: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``KernelLogits`` as one function of rows."""
    return F.linear(span_key * query, weight, bias)


def mix_into(
    context: Tensor,
    logits: Tensor,
    values: Tensor,
    sides: Tensor,
    attended: Tensor | None = None,
    *,
    n_heads: int,
    is_fused: bool,
) -> None:
    """Mix each token's span by its own kernels into the right half of ``context``. Paper equations 2 and 5:

    out[t, n] = Σ_j softmax(logits)[t, n, j] · values[t + j - K//2, n], zero outside the record.

    Args:
        context: (T, 2A).
        logits: (T, N·K).
        values: (T, A).
        sides: as ``sides_of`` gives it.
        attended: (T, A) for the left half, or None where it is there, as passes want it.
        is_fused: as one function of rows.
    """
    if is_fused:
        _mixed_taps(context, logits, values, sides, attended, n_heads)
    else:
        context[:, values.shape[1] :] = _dynamic_passes(logits.unflatten(1, (n_heads, -1)), values, sides)


def _dynamic_passes(logits: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    n_tokens, n_heads, n_taps = logits.shape
    kernels = logits.softmax(-1).mul_(is_inside[:, None])
    padded = values.new_zeros(n_tokens + n_taps - 1, n_heads, values.shape[1] // n_heads)  # (T + K - 1, N, d)
    padded[n_taps // 2 : n_taps // 2 + n_tokens] = values.view(n_tokens, n_heads, -1)
    mixed = padded[:n_tokens] * kernels[..., :1]
    for tap in range(1, n_taps):
        mixed.addcmul_(padded[tap : tap + n_tokens], kernels[..., tap : tap + 1])
    if not mixed.sum(dtype=torch.float32).isfinite():  # 0 · inf is nan: spare the records beside one that overflows
        return _dynamic_taps(logits, values, is_inside.bool())
    return mixed.flatten(1)


def mixed_taps(
    context: Tensor, logits: Tensor, values: Tensor, sides: Tensor, attended: Tensor | None, n_heads: int
) -> None:
    """``mix_into`` as one function of rows, summed in float32."""
    width, kernels = values.shape[1], logits.unflatten(1, (n_heads, -1))
    if attended is not None:
        context[:, :width] = attended
    context[:, width:] = _dynamic_taps(kernels, values, _is_inside(sides, kernels.shape[2]))


def _dynamic_taps(logits: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    kernels = logits.float().softmax(-1).unbind(-1)  # K times (T, N)
    mixed = torch.zeros((), device=values.device)
    for own, reached in zip(kernels, _reached(values, is_inside), strict=True):
        mixed = mixed + reached.unflatten(1, (logits.shape[1], -1)) * own[..., None]
    return mixed.flatten(1).to(values.dtype)


def depthwise_taps(x: Tensor, taps: Tensor, sides: Tensor) -> Tensor:
    """``DepthwiseConvolution`` as one function of rows, summed in float32; ``taps`` is (K, H)."""
    mixed = torch.zeros((), device=x.device)
    for tap, reached in zip(taps.float(), _reached(x, _is_inside(sides, len(taps))), strict=True):
        mixed = mixed + reached * tap
    return mixed.to(x.dtype)


def _reached(x: Tensor, is_inside: Tensor) -> Iterator[Tensor]:
    """For each tap, the rows (T, …) that it falls on, in float32; zeros where that is another record's."""
    n_tokens, n_taps = is_inside.shape
    own = torch.arange(n_tokens, device=x.device)
    for tap in range(n_taps):
        rows = (own + (tap - n_taps // 2)).clamp(0, n_tokens - 1)
        yield torch.where(is_inside[:, tap, None], x[rows], 0).float()


_depthwise_taps = Fused(depthwise_taps)
_kernel_logits = Fused(kernel_logits)
_mixed_taps = Fused(mixed_taps)
