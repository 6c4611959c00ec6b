"""Packed records in, every head's result for each record out, in the records' order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convbert.engine.encoder import PackedEncoder
from convbert.engine.packing import Indices, Packed, micro_batches
from convbert.errors import InputError
from convbert.models import ConvBertModel

RecordHead = Callable[[Tensor, Tensor], Tensor]
"""Hidden states (T, H) and record offsets (R + 1,) of a micro-batch in, one row a record (R, …) out."""


def first_token(head: nn.Module) -> RecordHead:
    """A head on each record's first token: the module takes (R, H)."""

    def apply(hidden: Tensor, offsets: Tensor) -> Tensor:
        result: Tensor = head(hidden[offsets[:-1]])
        return result

    return apply


class Engine:
    """One encoder and the heads on it, for records of any mixture of lengths.

    Args:
        encoder: the shared encoder.
        heads: a module a head, applied to each record's first token.
        device: where to compute.
        dtype: type to compute in; results are float32.
        max_batch_tokens: token budget of a micro-batch. It trades memory for speed and does not change results.

    Raises:
        InputError: a token budget below 1.
    """

    def __init__(
        self,
        encoder: ConvBertModel,
        heads: Mapping[str, nn.Module],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_batch_tokens: int = 4096,
    ) -> None:
        if max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens ({max_batch_tokens}) must be at least 1")
        self.device = torch.device(device)
        self.max_batch_tokens = max_batch_tokens
        self.encoder = PackedEncoder(encoder, device=self.device, dtype=dtype)
        self.heads = {
            name: first_token(copy.deepcopy(head).to(device=self.device, dtype=dtype).eval())
            for name, head in heads.items()
        }

    @torch.inference_mode()
    def __call__(self, records: Packed) -> dict[str, NDArray[np.float32]]:
        """Each head's results, float32 with one row a record, in the records' order.

        Raises:
            InputError: a record without tokens or longer than ``max_position_embeddings``.
        """
        lengths = records.lengths
        batches = list(micro_batches(lengths, self.max_batch_tokens))
        parts: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        for batch in batches:
            packed = records.take(batch)
            hidden = self.encoder(packed)
            offsets = torch.as_tensor(packed.offsets, device=self.device)
            for name, head in self.heads.items():
                parts[name].append(head(hidden, offsets).float())
        order = np.concatenate(batches) if batches else np.empty(0, np.int64)
        return {name: _unsorted(rows, order) for name, rows in parts.items()}


def _unsorted(parts: list[Tensor], order: Indices) -> NDArray[np.float32]:
    """Rows of all micro-batches back into the records' order."""
    if not parts:
        return np.empty((0,), np.float32)
    rows = torch.cat(parts).cpu().numpy()
    result = np.empty_like(rows)
    result[order] = rows
    return result
