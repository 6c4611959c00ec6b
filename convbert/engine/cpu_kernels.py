"""What lies between a block's products on a CPU in float32, each function one pass over the rows: cpu_kernels.cpp.

Each computes what the function of its name in ``int8`` or ``convolution`` does. Python's lock is free meanwhile, so
that threads run them side by side; those that share a kernel are torch's own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MOST_S = 300.0  # of a compiler that takes a second or two, and twenty where all actors of a node start at once
_SOURCE = Path(__file__).with_suffix(".cpp")
# -fno-trapping-math: else g++ makes no vectors where a comparison chooses between numbers
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-trapping-math", "-fPIC", "-fopenmp")
_TYPES = {"t": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}  # a tensor's numbers, an integer, a float
_ARGUMENTS = {
    "quantised": "ttttiiii",
    "rescaled": "tttttiii",
    "gelu_quantised": "ttttttttiiii",
    "normalised": "ttttttttiifi",
    "depthwise_taps": "ttttiiii",
    "mixed_taps": "ttttiiiiiii",
}


def quantised(x: Tensor, n_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """``int8.quantised``."""
    x = x.contiguous()
    parts = _quantised_like(x)
    _run("quantised", x, *parts, len(x), x.shape[1], n_levels)
    return parts


def rescaled(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """``int8.rescaled``."""
    _run("rescaled", product, scale, zero, sums, bias, len(product), product.shape[1])
    return product


def gelu_quantised(
    product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, bias: Tensor, n_levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``int8.gelu_quantised``."""
    parts = _quantised_like(product)
    _run("gelu_quantised", product, scale, zero, sums, bias, *parts, len(product), product.shape[1], n_levels)
    return parts


def normalised(
    product: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> Tensor:
    """``int8.normalised``."""
    rows = (product, scale, zero, sums, bias, residual.contiguous(), weight, shift)
    _run("normalised", *rows, len(product), product.shape[1], eps)
    return product


def depthwise_taps(x: Tensor, taps: Tensor, sides: Tensor) -> Tensor:
    """``convolution.depthwise_taps``."""
    x = x.contiguous()
    mixed = torch.empty_like(x)
    _run("depthwise_taps", x, taps, sides.contiguous(), mixed, len(x), x.shape[1], len(taps))
    return mixed


def mixed_taps(
    context: Tensor, logits: Tensor, values: Tensor, sides: Tensor, attended: Tensor | None, n_heads: int
) -> None:
    """``convolution.mixed_taps``; the columns of ``context`` and of ``values`` lie side by side."""
    n_rows, width = values.shape
    if attended is not None:
        context[:, :width] = attended
    steps = (context.stride(0), values.stride(0))
    sizes = (n_rows, n_heads, width // n_heads, logits.shape[1] // n_heads)
    _run("mixed_taps", context[:, width:], logits.contiguous(), values, sides.contiguous(), *steps, *sizes)


def _quantised_like(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for levels, scales and zero points of rows."""
    return torch.empty_like(x, dtype=torch.uint8), x.new_empty(len(x), 1), x.new_empty(len(x), 1)


def _run(name: str, *arguments: Tensor | int | float) -> None:
    found: Any = library()
    getattr(found, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments), torch.get_num_threads())


@cache
def library() -> ctypes.CDLL | None:
    """The functions, compiled for this machine (a second or two), or None where that fails; says once why."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]  # with arguments, such as "ccache g++"
    if shutil.which(compiler[0]) is None:
        logger.warning(
            "no C++ compiler (%s) is installed: the engine runs slower than it could (install g++)", compiler[0]
        )
        return None
    try:
        with TemporaryDirectory(prefix="convbert-") as folder:
            objects, there = str(Path(folder, "cpu_kernels.o")), str(Path(folder, "cpu_kernels.so"))
            _call(*compiler, *_FLAGS, "-c", str(_SOURCE), "-o", objects)
            _call(*compiler, "-shared", objects, "-o", there)  # not -fopenmp: OpenMP is the one torch has loaded
            found = ctypes.CDLL(there)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning(
            "%s cannot compile for this machine: the engine runs slower than it could: %s", shlex.join(compiler), reason
        )
        return None
    for name, letters in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    return found


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=MOST_S)
