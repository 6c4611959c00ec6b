"""An error of torch in, what it says of the device out."""

from __future__ import annotations

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)
_LOST = ("CUDA error", "cuDNN error")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory, and is otherwise as it was."""
    if not isinstance(error, RuntimeError):
        return False
    import torch  # where an error of its kinds comes from; others need it not

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_lost_device(error: Exception) -> bool:
    """Whether only a new process can use the device again."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    import torch

    return isinstance(error, torch.AcceleratorError) or str(error).startswith(_LOST)
