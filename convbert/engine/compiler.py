"""A function of several passes over rows in, the same in one out: by torch's compiler on a CPU, our kernel on a GPU."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

logger = logging.getLogger(__name__)

_VECTOR_BITS = {"AVX2": 256, "AVX512": 512, "SVE256": 256}


class RowKernel:
    """A function whose tensors have a row for each token, compiled at its first call for any number of rows.

    It runs as written where the device has no compiler, or one that fails: slower, with the same meaning. What is
    compiled is kept on disk by torch, so that only a machine's first process waits for it.

    Args:
        function: a row of its result depends on the same row, or on rows near it, of each tensor.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, rows: Tensor, *others: Any) -> Any:
        """The function's result."""
        if len(rows) < 2 or not has_compiler(rows.device.type):  # torch would compile for one row by itself
            return self._function(rows, *others)
        try:
            return self._compiled(rows, *others)
        except (RuntimeError, OSError) as error:
            if not _is_compilers(error):
                raise
            logger.warning("torch cannot compile for %s, which runs slower than it could: %s", rows.device, error)
        self._compiled = self._function
        return self._function(rows, *others)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        # What torch keeps on disk is for one width of a processor's vectors, and its key does not say so: where another
        # processor finds it, the same loops run over other vectors and compute nonsense. Options are part of the key.
        width: Any = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
        return torch.compile(self._function, dynamic=True, options={"cpp.simdlen": width})


class Fused:
    """A function of rows that a kernel of ``triton_kernels`` computes on a GPU, and torch's compiler on a CPU.

    It runs as written where there is no Triton, and from when Triton fails, for whatever model: slower, with the same
    meaning.

    Args:
        function: what the kernel of the same name computes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._on_a_cpu = RowKernel(function)
        self._has_failed = False

    def __call__(self, rows: Tensor, *others: Any) -> Any:
        """The function's result."""
        if not is_fused(rows.device):
            return self._on_a_cpu(rows, *others)
        if self._has_failed or not has_compiler(rows.device.type):
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


def _is_compilers(error: RuntimeError | OSError) -> bool:
    """Whether torch's compiler failed: on the function, or on the folder where it keeps what it compiles."""
    if isinstance(error, OSError):
        return True
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and there by now

    return isinstance(error, TorchDynamoException)


def is_fused(device: torch.device) -> bool:
    """Whether a device computes what lies between the products in one pass (``Fused``) in every precision.

    A GPU does, whose memory each pass over the rows waits for. On a CPU int8 does (``Kernels.is_fused``), and passes
    in float, whose products take most of the time, start at once.
    """
    return device.type == "cuda"


@cache
def has_compiler(device_type: str) -> bool:
    """Whether this machine can compile for the device; says once what it means where not."""
    if device_type == "cuda":
        # Triton builds what starts its kernels with a C compiler
        found = has_triton() and bool(os.environ.get("CC") or _is_installed("gcc", "clang")) and _has_python_h()
        if not found:
            logger.warning(
                "no Triton with a C compiler and Python.h is installed: the GPU runs slower than it could "
                "(install gcc and python3-dev)"
            )
        return found
    found = _is_installed(os.environ.get("CXX", "g++")) and _has_python_h()  # torch tries no other on Linux
    if not found:
        logger.warning(
            "no C++ compiler with Python.h is installed: int8 runs slower than it could (install g++ and python3-dev)"
        )
    return found


def _is_installed(*programs: str) -> bool:
    return any(shutil.which(program) for program in programs)


def _has_python_h() -> bool:
    """Whether the header that compiled code includes is where torch and Triton both look for it."""
    return (Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h").is_file()
