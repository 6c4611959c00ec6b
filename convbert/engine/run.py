"""Packed records in, every head's rows for each record out, in the records' order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convbert.engine import compiler
from convbert.engine.budget import CPU_BATCH_TOKENS, probed_budget, warm_up
from convbert.engine.encoder import PackedEncoder, placed
from convbert.engine.failures import is_out_of_memory
from convbert.engine.heads import Head, PseudoLikelihood
from convbert.engine.packing import (
    Indices,
    Packed,
    Rows,
    check_fields,
    check_lengths,
    equal_shares,
    gather,
    micro_batches,
    offsets_of,
)
from convbert.engine.threads import n_side_by_side, side_by_side
from convbert.engine.transfer import Arriving
from convbert.errors import InputError
from convbert.models import ConvBertModel

logger = logging.getLogger(__name__)

N_AHEAD = 2  # micro-batches that a GPU has before it while the host waits for the results of the one before them


class Engine:
    """One encoder and the heads on it, for records of any mixture of lengths.

    On a GPU it runs some thousand tokens while it is made, so that nothing is left to be compiled when work comes. On a
    CPU as many micro-batches as torch has threads run side by side, where there are enough records; else all threads
    share each.

    Args:
        encoder: the shared encoder.
        heads: what stands on it, by name.
        device: where to compute.
        precision: one of ``PRECISIONS``; results are float32.
        max_batch_tokens: token budget of a micro-batch. It trades memory for speed and does not change results.
            None takes what the device is fast with: about what the caches of a CPU hold, or what the free memory
            of a GPU does, found by running some thousand tokens.

    Attributes:
        max_batch_tokens: the budget now: it is halved for good whenever the device runs out of memory.

    Raises:
        InputError: no encoder, a module that is no head, a token budget below 1, or a precision that the device does
            not compute in.
    """

    def __init__(
        self,
        encoder: ConvBertModel,
        heads: Mapping[str, Head | PseudoLikelihood],
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        max_batch_tokens: int | None = None,
    ) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens ({max_batch_tokens}) must be at least 1")
        for name, head in heads.items():
            if not isinstance(head, (Head, PseudoLikelihood)):
                raise InputError(
                    f"head {name!r} ({type(head).__name__}) must say what it reads: wrap it in one of "
                    "convbert.engine's heads, such as FirstToken or EachToken"
                )
        self.device = torch.device(device)
        self.encoder = PackedEncoder(encoder, device=self.device, precision=precision)
        there = {name: placed(head, self.device, self.encoder.dtype) for name, head in heads.items()}
        self.heads = {name: head for name, head in there.items() if isinstance(head, Head)}
        self.scorers = {name: head for name, head in there.items() if isinstance(head, PseudoLikelihood)}
        self.max_batch_tokens = self._prepared(max_batch_tokens)
        self._has_memory_for_threads = True

    def _prepared(self, max_batch_tokens: int | None) -> int:
        """The token budget; on a GPU everything is compiled by then."""
        if not compiler.is_fused(self.device):
            return max_batch_tokens or CPU_BATCH_TOKENS
        longest = self.encoder.config.max_position_embeddings
        try:
            warm_up(self._run_zeros, longest=longest, max_tokens=max_batch_tokens)
            self._run_zeros(1, 2, attended=np.array([1]))  # which has another kernel
            return max_batch_tokens or probed_budget(self._run_zeros, longest=longest, device=self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return max_batch_tokens or longest

    @torch.inference_mode()
    def _run_zeros(self, n_records: int, length: int, attended: Indices | None = None) -> None:
        ids, offsets = np.zeros(n_records * length, np.int64), np.arange(n_records + 1) * length
        batch = Packed(ids, offsets, attended=attended)
        with self._own_precision():
            self._run(batch) if self.heads else self.encoder(batch)

    def _own_precision(self) -> torch.autocast:
        """A caller's autocast would round what kernels read as float32, and not in the threads that are ours."""
        return torch.autocast(self.device.type, enabled=False)

    @torch.inference_mode()
    def __call__(self, records: Packed) -> dict[str, Rows]:
        """Each head's rows, float32, in the records' order.

        Raises:
            InputError: no records, one without tokens, one longer than ``max_position_embeddings``, ids outside
                their table, or fields that are not as ``Packed`` says.
            RuntimeError: the device has no memory for a record alone (``is_out_of_memory``).
        """
        check_fields(records)
        records = records.trimmed()
        check_lengths(records.lengths, self.encoder.config.max_position_embeddings)
        self._check_ids(records)
        with self._own_precision():
            results = {name: self._score(scorer, records) for name, scorer in self.scorers.items()}
            if self.heads:
                results.update(self._one_pass(records))
        return results

    def _check_ids(self, records: Packed) -> None:
        """See that every id has its row in a table, or a GPU would end the process."""
        tables = (
            ("input_ids", records.input_ids, "vocab_size"),
            ("token_type_ids", records.token_type_ids, "type_vocab_size"),
        )
        for name, ids, field in tables:
            n_entries = getattr(self.encoder.config, field)
            if ids is not None and len(ids) and not 0 <= ids.min() <= ids.max() < n_entries:
                raise InputError(
                    f"{name} reaches from {ids.min()} to {ids.max()}, but {field} ({n_entries}) allows 0 to "
                    f"{n_entries - 1}: use the checkpoint's own tokenizer"
                )

    def _score(self, scorer: PseudoLikelihood, records: Packed) -> Rows:
        """A scorer's rows, under a budget that the device has the memory for."""
        longest, before = int(records.lengths.max()), self.max_batch_tokens
        while True:
            try:
                return scorer(self.encoder, records, self.max_batch_tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.max_batch_tokens <= longest:
                    self.max_batch_tokens = before  # it was the record, not the budget
                    raise
            self._lower_budget(self.max_batch_tokens)  # when the error, and the memory that it holds, is gone

    def _one_pass(self, records: Packed) -> dict[str, Rows]:
        """The encoder once over everything, and every head on what it gives."""
        batches = self._for_threads(records.lengths) if self._has_memory_for_threads else []
        if batches:
            n_threads = torch.get_num_threads()
            try:
                return self._side_by_side(records, batches, n_threads)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._has_memory_for_threads = False
            logger.warning("no memory for %d micro-batches at a time: from now on they run one by one", n_threads)
        return self._one_by_one(records)

    def _for_threads(self, lengths: Indices) -> list[Indices]:
        """Record numbers of micro-batches that a CPU's threads compute one each; none where they had better share."""
        n_threads = n_side_by_side(int(lengths.sum()), self.max_batch_tokens, self.device)
        if n_threads > 1:
            return list(micro_batches(lengths, self.max_batch_tokens, n_threads=n_threads))
        n_threads = torch.get_num_threads()
        if self.device.type != "cpu" or n_threads == 1 or self.encoder.precision == "int8":  # too quick to gain by it
            return []
        return equal_shares(lengths, n_threads, self.max_batch_tokens)

    def _side_by_side(self, records: Packed, batches: Sequence[Indices], n_threads: int) -> dict[str, Rows]:
        """A CPU's way for several records: each thread has micro-batches of its own."""

        @torch.inference_mode()  # which each thread enters by itself
        def run(numbers: Indices) -> dict[str, NDArray[np.float32]]:
            return {name: rows.numpy() for name, rows in self._run(records.take(numbers)).items()}

        results = {name: _Result(head.n_rows(records)) for name, head in self.heads.items()}
        for numbers, rows in zip(batches, side_by_side(run, batches, n_threads=n_threads), strict=True):
            for name, result in results.items():
                result.put(numbers, rows[name])
        return {name: result.rows() for name, result in results.items()}

    def _one_by_one(self, records: Packed) -> dict[str, Rows]:
        """One micro-batch after the other, on a GPU a few under way."""
        lengths, before = records.lengths, self.max_batch_tokens
        results = {name: _Result(head.n_rows(records)) for name, head in self.heads.items()}
        running: deque[_Started] = deque()
        pending = deque(micro_batches(lengths, self.max_batch_tokens))
        while pending:
            numbers = pending.popleft()
            try:
                running.append(self._started(records.take(numbers), numbers))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(numbers) == 1:
                    self.max_batch_tokens = before  # it was the record, not the budget
                    raise
            else:
                _fetch(running, results, n_left=N_AHEAD)
                continue
            _fetch(running, results)
            self._lower_budget(int(lengths[numbers].sum()))
            left = np.concatenate([numbers, *pending])
            pending = deque(left[batch] for batch in micro_batches(lengths[left], self.max_batch_tokens))
        _fetch(running, results)
        return {name: result.rows() for name, result in results.items()}

    def _started(self, batch: Packed, numbers: Indices) -> _Started:
        return _Started(numbers, {name: Arriving(rows) for name, rows in self._run(batch).items()})

    def _run(self, batch: Packed) -> dict[str, Tensor]:
        """Each head's rows of a micro-batch, which the device may still be computing."""
        read = reduce(np.union1d, (head.reads(batch) for head in self.heads.values()))
        hidden = self.encoder(batch, read if len(read) < len(batch.input_ids) else None)
        return {name: head(hidden, batch).float() for name, head in self.heads.items()}

    def _lower_budget(self, n_tokens: int) -> None:
        """Half of what was too much, from now on."""
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, n_tokens) // 2)
        logger.warning(
            "%s has no memory for %d tokens at a time: from now on this process takes %d",
            self.device,
            n_tokens,
            self.max_batch_tokens,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class _Started(NamedTuple):
    """A micro-batch under way: its records' numbers, and each head's rows."""

    numbers: Indices
    values: dict[str, Arriving]


def _fetch(running: deque[_Started], results: dict[str, _Result], *, n_left: int = 0) -> None:
    """Put the rows of the first micro-batches into their places, but for the last few."""
    while len(running) > n_left:
        numbers, values = running.popleft()
        for name, result in results.items():
            result.put(numbers, values[name].wait())


class _Result:
    """A head's rows, in the records' order, as they come.

    Args:
        counts: (R,) rows of each record.
    """

    def __init__(self, counts: Indices) -> None:
        self._counts = counts
        self._offsets = offsets_of(counts)
        self._values: NDArray[np.float32] | None = None

    def put(self, numbers: Indices, values: NDArray[np.float32]) -> None:
        """Take the rows (N, …) of some records."""
        if self._values is None:
            self._values = np.empty((self._offsets[-1], *values.shape[1:]), np.float32)
        places, _ = gather(self._offsets[numbers], self._counts[numbers])
        self._values[places] = values

    def rows(self) -> Rows:
        """All of them."""
        assert self._values is not None
        return Rows(self._values, self._offsets)
