from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from convbert import InputError
from pipelines.culprits import (
    MAX_ALONE,
    MAX_REASON,
    failing_alone,
    good_rows,
    raise_if_fatal,
    reason_of,
    without_culprits,
)
from pipelines.errors import DeviceError, RunError

N_ROWS = 5000


def attempts_on(culprits: set[int]) -> tuple[Callable[[np.ndarray], None], list[int]]:
    """An attempt that fails where a culprit is among the rows, and the list of its sizes."""
    sizes: list[int] = []

    def attempt(rows: np.ndarray) -> None:
        sizes.append(len(rows))
        if bad := sorted(culprits & set(rows.tolist())):
            raise ValueError(f"row {bad[0]}\nand more")

    return attempt, sizes


def works() -> None:
    pass


@pytest.mark.parametrize("n_culprits", [0, 1, 2, 7, 40])
def test_culprits_are_found_in_few_attempts(n_culprits: int) -> None:
    rows = np.arange(N_ROWS) * 3
    culprits = set(np.random.default_rng(n_culprits).choice(rows, n_culprits, replace=False).tolist())
    attempt, sizes = attempts_on(culprits)
    found = failing_alone(rows, attempt, control=works, what="it")
    assert found == {row: f"ValueError: row {row}" for row in culprits}
    assert len(sizes) <= 2 * max(1, n_culprits) * math.ceil(math.log2(N_ROWS))


def test_a_run_of_bad_neighbours_is_no_broken_model() -> None:
    culprits = set(range(MAX_ALONE * 2))
    attempt, _ = attempts_on(culprits)
    assert set(failing_alone(np.arange(N_ROWS), attempt, control=works, what="it")) == culprits


@pytest.mark.parametrize("n_rows", [1, 2, MAX_ALONE - 1])
def test_a_few_rows_may_all_be_bad(n_rows: int) -> None:
    attempt, _ = attempts_on(set(range(n_rows)))
    assert set(failing_alone(np.arange(n_rows), attempt, control=works, what="it")) == set(range(n_rows))


def test_a_model_that_fails_on_everything_is_given_up_early() -> None:
    attempt, sizes = attempts_on(set(range(N_ROWS)))
    with pytest.raises(RunError, match=f"it fails on any record, such as {MAX_ALONE} that .*: ValueError: row"):
        failing_alone(np.arange(N_ROWS), attempt, control=works, what="it")
    assert len(sizes) < 2 * MAX_ALONE + math.log2(N_ROWS)


def test_no_record_is_blamed_where_the_control_fails() -> None:
    attempt, sizes = attempts_on({0})

    def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(RunError, match="it no longer works: ValueError: broken"):
        failing_alone(np.arange(1), attempt, control=fails, what="it")
    assert sizes == []


@pytest.mark.parametrize(
    ("error", "is_fatal"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (ValueError("row 3"), False),
    ],
)
def test_what_no_record_is_to_blame_for(error: Exception, is_fatal: bool) -> None:
    if not is_fatal:
        return raise_if_fatal(error)
    with pytest.raises(DeviceError, match=f"{type(error).__name__}: .*only a new process can go on"):
        raise_if_fatal(error)
    return None


def test_a_device_that_is_lost_during_the_search_is_no_fault_of_records() -> None:
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    errors: list[Exception] = [ValueError("row 1"), lost]

    def attempt(rows: np.ndarray) -> None:
        raise errors.pop(0)

    with pytest.raises(DeviceError, match="device-side assert triggered: only a new process can go on"):
        failing_alone(np.arange(N_ROWS), attempt, control=works, what="it")
    assert errors == []


def test_a_device_that_is_lost_after_the_search_is_no_fault_of_records() -> None:
    """The last time, when all but the culprits are done in one go."""
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    n_done = []

    def work(block: pa.Table) -> pa.Table:
        rows = block["n"].to_numpy()[good_rows(block)]
        n_done.append(len(rows))
        if 1 in rows:
            raise ValueError("row 1")
        if len(n_done) > 1 and len(rows) == 3:
            raise lost
        return block

    block = pa.table({"n": range(4), "error": pa.nulls(4, pa.string())})
    with pytest.raises(DeviceError, match="device-side assert triggered: only a new process can go on"):
        without_culprits(block, work, what="it")


def test_a_device_that_is_lost_before_the_search_is_no_fault_of_records() -> None:
    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    attempt, sizes = attempts_on({0})
    with pytest.raises(DeviceError, match="device-side assert triggered: only a new process can go on"):
        failing_alone(np.arange(1), attempt, control=lost, what="it")
    assert sizes == []


def test_reasons_are_one_short_line() -> None:
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert len(reason_of(ValueError("y" * 1000))) == MAX_REASON


@pytest.mark.parametrize("error", [DeviceError("the context is lost"), InputError("no such id")], ids=repr)
def test_what_the_control_says_of_itself_is_told_as_it_is(error: Exception) -> None:
    def fails() -> None:
        raise error

    attempt, _ = attempts_on({1})
    with pytest.raises(type(error)) as told:
        failing_alone(np.arange(3), attempt, control=fails, what="it")
    assert told.value is error
