"""A function of small batches in, the same started in one call out: CUDA graphs.

Up to some thousand tokens a GPU computes a block's kernels faster than the host starts them one by one. Recorded once
for a size, all of them start together; smaller batches are filled up to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convbert.engine.transfer import pinned

logger = logging.getLogger(__name__)

SIZES = tuple(2**power for power in range(6, 14))
"""Tokens of the batches that are recorded: 64 to 8,192, beyond which a GPU computes longer than the host starts."""

TOKENS_A_RECORD = 16  # so that a recorded batch of B tokens has B // 16 records at most


def size_of(n_tokens: int, n_records: int) -> int | None:
    """The least of ``SIZES`` that a batch fits in, or None where it fits in none."""
    least = max(n_tokens, TOKENS_A_RECORD * n_records)
    return next((size for size in SIZES if size >= least), None)


class _Recording(NamedTuple):
    """What a graph reads, the graph, and what it writes."""

    given: Tensor
    graph: Any
    result: Tensor


class Graphs:
    """Recordings of one function of one tensor, each made when its size first comes.

    Where recording fails, the function runs as written from then on: slower, with the same meaning.

    Args:
        device: where it computes, on one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recordings: dict[int, _Recording] = {}
        self._pool: Any = None  # of the memory that the graphs take in turn
        self._has_failed = False
        self._in_use = Lock()  # or one thread's values would meet the other's graph

    def run(self, function: Callable[[Tensor, int], Tensor], values: NDArray[np.int64], size: int) -> Tensor:
        """The function's result, which no later call changes.

        Args:
            function: (N,) int64 and the size that it stands for -> a tensor, by the same kernels for every tensor of
                that size, none of which waits for the host.
            values: (N,).
        """
        here = pinned(torch.from_numpy(values), self._device)
        with self._in_use:
            recording = self._recordings.get(size) or self._recorded(function, here, size)
            if recording is None:
                return function(here.to(self._device, non_blocking=True), size)
            recording.given.copy_(here, non_blocking=True)
            recording.graph.replay()
            return recording.result.clone()

    def _recorded(self, function: Callable[[Tensor, int], Tensor], values: Tensor, size: int) -> _Recording | None:
        if self._has_failed:
            return None
        given = values.to(self._device, copy=True)
        function(given, size)  # what a kernel's first call loads and allocates cannot be recorded
        try:
            graph, result = record(lambda: function(given, size), self._device, self._pool)
        except RuntimeError as error:
            logger.warning("%s cannot record kernels, and starts them one by one: %s", self._device, error)
            self._has_failed = True
            return None
        self._pool = self._pool or graph.pool()
        self._recordings[size] = _Recording(given, graph, result)
        return self._recordings[size]


def record(function: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Any, Tensor]:
    """A graph that runs the function's kernels again, and the tensor that they write.

    Args:
        pool: of another graph, which is never run at the same time; None for one of its own.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph, result
