"""Each brick against a formula written out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convbert import layers

BATCH, LENGTH, WIDTH, HEADS, HEAD_WIDTH = 2, 7, 12, 3, 2


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("n_taps", [1, 3, 9])
def test_dynamic_convolution_is_a_sum_over_each_tokens_span(n_taps: int) -> None:
    kernels = torch.rand(BATCH, LENGTH, HEADS, n_taps)
    values = torch.rand(BATCH, LENGTH, HEADS, HEAD_WIDTH)
    expected = torch.zeros_like(values)
    for token, tap in itertools.product(range(LENGTH), range(n_taps)):
        source = token + tap - n_taps // 2
        if 0 <= source < LENGTH:
            expected[:, token] += kernels[:, token, :, tap, None] * values[:, source]
    torch.testing.assert_close(layers.dynamic_convolution(kernels, values), expected)


def test_separable_convolution_is_depthwise_then_pointwise() -> None:
    layer = layers.SeparableConv1d(in_width=WIDTH, out_width=5, kernel_size=3)
    nn.init.normal_(layer.bias)
    hidden = torch.rand(BATCH, LENGTH, WIDTH)
    padded = F.pad(hidden, (0, 0, 1, 1))
    depthwise = sum(padded[:, tap : tap + LENGTH] * layer.depthwise.weight[:, 0, tap] for tap in range(3))
    expected = depthwise @ layer.pointwise.weight[:, :, 0].T + layer.bias[:, 0]
    torch.testing.assert_close(layer(hidden), expected)


@pytest.mark.parametrize("n_groups", [1, 2, 3, 6])
def test_grouped_linear_is_a_block_diagonal_product(n_groups: int) -> None:
    layer = layers.GroupedLinear(WIDTH, 18, n_groups)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.rand(BATCH, LENGTH, WIDTH)
    torch.testing.assert_close(layer(x), x @ torch.block_diag(*layer.weight) + layer.bias)


def test_one_group_is_a_dense_layer() -> None:
    assert isinstance(layers.linear(4, 6, n_groups=1), nn.Linear)
    assert isinstance(layers.linear(4, 6, n_groups=2), layers.GroupedLinear)


def test_attention_heads_stand_before_convolution_heads() -> None:
    mixed = layers.MixedSelfAttention(
        hidden_width=WIDTH, n_heads=HEADS, head_width=HEAD_WIDTH, kernel_size=3, attention_dropout=0
    )
    nn.init.zeros_(mixed.value.weight)
    nn.init.ones_(mixed.value.bias)
    nn.init.zeros_(mixed.conv_out_layer.weight)
    nn.init.constant_(mixed.conv_out_layer.bias, 2.0)
    context, probabilities = mixed(torch.rand(BATCH, LENGTH, WIDTH), None)
    half = HEADS * HEAD_WIDTH
    torch.testing.assert_close(context[..., :half], torch.ones(BATCH, LENGTH, half))  # a mean of ones
    inner = context[:, 1:-1, half:]  # where the span lies inside the sequence, a mean of twos
    torch.testing.assert_close(inner, torch.full_like(inner, 2.0))
    assert probabilities.shape == (BATCH, HEADS, LENGTH, LENGTH)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(BATCH, HEADS, LENGTH))


def test_encoder_keeps_what_it_is_asked_for() -> None:
    class Doubling(nn.Module):
        def forward(self, hidden: torch.Tensor, mask: None) -> tuple[torch.Tensor, torch.Tensor]:
            return 2 * hidden, hidden.sum()

    encoder = layers.Encoder([Doubling(), Doubling()])  # type: ignore[list-item]
    hidden = torch.ones(1)
    last, states, attentions = encoder(hidden, None, keep_hidden_states=True, keep_attentions=True)
    assert (last.item(), [s.item() for s in states], [a.item() for a in attentions]) == (4, [1, 2, 4], [1, 2])
    assert encoder(hidden, None, keep_hidden_states=False, keep_attentions=False)[1:] == (None, None)


@pytest.mark.parametrize(
    ("kind", "expected"), [("first", [0.0, 1]), ("last", [4.0, 5]), ("cls_index", [4.0, 5]), ("mean", [2.0, 3])]
)
def test_sequence_summary(kind: str, expected: list[float]) -> None:
    summary = layers.SequenceSummary(
        hidden_width=2, kind=kind, projected_width=None, activation=torch.neg, first_dropout=0, last_dropout=0
    )
    assert summary(torch.arange(6.0).view(1, 3, 2)).tolist() == [[-value for value in expected]]
