"""An error that torch raised in, whether the device is out of memory or lost for this process out."""

from __future__ import annotations

import sys

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)
_LOST = ("CUDA error", "cuDNN error")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory, and is otherwise as it was."""
    return _is(error, "OutOfMemoryError") or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )


def is_lost_device(error: Exception) -> bool:
    """Whether only a new process can use the device again."""
    is_the_devices = _is(error, "AcceleratorError") or (
        isinstance(error, RuntimeError) and str(error).startswith(_LOST)
    )
    return is_the_devices and not is_out_of_memory(error)


def _is(error: Exception, kind: str) -> bool:
    """Whether it is torch's error of this name, in a process that has no need to import torch for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, getattr(torch, kind))
