"""Index arrays in, the same on the device out, and results back, without waiting for what else the device does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(*arrays: NDArray[np.integer], device: torch.device) -> Sequence[Tensor]:
    """Each array, (N,) of any N, as int64 on the device."""
    if device.type == "cpu":
        return [torch.as_tensor(array, dtype=torch.long, device=device) for array in arrays]
    together = torch.from_numpy(np.concatenate(arrays, dtype=np.int64))  # one copy costs less than several
    return send_tensor(together, device).split([len(array) for array in arrays])


def send_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device."""
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where a device copies from without the host.

    Such a copy is queued behind the kernels that came before it, so that the host prepares the next micro-batch while a
    GPU computes this one; torch keeps the pinned memory until the copy is done.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory()


class Arriving:
    """A tensor on its way to the host.

    The copy is queued behind the kernels that make the tensor and before those of the next micro-batches, so that a
    GPU computes them while the host waits for this one.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor.to("cpu", non_blocking=tensor.device.type == "cuda")  # where torch pins what it copies to
        self._copied: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> NDArray[Any]:
        """Its values, when they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._here.numpy()
