"""Work that fails on some records in, its result without these records out, and an error for each of them.

A record is to blame, a culprit, if the work fails on it even when it is done on this record alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from convbert import ConvBertError
from convbert.engine import is_lost_device, is_out_of_memory
from convbert.engine.packing import Indices
from pipelines.errors import DeviceError, PipelineError, RunError

MAX_ALONE = 16  # where so many records have failed alone and nothing has worked, it is not the records
MAX_REASON = 300  # characters

Result = TypeVar("Result")


def good_rows(block: pa.Table) -> Indices:
    """The rows without an error."""
    errors = block["error"]
    if errors.null_count == len(block):
        return np.arange(len(block))
    return np.flatnonzero(errors.is_null().to_numpy())


def with_errors(block: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """The block with these errors at these rows."""
    if not reasons:
        return block
    errors = block["error"].to_pylist()
    for row, reason in reasons.items():
        errors[row] = reason
    return block.set_column(block.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


def without_culprits(block: pa.Table, work: Callable[[pa.Table], pa.Table], *, what: str) -> pa.Table:
    """What the work makes of a block, with an error at each record on which it fails alone.

    The arguments, and what it raises, are those of ``sparing_culprits``; the work passes rows with an error on.
    """
    good = good_rows(block)

    def on(rows: Indices) -> pa.Table:
        others = {} if len(rows) == len(good) else dict.fromkeys(np.setdiff1d(good, rows).tolist(), "")
        return work(with_errors(block, others))

    result, reasons = sparing_culprits(good, on, control=partial(on, good[:0]), what=what)
    return with_errors(result, reasons)


def sparing_culprits(
    rows: Indices, work: Callable[[Indices], Result], *, control: Callable[[], object], what: str
) -> tuple[Result, dict[int, str]]:
    """What the work makes of all rows but those on which it fails alone, and an error for each of these.

    Once the culprits are known, the work is done anew on all other rows together. So its result is the same to the byte
    however long the search was.

    Args:
        control: raises where the work cannot be done at all.
        what: fails, for people.

    Raises:
        PipelineError, ConvBertError: of the control.
        RunError: it is not the records: the work fails on every one, or on some only together.
        DeviceError: only a new process can go on.
    """
    try:
        return work(rows), {}
    except Exception as error:
        raise_if_fatal(error)
    # From here the error, and the memory that its frames hold, is gone.
    reasons = failing_alone(rows, work, control=control, what=what)
    errors = {row: f"{what} failed on this record: {why}" for row, why in reasons.items()}
    try:
        return work(rows[~np.isin(rows, list(errors))]), errors
    except Exception as error:
        raise_if_fatal(error)
        raise RunError(
            f"{what} fails on records together, but on none alone: {reason_of(error)}: lower --unit-rows"
        ) from error


def failing_alone(
    rows: Indices, attempt: Callable[[Indices], object], *, control: Callable[[], object], what: str
) -> dict[int, str]:
    """Each row that fails alone, and why: k rows of n cost at most about 2·k·log2(n) attempts.

    Args:
        rows: that fail together.
        attempt: raises where it fails.
        control, what: see ``sparing_culprits``.
    """
    try:
        control()
    except (PipelineError, ConvBertError):
        raise
    except Exception as error:
        raise_if_fatal(error)
        raise RunError(f"{what} no longer works: {reason_of(error)}") from error
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
                raise RunError(f"{what} fails on any record, such as {MAX_ALONE} that were tried alone: {reason}")
    return reasons


def _halves(rows: Indices) -> list[Indices]:
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
    """The error's kind and first line; of a lack of memory only that, for its figures differ from time to time."""
    if is_out_of_memory(error):
        return "OutOfMemoryError: the device has too little memory"
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:MAX_REASON]


def raise_if_fatal(error: Exception) -> None:
    """Tell an error for which no record is to blame, and which stays with this process.

    Raises:
        DeviceError: the device's context is lost, or the host's memory is used up.
    """
    if isinstance(error, MemoryError) or is_lost_device(error):
        raise DeviceError(f"{reason_of(error)}: only a new process can go on") from error
