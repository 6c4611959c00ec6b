"""A packed batch in, each token's hidden state as if its record were alone out.

The same weights as convbert.layers, another way through them: matrix products run over the tokens and
nothing else, attention over runs of equal length or, on a GPU, of all records in one call, both convolutions without
seeing a neighbour. No record sees padding or another record.

Shapes: T tokens, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convbert import layers
from convbert.activations import ACTIVATIONS
from convbert.engine.attention import attend_at_once, attend_runs, has_kernel
from convbert.engine.convolution import DepthwiseConvolution, KernelLogits, mix_into, sides_of
from convbert.engine.graphs import TOKENS_A_RECORD, Graphs, size_of
from convbert.engine.linear import stacked
from convbert.engine.packing import Indices, Layout, Packed, Run, layout
from convbert.engine.precision import Kernels, kernels_for
from convbert.engine.transfer import send, send_tensor
from convbert.errors import InputError
from convbert.models import ConvBertModel

_Module = TypeVar("_Module", bound=nn.Module)


class _Rows(NamedTuple):
    """A layout on the device."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,)
    types: Tensor  # (T,)
    sides: Tensor  # as sides_of gives it
    gapped: Tensor | None  # (T,), for passes
    n_gapped: int
    runs: list[Run]
    offsets: Tensor | None  # (R + 1,) int32, where all records are attended to at once
    longest: int
    wanted: Tensor | None  # (N,)


class PackedEncoder:
    """ConvBERT's encoder over packed batches, for inference.

    Args:
        model: the encoder; its weights are copied to the device and fused there, the model is left as it is.
        device: where to compute.
        precision: one of ``precision.PRECISIONS``.

    Attributes:
        precision: as given.
        dtype: type of the hidden states.

    Raises:
        InputError: no encoder, or the device does not compute in that precision.
    """

    def __init__(self, model: ConvBertModel, *, device: torch.device, precision: str = "fp32") -> None:
        if not isinstance(model, ConvBertModel):
            raise InputError(f"encoder ({type(model).__name__}) must be a ConvBertModel: give model.base_model")
        kernels = kernels_for(precision, device)
        self.config = model.config
        self.device, self.precision, self.dtype = device, precision, kernels.dtype
        self.embeddings = placed(model.embeddings, device, self.dtype)
        project = getattr(model, "embeddings_project", None)
        self.project = None if project is None else placed(project, device, self.dtype)
        self._is_fused = kernels.is_fused
        self._has_attention_kernel = has_kernel(device, self.dtype, head_width=self.config.head_width)
        self.layers = [_PackedLayer(layer, config=model.config, kernels=kernels) for layer in model.encoder.layer]
        self._graphs = Graphs(device)

    @torch.inference_mode()
    def __call__(self, batch: Packed, wanted: Indices | None = None) -> Tensor:
        """Last hidden states (T, H) on the device, in the order of the batch.

        Args:
            wanted: tokens whose states will be read, ascending; the others' may be 0. None for all.

        Raises:
            InputError: a record without tokens or longer than ``max_position_embeddings``.
        """
        where = layout(
            batch.lengths,
            n_taps=self.config.conv_kernel_size,
            max_length=self.config.max_position_embeddings,
            attended=batch.attended,
        )
        attends_at_once = self._has_attention_kernel and batch.attended is None
        size = size_of(len(batch.input_ids), len(batch.lengths)) if attends_at_once else None
        if size is not None:
            return self._graphs.run(self._states_of_flat, _flat(batch, where, size), size)[: len(batch.input_ids)]
        return self._states(self._placed(batch, where, wanted, attends_at_once=attends_at_once))

    def _states(self, rows: _Rows) -> Tensor:
        """Last hidden states (T, H)."""
        words = self.embeddings.word_embeddings(rows.ids)  # (T, E)
        hidden = self.embeddings(words, rows.positions, rows.types)  # (T, E)
        if self.project is not None:
            hidden = self.project(hidden)  # (T, E) -> (T, H)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, rows)
        last = self.layers[-1](hidden, rows, rows.wanted)
        return last if rows.wanted is None else torch.zeros_like(hidden).index_copy_(0, rows.wanted, last)

    def _placed(self, batch: Packed, where: Layout, wanted: Indices | None, *, attends_at_once: bool) -> _Rows:
        arrays = {"ids": batch.input_ids, "positions": where.positions}
        if not self._is_fused:
            arrays["gapped"] = where.gapped_rows
        if batch.token_type_ids is not None:
            arrays["types"] = batch.token_type_ids
        if wanted is not None:
            arrays["wanted"] = wanted
        if attends_at_once:
            arrays["offsets"] = where.offsets
        there = dict(zip(arrays, send(*arrays.values(), device=self.device), strict=True))
        sides = send_tensor(torch.from_numpy(where.sides), self.device)
        return _Rows(
            ids=there["ids"],
            positions=there["positions"],
            types=there["types"] if "types" in there else torch.zeros_like(there["ids"]),
            sides=sides_of(sides, self.config.conv_kernel_size, self.dtype, is_fused=self._is_fused),
            gapped=there.get("gapped"),
            n_gapped=where.n_gapped_rows,
            runs=where.runs,
            offsets=there["offsets"].int() if attends_at_once else None,
            longest=where.longest,
            wanted=there.get("wanted"),
        )

    def _states_of_flat(self, flat: Tensor, size: int) -> Tensor:
        """Last hidden states (B, H) of what ``_flat`` gives."""
        ids, positions, types, sides, offsets = flat.split([size, size, size, 2 * size, size // TOKENS_A_RECORD + 1])
        rows = _Rows(
            ids=ids,
            positions=positions,
            types=types,
            sides=sides.view(size, 2).int(),  # as functions of rows want it
            gapped=None,
            n_gapped=0,
            runs=[],
            offsets=offsets.int(),
            longest=self.config.max_position_embeddings,
            wanted=None,
        )
        return self._states(rows)


def _flat(batch: Packed, where: Layout, size: int) -> NDArray[np.int64]:
    """Ids, positions, types (B,), sides (B, 2) and offsets (B // TOKENS_A_RECORD + 1,) one after the other.

    What fills a batch up to B tokens stands behind its records: tokens that no record reaches, and records of none.
    """
    n_tokens, n_records = len(batch.input_ids), len(batch.lengths)
    flat = np.zeros(5 * size + size // TOKENS_A_RECORD + 1, np.int64)
    flat[:n_tokens] = batch.input_ids
    flat[size : size + n_tokens] = where.positions
    if batch.token_type_ids is not None:
        flat[2 * size : 2 * size + n_tokens] = batch.token_type_ids
    flat[3 * size : 3 * size + 2 * n_tokens] = where.sides.ravel()
    flat[5 * size : 5 * size + n_records] = where.offsets[:-1]
    flat[5 * size + n_records :] = n_tokens
    return flat


class _PackedLayer:
    """One block over flat rows."""

    def __init__(self, layer: Any, *, config: Any, kernels: Kernels) -> None:
        self.n_heads, self.width = config.n_mixed_heads, config.attention_width
        self.is_fused = kernels.is_fused
        mixed: layers.MixedSelfAttention = layer.attention.self
        separable = mixed.key_conv_attn_layer
        self.fused = kernels.linear(*stacked([mixed.query, mixed.key, mixed.value, mixed.conv_out_layer]))
        self.depthwise = DepthwiseConvolution(kernels.placed(separable.depthwise.weight), is_fused=kernels.is_fused)
        self.pointwise = kernels.linear(separable.pointwise.weight.detach()[..., 0], separable.bias.detach()[:, 0])
        self.kernel_logits = KernelLogits(
            kernels.placed(mixed.conv_kernel_layer.weight), kernels.placed(mixed.conv_kernel_layer.bias)
        )
        self.attention_output = kernels.residual(layer.attention.output)
        self.feed_forward = kernels.feed_forward(layer, ACTIVATIONS[config.hidden_act])

    def __call__(self, hidden: Tensor, rows: _Rows, wanted: Tensor | None = None) -> Tensor:
        """(T, H) -> (T, H), or the wanted rows of that: what follows the mixing of tokens is needed for no others."""
        fused = self.fused(hidden)  # (T, H) -> (T, 4A)
        query, conv_values = fused[:, : self.width], fused[:, 3 * self.width :]
        context = hidden.new_empty(len(hidden), 2 * self.width)
        attended = self._attend(fused, rows, out=context[:, : self.width])
        logits = self._logits(hidden, query, rows)
        mix_into(context, logits, conv_values, rows.sides, attended, n_heads=self.n_heads, is_fused=self.is_fused)
        if wanted is not None:
            context, hidden = context.index_select(0, wanted), hidden.index_select(0, wanted)
        return self.feed_forward(self.attention_output(context, hidden))

    def _attend(self, fused: Tensor, rows: _Rows, *, out: Tensor) -> Tensor | None:
        """Each record's own attention (T, A), or None where it went into ``out``."""
        if rows.offsets is not None:
            return attend_at_once(fused, rows.offsets, longest=rows.longest, n_heads=self.n_heads, width=self.width)
        attend_runs(fused, rows.runs, n_heads=self.n_heads, out=out)
        return None

    def _logits(self, hidden: Tensor, query: Tensor, rows: _Rows) -> Tensor:
        """Logits of each token's convolution kernels (T, N·K), from its span."""
        spans = self.depthwise(hidden, rows.gapped, rows.n_gapped, rows.sides)  # (T, H)
        return self.kernel_logits(self.pointwise(spans), query)


def placed(module: _Module, device: torch.device, dtype: torch.dtype) -> _Module:
    """A copy of a module on the device, for inference."""
    return copy.deepcopy(module).to(device=device, dtype=dtype).eval().requires_grad_(False)
