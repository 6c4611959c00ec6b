"""A packed batch in, each token's hidden state as if its record were alone out.

The same weights as convbert.layers, another way through them: matrix products run over the tokens and
nothing else, attention over runs of equal length, both convolutions without seeing a neighbour. No
record sees padding or another record.

Shapes: T tokens, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from convbert import layers
from convbert.activations import ACTIVATIONS
from convbert.engine.attention import attend
from convbert.engine.convolution import DepthwiseConvolution, dynamic_convolution
from convbert.engine.linear import Linear, stacked
from convbert.engine.packing import Indices, Layout, Packed, Run, layout
from convbert.engine.precision import Kernels, kernels_for
from convbert.models import ConvBertModel

_Module = TypeVar("_Module", bound=nn.Module)


class _Rows(NamedTuple):
    """A layout on the device."""

    gapped: Tensor  # (T,)
    n_gapped: int
    is_inside: Tensor  # (T, K)
    runs: list[Run]


class PackedEncoder:
    """ConvBERT's encoder over packed batches, for inference.

    Args:
        model: the encoder; its weights are copied to the device and fused there, the model is left as it is.
        device: where to compute.
        precision: one of ``precision.PRECISIONS``.

    Attributes:
        dtype: type of the hidden states.

    Raises:
        InputError: the device does not compute in that precision.
    """

    def __init__(self, model: ConvBertModel, *, device: torch.device, precision: str = "fp32") -> None:
        kernels = kernels_for(precision, device)
        self.config = model.config
        self.device, self.dtype = device, kernels.dtype
        self.embeddings = placed(model.embeddings, device, self.dtype)
        project = getattr(model, "embeddings_project", None)
        self.project = None if project is None else placed(project, device, self.dtype)
        self.layers = [_PackedLayer(layer, config=model.config, kernels=kernels) for layer in model.encoder.layer]

    @torch.inference_mode()
    def __call__(self, batch: Packed, wanted: Indices | None = None) -> Tensor:
        """Last hidden states (T, H) on the device, in the order of the batch.

        Args:
            wanted: tokens whose states will be read, ascending; the states of the others are 0. None for all.

        Raises:
            InputError: a record without tokens or longer than ``max_position_embeddings``.
        """
        where = layout(
            batch.lengths,
            n_taps=self.config.conv_kernel_size,
            max_length=self.config.max_position_embeddings,
            attended=batch.attended,
        )
        hidden = self._embed(batch, where)  # (T, E)
        if self.project is not None:
            hidden = self.project(hidden)  # (T, E) -> (T, H)
        is_inside = torch.as_tensor(where.is_inside).to(self.device, self.dtype, non_blocking=True)
        rows = _Rows(self._send(where.gapped_rows), where.n_gapped_rows, is_inside, where.runs)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, rows)
        if wanted is None:
            return self.layers[-1](hidden, rows)
        kept = self._send(wanted)
        return torch.zeros_like(hidden).index_copy_(0, kept, self.layers[-1](hidden, rows, kept))

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

    def __init__(self, layer: Any, *, config: Any, kernels: Kernels) -> None:
        self.n_heads, self.width = config.n_mixed_heads, config.attention_width
        mixed: layers.MixedSelfAttention = layer.attention.self
        separable = mixed.key_conv_attn_layer
        self.fused = kernels.linear(*stacked([mixed.query, mixed.key, mixed.value, mixed.conv_out_layer]))
        self.depthwise = DepthwiseConvolution(kernels.placed(separable.depthwise.weight))
        self.pointwise = kernels.linear(separable.pointwise.weight.detach()[..., 0], separable.bias.detach()[:, 0])
        self.kernel_layer = Linear(
            kernels.placed(mixed.conv_kernel_layer.weight), kernels.placed(mixed.conv_kernel_layer.bias)
        )
        self.attention_output = kernels.residual(layer.attention.output)
        self.feed_forward = kernels.feed_forward(layer, ACTIVATIONS[config.hidden_act])

    def __call__(self, hidden: Tensor, rows: _Rows, wanted: Tensor | None = None) -> Tensor:
        """(T, H) -> (T, H), or the wanted rows of that: what follows the mixing of tokens is needed for no others."""
        fused = self.fused(hidden)  # (T, H) -> (T, 4A)
        query, conv_values = fused[:, : self.width], fused[:, 3 * self.width :]
        context = hidden.new_empty(len(hidden), 2 * self.width)
        attend(fused, rows.runs, n_heads=self.n_heads, out=context[:, : self.width])
        kernels = self._kernels(hidden, query, rows)
        context[:, self.width :] = dynamic_convolution(kernels, conv_values, rows.is_inside)
        if wanted is not None:
            context, hidden = context.index_select(0, wanted), hidden.index_select(0, wanted)
        return self.feed_forward(self.attention_output(context, hidden))

    def _kernels(self, hidden: Tensor, query: Tensor, rows: _Rows) -> Tensor:
        """Each token's convolution kernels (T, N, K), from its span (paper equation 4)."""
        spans = self.depthwise(hidden, rows.gapped, rows.n_gapped)  # (T, H)
        span_key = self.pointwise(spans)  # (T, H) -> (T, A)
        kernels = self.kernel_layer(span_key * query)  # (T, A) -> (T, N·K)
        return kernels.view(len(hidden), self.n_heads, -1).softmax(-1)


def placed(module: _Module, device: torch.device, dtype: torch.dtype) -> _Module:
    """A copy of a module on the device, for inference."""
    return copy.deepcopy(module).to(device=device, dtype=dtype).eval().requires_grad_(False)
