"""A function of rows in, the same fused into one loop by torch's compiler out, where there is a compiler."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class RowKernel:
    """A function whose tensors have a row for each token, compiled at its first call for any number of rows.

    It runs as written where no C++ compiler is found: slower, with the same meaning. What is compiled is kept on
    disk by torch, so that only a machine's first process waits for it.

    Args:
        function: pointwise over rows, or a reduction within a row.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, rows: Tensor, *others: Any) -> Any:
        """The function's result."""
        if len(rows) < 2:  # torch would compile for one row by itself
            return self._function(rows, *others)
        return self._compiled(rows, *others)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        return torch.compile(self._function, dynamic=True) if has_compiler() else self._function


@cache
def has_compiler() -> bool:
    """Whether this machine can compile C++; says once what it means where not."""
    found = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    if not found:
        logger.warning("no C++ compiler is installed: int8 runs slower than it could (install g++)")
    return found
