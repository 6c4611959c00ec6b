"""A packed batch in, each token's hidden state as if its record were alone out.

The same weights as convbert.layers, another way through them: matrix products run over the tokens and
nothing else, attention over runs of equal length, both convolutions over a buffer with zero rows
between the records. No record sees padding or a neighbour.

Shapes: T tokens, G gapped rows, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convbert import layers
from convbert.activations import ACTIVATIONS
from convbert.engine.packing import Layout, Packed, Run, layout
from convbert.models import ConvBertModel

_Module = TypeVar("_Module", bound=nn.Module)


class _Rows(NamedTuple):
    """A layout on the device."""

    gapped: Tensor  # (T,)
    n_gapped: int
    runs: list[Run]


class PackedEncoder:
    """ConvBERT's encoder over packed batches, for inference.

    Args:
        model: the encoder; its weights are copied to the device and fused there, the model is left as it is.
        device: where to compute.
        dtype: type to compute in.
    """

    def __init__(self, model: ConvBertModel, *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.config = model.config
        self.device = device
        self.embeddings = placed(model.embeddings, device, dtype)
        self.project = placed(model.embeddings_project, device, dtype) if hasattr(model, "embeddings_project") else None
        self.layers = [_PackedLayer(layer, device=device, dtype=dtype, model=model) for layer in model.encoder.layer]

    @torch.inference_mode()
    def __call__(self, batch: Packed) -> Tensor:
        """Last hidden states (T, H) on the device, in the order of the batch.

        Raises:
            InputError: a record without tokens or longer than ``max_position_embeddings``.
        """
        where = layout(
            batch.lengths,
            reach=self.config.conv_kernel_size // 2,
            max_length=self.config.max_position_embeddings,
            attended=batch.attended,
        )
        hidden = self._embed(batch, where)  # (T, E)
        if self.project is not None:
            hidden = self.project(hidden)  # (T, E) -> (T, H)
        rows = _Rows(self._send(where.gapped_rows), where.n_gapped_rows, where.runs)
        for layer in self.layers:
            hidden = layer(hidden, rows)
        return hidden

    def _embed(self, batch: Packed, where: Layout) -> Tensor:
        words = self.embeddings.word_embeddings(self._send(batch.input_ids))  # (T, E)
        types = torch.zeros(len(batch.input_ids), dtype=torch.long, device=self.device)
        if batch.token_type_ids is not None:
            types = self._send(batch.token_type_ids)
        return self.embeddings(words, self._send(where.positions), types)

    def _send(self, array: object) -> Tensor:
        return torch.as_tensor(array, dtype=torch.long).to(self.device, non_blocking=True)


class _PackedLayer:
    """One block over flat rows."""

    def __init__(self, layer: Any, *, device: torch.device, dtype: torch.dtype, model: ConvBertModel) -> None:
        config = model.config
        self.n_heads, self.head_width, self.width = config.n_mixed_heads, config.head_width, config.attention_width
        mixed: layers.MixedSelfAttention = layer.attention.self
        fused = [mixed.query, mixed.key, mixed.value, mixed.conv_out_layer]
        self.fused_weight = torch.cat([part.weight.detach() for part in fused]).to(device, dtype)  # (4A, H)
        self.fused_bias = torch.cat([part.bias.detach() for part in fused]).to(device, dtype)
        separable = mixed.key_conv_attn_layer
        depthwise = separable.depthwise.weight.detach()[:, 0]  # (H, 1, K) -> (H, K)
        self.depthwise = depthwise.t().contiguous().to(device, dtype)  # (K, H)
        self.pointwise = separable.pointwise.weight.detach()[..., 0].contiguous().to(device, dtype)  # (A, H)
        self.pointwise_bias = separable.bias.detach()[:, 0].to(device, dtype)  # (A,)
        self.kernel_layer = placed(mixed.conv_kernel_layer, device, dtype)
        self.attention_output = placed(layer.attention.output, device, dtype)
        self.intermediate_dense = placed(layer.intermediate.dense, device, dtype)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = placed(layer.output, device, dtype)

    def __call__(self, hidden: Tensor, rows: _Rows) -> Tensor:
        """(T, H) -> (T, H)."""
        fused = F.linear(hidden, self.fused_weight, self.fused_bias)  # (T, H) -> (T, 4A)
        context = torch.empty(len(hidden), 2 * self.width, dtype=hidden.dtype, device=hidden.device)
        self._attend(fused, rows.runs, out=context[:, : self.width])
        query, conv_values = fused[:, : self.width], fused[:, 3 * self.width :]
        kernels = self._kernels(hidden, query, rows)  # (T, N, K)
        context[:, self.width :] = self._convolve(kernels, conv_values, rows)
        attended = self.attention_output(context, hidden)
        output: Tensor = self.output(self.activation(self.intermediate_dense(attended)), attended)
        return output

    def _attend(self, fused: Tensor, runs: list[Run], *, out: Tensor) -> None:
        """Attention of each run of equal lengths, written into ``out`` (T, A)."""
        for run in runs:
            rows = slice(run.first_row, run.first_row + run.n_records * run.length)
            heads = fused[rows].view(run.n_records, run.length, 4, self.n_heads, self.head_width)
            q, k, v = (heads[:, :, part].transpose(1, 2) for part in range(3))  # (R, N, L, d)
            k, v = k[:, :, : run.n_attended], v[:, :, : run.n_attended]
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (R, L, N, d)
            out[rows].view(run.n_records, run.length, self.n_heads, self.head_width).copy_(attended)

    def _kernels(self, hidden: Tensor, query: Tensor, rows: _Rows) -> Tensor:
        """Each token's convolution kernels (T, N, K), from its span (paper equation 4)."""
        gapped = _spread(hidden, rows)  # (G, H)
        n_taps = len(self.depthwise)
        n_out = rows.n_gapped - n_taps + 1
        spans = gapped[:n_out] * self.depthwise[0]
        for tap in range(1, n_taps):
            spans.addcmul_(gapped[tap : tap + n_out], self.depthwise[tap])
        centres = rows.gapped - n_taps // 2
        span_key = F.linear(spans[centres], self.pointwise, self.pointwise_bias)  # (T, H) -> (T, A)
        kernels: Tensor = self.kernel_layer(span_key * query)  # (T, A) -> (T, N·K)
        return kernels.view(-1, self.n_heads, n_taps).softmax(-1)

    def _convolve(self, kernels: Tensor, values: Tensor, rows: _Rows) -> Tensor:
        """Each token's kernels over the values of its span: (T, N, K), (T, A) -> (T, A)."""
        n_taps = kernels.shape[-1]
        n_out = rows.n_gapped - n_taps + 1
        centres = rows.gapped - n_taps // 2
        gapped = _spread(values, rows).view(-1, self.n_heads, self.head_width)  # (G, N, d)
        spread = kernels.new_zeros(n_out, self.n_heads, n_taps)
        spread[centres] = kernels
        mixed = gapped[:n_out] * spread[..., :1]
        for tap in range(1, n_taps):
            mixed.addcmul_(gapped[tap : tap + n_out], spread[..., tap : tap + 1])
        return mixed[centres].flatten(1)


def _spread(x: Tensor, rows: _Rows) -> Tensor:
    """Rows (T, …) into a buffer (G, …) with zero rows between the records."""
    gapped = x.new_zeros(rows.n_gapped, *x.shape[1:])
    gapped[rows.gapped] = x
    return gapped


def placed(module: _Module, device: torch.device, dtype: torch.dtype) -> _Module:
    """A copy of a module on the device, for inference."""
    return copy.deepcopy(module).to(device=device, dtype=dtype).eval().requires_grad_(False)
