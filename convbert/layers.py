"""The bricks of ConvBERT (Jiang et al. 2020, https://arxiv.org/abs/2008.02496), readable and trainable.

These modules give Transformers' numbers for the same padded batch, its leak of padding through the
convolutions included: they are the oracle and the training path. convbert.engine gives the numbers of
each record alone. Attribute names are the checkpoint's key names.

Shapes: B batch, L sequence length, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convbert.activations import Activation


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_position_embeddings: int,
        type_vocab_size: int,
        embedding_width: int,
        padding_id: int | None,
        layer_norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, embedding_width, padding_idx=padding_id)
        self.position_embeddings = nn.Embedding(max_position_embeddings, embedding_width)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, embedding_width)
        self.LayerNorm = nn.LayerNorm(embedding_width, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """words (B, L, E) as embedded, ids (B, L) or (1, L) -> (B, L, E)."""
        summed = words + self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(summed))


class SeparableConv1d(nn.Module):
    """Depthwise, then pointwise convolution over the sequence: the span-aware key of paper equation 4."""

    def __init__(self, *, in_width: int, out_width: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            in_width, in_width, kernel_size, padding=kernel_size // 2, groups=in_width, bias=False
        )
        self.pointwise = nn.Conv1d(in_width, out_width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_width, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, A)."""
        channels_first = hidden.transpose(1, 2)
        return (self.pointwise(self.depthwise(channels_first)) + self.bias).transpose(1, 2)


class GroupedLinear(nn.Module):
    """A linear layer whose matrix is block-diagonal: x · diag(W₁ … W_G) + b, paper section 4.2."""

    def __init__(self, in_width: int, out_width: int, n_groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_groups, in_width // n_groups, out_width // n_groups))
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_width) -> (…, out_width)."""
        groups = x.unflatten(-1, (self.weight.shape[0], -1))  # (…, G, in/G)
        return torch.einsum("...gi,gio->...go", groups, self.weight).flatten(-2) + self.bias


def linear(in_width: int, out_width: int, *, n_groups: int) -> nn.Module:
    """A dense layer, or a grouped one where ``n_groups`` is above 1."""
    return nn.Linear(in_width, out_width) if n_groups == 1 else GroupedLinear(in_width, out_width, n_groups)


def dynamic_convolution(kernels: Tensor, values: Tensor) -> Tensor:
    """Each position's own kernel over its span: out[t, n] = Σ_j kernels[t, n, j] · values[t + j - K//2, n].

    Zero outside the sequence. Paper equations 2 and 5.

    Args:
        kernels: (B, L, N, K), softmax over the taps already applied.
        values: (B, L, N, d).

    Returns:
        (B, L, N, d).
    """
    n_taps = kernels.shape[-1]
    reach = n_taps // 2
    padded = F.pad(values, (0, 0, 0, 0, reach, reach))  # (B, L + K - 1, N, d)
    spans = padded.unfold(1, n_taps, 1)  # (B, L, N, d, K), a view
    return torch.einsum("blndk,blnk->blnd", spans, kernels)


class MixedSelfAttention(nn.Module):
    """Self-attention heads beside span-based dynamic convolution heads, paper section 3.3."""

    def __init__(
        self, *, hidden_width: int, n_heads: int, head_width: int, kernel_size: int, attention_dropout: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        attention_width = n_heads * head_width
        self.query = nn.Linear(hidden_width, attention_width)
        self.key = nn.Linear(hidden_width, attention_width)
        self.value = nn.Linear(hidden_width, attention_width)
        self.key_conv_attn_layer = SeparableConv1d(
            in_width=hidden_width, out_width=attention_width, kernel_size=kernel_size
        )
        self.conv_kernel_layer = nn.Linear(attention_width, n_heads * kernel_size)
        self.conv_out_layer = nn.Linear(hidden_width, attention_width)
        self.dropout = nn.Dropout(attention_dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden (B, L, H), additive mask broadcast to (B, N, L, L) -> context (B, L, H), probabilities."""
        query = self.query(hidden)  # (B, L, A), unscaled: the convolution's kernels use it as it is
        context, probabilities = self._attend(query, self.key(hidden), self.value(hidden), mask)
        span_key = self.key_conv_attn_layer(hidden)  # (B, L, A)
        kernels = self._split(self.conv_kernel_layer(span_key * query)).softmax(-1)  # (B, L, N, K)
        values = self._split(self.conv_out_layer(hidden))  # (B, L, N, d)
        convolved = dynamic_convolution(kernels, values)
        return torch.cat([context, convolved], dim=2).flatten(2), probabilities  # (B, L, 2N, d) -> (B, L, H)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1))  # (B, L, A) -> (B, L, N, d)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = (self._split(x).transpose(1, 2) for x in (query, key, value))  # (B, N, L, d)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + mask
        probabilities = self.dropout(scores.softmax(-1))
        return (probabilities @ v).transpose(1, 2), probabilities  # (B, L, N, d)


class ResidualOutput(nn.Module):
    """Projection, dropout, residual and layer normalisation: how each half of a block ends."""

    def __init__(
        self, *, in_width: int, hidden_width: int, n_groups: int, layer_norm_eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.dense = linear(in_width, hidden_width, n_groups=n_groups)
        self.LayerNorm = nn.LayerNorm(hidden_width, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, L, in_width), (B, L, H) -> (B, L, H)."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Mixed attention and its residual output."""

    def __init__(self, *, mixed: MixedSelfAttention, output: ResidualOutput) -> None:
        super().__init__()
        self.self = mixed
        self.output = output

    def forward(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, H) -> (B, L, H) and probabilities (B, N, L, L)."""
        context, probabilities = self.self(hidden, mask)
        return self.output(context, hidden), probabilities


class Intermediate(nn.Module):
    """The widening half of the feed-forward block."""

    def __init__(self, *, hidden_width: int, intermediate_width: int, n_groups: int, activation: Activation) -> None:
        super().__init__()
        self.dense = linear(hidden_width, intermediate_width, n_groups=n_groups)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, intermediate_width)."""
        return self.activation(self.dense(hidden))


class EncoderLayer(nn.Module):
    """One block: mixed attention, then feed-forward."""

    def __init__(self, *, attention: Attention, intermediate: Intermediate, output: ResidualOutput) -> None:
        super().__init__()
        self.attention = attention
        self.intermediate = intermediate
        self.output = output

    def forward(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, H) -> (B, L, H) and probabilities (B, N, L, L)."""
        attended, probabilities = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended), probabilities


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)
        self.gradient_checkpointing = False

    def forward(
        self, hidden: Tensor, mask: Tensor | None, *, keep_hidden_states: bool, keep_attentions: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """(B, L, H) -> (B, L, H), and where they are kept: the states before the first and after each
        block, and each block's probabilities (B, N, L, L)."""
        hidden_states, attentions = [hidden], []
        for layer in self.layer:
            if self.gradient_checkpointing and self.training:
                hidden, probabilities = checkpoint(layer, hidden, mask, use_reentrant=False)
            else:
                hidden, probabilities = layer(hidden, mask)
            if keep_hidden_states:
                hidden_states.append(hidden)
            if keep_attentions:
                attentions.append(probabilities)
        return (
            hidden,
            tuple(hidden_states) if keep_hidden_states else None,
            tuple(attentions) if keep_attentions else None,
        )


class ClassificationHead(nn.Module):
    """First token in, one logit a label out."""

    def __init__(self, *, hidden_width: int, n_labels: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_width, hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_width, n_labels)
        self.activation = activation

    def forward(self, first_token: Tensor) -> Tensor:
        """(B, H) -> (B, n_labels)."""
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(first_token)))))


class GeneratorPredictions(nn.Module):
    """Hidden states back to the width of the embeddings, before the product with the word table."""

    def __init__(self, *, hidden_width: int, embedding_width: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(embedding_width, eps=layer_norm_eps)
        self.dense = nn.Linear(hidden_width, embedding_width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, E). Always GELU, whatever ``hidden_act`` is, as in Transformers."""
        return self.LayerNorm(F.gelu(self.dense(hidden)))


SUMMARIES = ("last", "first", "mean", "cls_index")
"""How a sequence becomes one vector; ``cls_index`` without an index is the last token."""


class SequenceSummary(nn.Module):
    """A sequence's hidden states in, one vector out: the step before the score of a choice.

    Args:
        kind: one of SUMMARIES. The last token is [PAD] where a text is padded on the right, and the mean
            counts padding: both as in Transformers.
        projected_width: width of a projection after that; None leaves it out.
    """

    def __init__(
        self,
        *,
        hidden_width: int,
        kind: str,
        projected_width: int | None,
        activation: Activation,
        first_dropout: float,
        last_dropout: float,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.summary = nn.Identity() if projected_width is None else nn.Linear(hidden_width, projected_width)
        self.activation = activation
        self.first_dropout = nn.Dropout(first_dropout)
        self.last_dropout = nn.Dropout(last_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, projected_width), or (B, H) where nothing is projected."""
        match self.kind:
            case "first":
                vector = hidden[:, 0]
            case "mean":
                vector = hidden.mean(1)
            case _:
                vector = hidden[:, -1]
        return self.last_dropout(self.activation(self.summary(self.first_dropout(vector))))
