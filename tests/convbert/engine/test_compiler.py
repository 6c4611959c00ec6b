from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from convbert.engine import compiler, convolution, cpu_kernels, int8, precision
from convbert.engine.compiler import Fused


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install("gcc", "Python.h")`` makes a machine that has these and no other programs and headers."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name, scheme: str(tmp_path))

    def install(*names: str) -> None:
        monkeypatch.setattr(compiler.shutil, "which", lambda program: program if program in names else None)
        if "Python.h" in names:
            (tmp_path / "Python.h").touch()

    return install


@pytest.mark.parametrize(
    ("triton", "names", "cc", "expected"),
    [
        (True, {"gcc", "Python.h"}, "", True),
        (True, {"Python.h"}, "/opt/cc", True),
        (True, {"g++", "Python.h"}, "", False),
        (True, {"gcc"}, "", False),
        (False, {"gcc", "Python.h"}, "", False),
    ],
)
def test_a_gpu_is_compiled_for_with_triton_a_c_compiler_and_pythons_headers(
    install: Callable[..., None],
    triton: bool,
    names: set[str],
    cc: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(*names)
    monkeypatch.setattr(compiler, "has_triton", lambda: triton)
    monkeypatch.setenv("CC", cc)
    assert compiler.has_compiler.__wrapped__() is expected
    assert ("install gcc and python3-dev" in caplog.text) is not expected


@pytest.mark.parametrize(
    "failure",
    [
        "out of resource: shared memory",
        subprocess.CalledProcessError(1, "gcc"),
        FileNotFoundError("~/.triton"),
        AssertionError("libcuda.so cannot found!"),
        RuntimeError("PassManager::run failed"),
    ],
    ids=str,
)
def test_where_triton_fails_the_function_runs_as_written(
    failure: str | Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = pytest.importorskip("triton.errors")
    raised = errors.TritonError(failure) if isinstance(failure, str) else failure
    triton_kernels = pytest.importorskip("convbert.engine.triton_kernels", exc_type=ImportError)
    calls: list[float] = []

    def doubled(x: torch.Tensor, factor: float) -> torch.Tensor:
        return factor * x

    def failing(x: torch.Tensor, factor: float) -> torch.Tensor:
        calls.append(factor)
        raise (raised if factor == 2 else RuntimeError("Triton Error [CUDA]: out of memory"))

    monkeypatch.setattr(compiler, "is_fused", lambda device: True)
    monkeypatch.setattr(compiler, "has_compiler", lambda: True)
    monkeypatch.setattr(triton_kernels, "doubled", failing, raising=False)
    fused = Fused(doubled)
    with pytest.raises(RuntimeError, match="out of memory"):
        fused(torch.ones(2), 3.0)  # the caller's, and no reason to give up the kernel
    for _ in range(2):
        assert fused(torch.ones(2), 2.0).tolist() == [2, 2]
    assert calls == [3, 2]
    assert f"cannot compile for cpu, which runs slower than it could: {failure}" in caplog.text


def fused_functions(*modules: ModuleType) -> list[Callable[..., object]]:
    return [fused._function for module in modules for fused in vars(module).values() if isinstance(fused, Fused)]


def assert_same_parameters(kernels: ModuleType, function: Callable[..., object]) -> None:
    kernel = getattr(kernels, function.__name__)
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(function).parameters)


def test_every_fused_function_has_its_kernel() -> None:
    triton_kernels = pytest.importorskip("convbert.engine.triton_kernels", exc_type=ImportError)
    fused = fused_functions(convolution, precision)
    assert len(fused) == 4
    for function in fused:
        assert_same_parameters(triton_kernels, function)


def test_every_function_that_a_cpu_fuses_has_its_kernel() -> None:
    fused = [*fused_functions(int8), convolution.depthwise_taps, convolution.mixed_taps]
    assert len(fused) == len(cpu_kernels._ARGUMENTS) == 6
    for function in fused:
        assert_same_parameters(cpu_kernels, function)


def test_only_gpus_fuse_what_lies_between_the_products() -> None:
    assert [compiler.is_fused(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
