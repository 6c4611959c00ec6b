"""Rows on which a model fails together in, those on which it fails alone out; and how a block marks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from convbert.engine import is_out_of_memory
from pipelines.errors import DeviceError, ModelError

MAX_ALONE = 16  # where so many records have failed alone and nothing has worked, it is not the records
MAX_REASON = 300  # characters

Rows = NDArray[np.int64]


def good_rows(block: pa.Table) -> Rows:
    """The rows without an error."""
    return np.flatnonzero(block["error"].is_null().to_numpy())


def with_errors(block: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """The block with these errors at these rows."""
    if not reasons:
        return block
    errors = block["error"].to_pylist()
    for row, reason in reasons.items():
        errors[row] = reason
    return block.set_column(block.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


def failing_alone(rows: Rows, attempt: Callable[[Rows], object], *, control: Callable[[], object]) -> dict[int, str]:
    """Each row that fails alone, and why: k rows of n cost at most about 2·k·log2(n) attempts.

    Args:
        rows: at least one; all together they fail.
        attempt: raises where it fails.
        control: raises where the model fails on anything.

    Raises:
        ModelError: it is not the records: nothing works.
        DeviceError: only a new process can go on.
    """
    if reason := _failure(control):
        raise ModelError(f"the model no longer works: {reason}")
    reasons: dict[int, str] = {}
    has_worked = False
    shuffled = np.random.default_rng(0).permutation(rows)  # so that the first to be alone are a sample of all
    pending = _halves(shuffled)
    while pending:
        some = pending.pop()
        reason = _failure(partial(attempt, some))
        if reason is None:
            has_worked = True
        elif len(some) > 1:
            pending += _halves(some)
        else:
            reasons[int(some[0])] = reason
            if len(reasons) == MAX_ALONE and not has_worked:
                raise ModelError(f"the model fails on each of {MAX_ALONE} records that were tried alone: {reason}")
    return reasons


def _halves(rows: Rows) -> list[Rows]:
    middle = len(rows) // 2
    return [half for half in (rows[middle:], rows[:middle]) if len(half)]


def _failure(attempt: Callable[[], object]) -> str | None:
    """Why an attempt fails; the error itself, and the memory that its frames hold, is not kept."""
    try:
        attempt()
    except Exception as error:
        raise_if_fatal(error)
        return reason_of(error)
    return None


def reason_of(error: Exception) -> str:
    """The error's kind and first line."""
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:MAX_REASON]


def raise_if_fatal(error: Exception) -> None:
    """Tell an error for which no record is to blame, and which stays with this process.

    Raises:
        DeviceError: the device's context is lost, or the host's memory is used up.
    """
    lost = isinstance(error, torch.AcceleratorError) or any(
        sign in str(error) for sign in ("CUDA error", "cuDNN error")
    )
    if isinstance(error, MemoryError) or (lost and not is_out_of_memory(error)):
        raise DeviceError(f"{reason_of(error)}: only a new process can go on") from error
