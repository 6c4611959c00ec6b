"""Packed records in, every head's rows for each record out, in the records' order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from convbert.engine.encoder import PackedEncoder, placed
from convbert.engine.heads import Head, PseudoLikelihood, Rows
from convbert.engine.packing import Indices, Packed, gather, micro_batches
from convbert.errors import InputError
from convbert.models import ConvBertModel


class Engine:
    """One encoder and the heads on it, for records of any mixture of lengths.

    Args:
        encoder: the shared encoder.
        heads: what stands on it, by name.
        device: where to compute.
        dtype: type to compute in; results are float32.
        max_batch_tokens: token budget of a micro-batch. It trades memory for speed and does not change results.

    Raises:
        InputError: a token budget below 1.
    """

    def __init__(
        self,
        encoder: ConvBertModel,
        heads: Mapping[str, Head | PseudoLikelihood],
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
        there = {name: placed(head, self.device, dtype) for name, head in heads.items()}
        self.heads = {name: head for name, head in there.items() if isinstance(head, Head)}
        self.scorers = {name: head for name, head in there.items() if isinstance(head, PseudoLikelihood)}

    @torch.inference_mode()
    def __call__(self, records: Packed) -> dict[str, Rows]:
        """Each head's rows, float32, in the records' order.

        Raises:
            InputError: no records, one without tokens, or one longer than ``max_position_embeddings``.
        """
        if len(records.lengths) == 0:
            raise InputError("there are no records to run: give at least one")
        results = {name: head(self.encoder, records, self.max_batch_tokens) for name, head in self.scorers.items()}
        if self.heads:
            results.update(self._one_pass(records))
        return results

    def _one_pass(self, records: Packed) -> dict[str, Rows]:
        """The encoder once over everything, and every head on what it gives."""
        batches = list(micro_batches(records.lengths, self.max_batch_tokens))
        values: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        counts: dict[str, list[Indices]] = {name: [] for name in self.heads}
        for numbers in batches:
            batch = records.take(numbers)
            hidden = self.encoder(batch)
            for name, head in self.heads.items():
                values[name].append(head(hidden, batch).float())
                counts[name].append(head.n_rows(batch))
        order = np.concatenate(batches)
        return {name: _in_order(torch.cat(values[name]), np.concatenate(counts[name]), order) for name in self.heads}


def _in_order(values: Tensor, counts: Indices, order: Indices) -> Rows:
    """Rows as the micro-batches gave them back into the records' order."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    rows, offsets = gather((np.cumsum(counts) - counts)[back], counts[back])
    return Rows(values.cpu().numpy()[rows], offsets)
