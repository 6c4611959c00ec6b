from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from convbert.engine import compiler, convolution, precision
from convbert.engine.compiler import Fused, RowKernel


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


@pytest.mark.parametrize(
    "error",
    [TorchDynamoException("Python.h: No such file"), PermissionError(13, "Permission denied", "/tmp/torchinductor_me")],
    ids=["on the function", "on the folder that it writes into"],
)
def test_where_the_compiler_fails_the_function_runs_as_written(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called = failing_compiler(monkeypatch, error)
    doubled = RowKernel(lambda x: x * 2)
    for _ in range(2):
        assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert len(called) == 1
    assert f"cannot compile for cpu, which runs slower than it could: {error}" in caplog.text


def test_other_errors_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    called = failing_compiler(monkeypatch, torch.OutOfMemoryError("no memory"))
    doubled = RowKernel(lambda x: x * 2)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            doubled(torch.ones(2))
    assert len(called) == 2


@pytest.mark.parametrize(("capability", "bits"), [("AVX512", 512), ("AVX2", 256), ("DEFAULT", None)])
def test_what_is_compiled_is_kept_for_processors_with_as_wide_vectors(
    capability: str, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    monkeypatch.setattr(compiler, "has_compiler", lambda device_type: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.append(options) or function)
    RowKernel(lambda x: x * 2)(torch.ones(2))
    assert [options["options"] for options in given] == [{"cpp.simdlen": bits}]


QUANTISED = """
import torch
from convbert.engine.int8 import quantise
print(torch.backends.cpu.get_cpu_capability(), quantise(torch.arange(400.0).view(4, 100)).levels.sum().item())
"""


@pytest.mark.slow  # two processes that import torch's compiler
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="no processor with two widths of vectors"
)
def test_a_processor_with_narrower_vectors_finds_no_code_for_wide_ones(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = []
    for settings in ({}, {"ATEN_CPU_CAPABILITY": "avx2"}):
        command = [sys.executable, "-c", QUANTISED]
        run = subprocess.run(command, env={**environment, **settings}, check=True, capture_output=True, text=True)
        found.append(run.stdout.split())
    assert [capability for capability, _ in found] == ["AVX512", "AVX2"]
    assert len({levels for _, levels in found}) == 1


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install("g++", "Python.h")`` makes a machine that has these and no other programs and headers."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
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
    assert compiler.has_compiler.__wrapped__("cuda") is expected
    assert ("install gcc and python3-dev" in caplog.text) is not expected


@pytest.mark.parametrize(
    ("names", "cxx", "expected"),
    [
        ({"g++", "Python.h"}, None, True),
        ({"clang++", "Python.h"}, "clang++", True),
        ({"clang++", "c++", "Python.h"}, None, False),
        ({"g++", "Python.h"}, "clang++", False),
        ({"g++"}, None, False),
    ],
)
def test_a_cpu_is_compiled_for_with_torchs_cpp_compiler_and_pythons_headers(
    install: Callable[..., None],
    names: set[str],
    cxx: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(*names)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert compiler.has_compiler.__wrapped__("cpu") is expected
    assert ("install g++ and python3-dev" in caplog.text) is not expected


def test_a_machine_without_a_compiler_runs_as_written(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(compiler, "has_compiler", compiler.has_compiler.__wrapped__)
    doubled = compiler.RowKernel(lambda x: x * 2)
    assert doubled(torch.ones(3)).tolist() == [2, 2, 2]
    assert "_compiled" not in vars(doubled)


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
    monkeypatch.setattr(compiler, "has_compiler", lambda device_type: True)
    monkeypatch.setattr(triton_kernels, "doubled", failing, raising=False)
    fused = Fused(doubled)
    with pytest.raises(RuntimeError, match="out of memory"):
        fused(torch.ones(2), 3.0)  # the caller's, and no reason to give up the kernel
    for _ in range(2):
        assert fused(torch.ones(2), 2.0).tolist() == [2, 2]
    assert calls == [3, 2]
    assert f"cannot compile for cpu, which runs slower than it could: {failure}" in caplog.text


def test_every_fused_function_has_its_kernel() -> None:
    triton_kernels = pytest.importorskip("convbert.engine.triton_kernels", exc_type=ImportError)
    fused = [
        value for module in (convolution, precision) for value in vars(module).values() if isinstance(value, Fused)
    ]
    assert len(fused) == 4
    for function in (one._function for one in fused):
        kernel = getattr(triton_kernels, function.__name__)
        assert list(inspect.signature(kernel).parameters) == list(inspect.signature(function).parameters)


def test_only_gpus_fuse_what_lies_between_the_products() -> None:
    assert [compiler.is_fused(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
