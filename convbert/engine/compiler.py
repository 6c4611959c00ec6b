"""A function of several passes over rows in, the same in one out: our kernel, in C++ on a CPU, in Triton on a GPU."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from convbert.engine import cpu_kernels

logger = logging.getLogger(__name__)


class Fused:
    """A function of rows that has a kernel: in ``triton_kernels`` for a GPU, in ``cpu_kernels`` for float32 on a CPU.

    It runs as written where no kernel can be compiled, and from when Triton fails, for whatever model: slower, with the
    same meaning.

    Args:
        function: what the kernel of the same name computes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._has_failed = False

    def __call__(self, rows: Tensor, *others: Any) -> Any:
        """The function's result."""
        if not is_fused(rows.device):
            has_kernel = has_cpu_kernels(rows.device, rows.dtype)
            return (getattr(cpu_kernels, self._function.__name__) if has_kernel else self._function)(rows, *others)
        if self._has_failed or not has_compiler():
            return self._function(rows, *others)
        from convbert.engine import triton_kernels  # it needs Triton, which is not everywhere installed

        try:
            with torch.cuda.device_of(rows):  # Triton starts its kernels on the current device
                return getattr(triton_kernels, self._function.__name__)(rows, *others)
        except Exception as error:
            if not _is_tritons(error):
                raise
            logger.warning("Triton cannot compile for %s, which runs slower than it could: %s", rows.device, error)
        self._has_failed = True
        return self._function(rows, *others)


def _is_tritons(error: Exception) -> bool:
    """Whether Triton failed before it started a kernel: a shape, its C compiler, its folder, the driver's library."""
    from triton.errors import TritonError

    if isinstance(error, (TritonError, OSError, subprocess.SubprocessError, AssertionError)):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(("PassManager::run", "Failed to find C compiler"))


def is_fused(device: torch.device) -> bool:
    """Whether a device computes what lies between the products in one pass (``Fused``) in every precision.

    A GPU does, whose memory each pass over the rows waits for.
    """
    return device.type == "cuda"


def has_cpu_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rows of this type have kernels on this CPU."""
    return device.type == "cpu" and dtype == torch.float32 and cpu_kernels.library() is not None


@cache
def has_compiler() -> bool:
    """Whether this machine can compile for its GPU; says once what it means where not."""
    # Triton builds what starts its kernels with a C compiler
    has_c_compiler = bool(os.environ.get("CC")) or any(shutil.which(program) for program in ("gcc", "clang"))
    found = has_triton() and has_c_compiler and _has_python_h()
    if not found:
        logger.warning(
            "no Triton with a C compiler and Python.h is installed: the GPU runs slower than it could "
            "(install gcc and python3-dev)"
        )
    return found


def _has_python_h() -> bool:
    """Whether the header that compiled code includes is where Triton looks for it."""
    return (Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h").is_file()
