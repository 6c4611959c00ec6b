from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from convbert.engine import compiler
from convbert.engine.compiler import RowKernel


def failing_compiler(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Callable[..., object]]:
    """Let what is compiled fail; the list takes what is called."""
    called: list[Callable[..., object]] = []

    def compiled(function: Callable[..., object], **options: object) -> Callable[..., object]:
        def run(*args: object) -> object:
            called.append(function)
            raise error

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(compiler, "has_compiler", lambda device_type: True)
    return called


def test_where_the_compiler_fails_the_function_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called = failing_compiler(monkeypatch, TorchDynamoException("Python.h: No such file"))
    doubled = RowKernel(lambda x: x * 2)
    for _ in range(2):
        assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert len(called) == 1
    assert "cannot compile for cpu, which runs slower than it could: Python.h" in caplog.text


def test_other_errors_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    called = failing_compiler(monkeypatch, torch.OutOfMemoryError("no memory"))
    doubled = RowKernel(lambda x: x * 2)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            doubled(torch.ones(2))
    assert len(called) == 2


@pytest.mark.parametrize(
    ("triton", "programs", "cc", "expected"),
    [
        (True, {"gcc"}, "", True),
        (True, set(), "/opt/cc", True),
        (True, {"g++"}, "", False),
        (False, {"gcc"}, "", False),
    ],
)
def test_a_gpu_is_compiled_for_with_triton_and_a_c_compiler(
    triton: bool, programs: set[str], cc: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "has_triton", lambda: triton)
    monkeypatch.setattr(compiler.shutil, "which", lambda program: program if program in programs else None)
    monkeypatch.setenv("CC", cc)
    assert compiler.has_compiler.__wrapped__("cuda") is expected


def test_a_machine_without_a_compiler_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "has_compiler", compiler.has_compiler.__wrapped__)
    monkeypatch.setenv("PATH", "")
    doubled = compiler.RowKernel(lambda x: x * 2)
    assert doubled(torch.ones(3)).tolist() == [2, 2, 2]
    assert "install g++" in caplog.text


def test_only_gpus_run_row_kernels_for_floats() -> None:
    assert [compiler.is_fused(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
