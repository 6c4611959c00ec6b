"""Both convolutions of a block over a packed batch, in which no record sees its neighbours.

Shapes: T tokens, G gapped rows, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DepthwiseConvolution:
    """One kernel a channel, over a buffer with zero rows between the records.

    Args:
        weight: (H, 1, K), as in a checkpoint.
    """

    def __init__(self, weight: Tensor) -> None:
        self.n_taps = weight.shape[-1]
        # Rows as pixels of a one-line image whose channels lie innermost: the form that oneDNN and cuDNN
        # have a depthwise kernel for.
        self.weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)  # (H, 1, 1, K)

    def __call__(self, x: Tensor, gapped_rows: Tensor, n_gapped: int) -> Tensor:
        """(T, H) -> (T, H).

        Args:
            gapped_rows: (T,) row of each token in the buffer.
            n_gapped: G, its rows.
        """
        if self.n_taps == 1:
            return x * self.weight.view(-1)
        gapped = x.new_zeros(n_gapped, x.shape[1]).index_copy_(0, gapped_rows, x)  # (G, H)
        image = gapped[None, None].permute(0, 3, 1, 2)  # (1, H, 1, G)
        convolved = F.conv2d(image, self.weight, groups=x.shape[1])  # (1, H, 1, G - K + 1)
        rows = convolved.permute(0, 2, 3, 1)[0, 0]
        return rows.index_select(0, gapped_rows - self.n_taps // 2)


def dynamic_convolution(kernels: Tensor, values: Tensor, is_inside: Tensor) -> Tensor:
    """Each token's own kernels over its span: out[t, n] = Σ_j kernels[t, n, j] · values[t + j - K//2, n].

    Zero outside the record. Paper equations 2 and 5.

    Args:
        kernels: (T, N, K), softmax over the taps already applied; overwritten.
        values: (T, A).
        is_inside: (T, K) whether each tap falls on the token's own record.

    Returns:
        (T, A).
    """
    n_tokens, n_heads, n_taps = kernels.shape
    kernels.mul_(is_inside[:, None])
    padded = values.new_zeros(n_tokens + n_taps - 1, n_heads, values.shape[1] // n_heads)  # (T + K - 1, N, d)
    padded[n_taps // 2 : n_taps // 2 + n_tokens] = values.view(n_tokens, n_heads, -1)
    mixed = padded[:n_tokens] * kernels[..., :1]
    for tap in range(1, n_taps):
        mixed.addcmul_(padded[tap : tap + n_tokens], kernels[..., tap : tap + 1])
    return mixed.flatten(1)
