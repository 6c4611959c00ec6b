"""What the tests of the engine share: a GPU's way on the processor, and an encoder whose batches are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from convbert.engine import Packed, PackedEncoder, attention, compiler, cpu_kernels, graphs
from convbert.engine.compiler import Fused
from tests.convbert.engine.varlen import varlen_reference

N_THREADS = 3


@pytest.fixture
def several_threads() -> Iterator[None]:
    """More than one, on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of rows as written, a known room, and all records attended to at once, on the processor."""
    monkeypatch.setattr(compiler, "is_fused", lambda device: True)
    monkeypatch.setattr(compiler, "has_compiler", lambda: False)
    monkeypatch.setattr("convbert.engine.run.probed_budget", lambda *args, **kwargs: 1024)
    monkeypatch.setattr("convbert.engine.encoder.has_kernel", lambda *args, **kwargs: True)
    monkeypatch.setattr(attention, "_at_once", lambda: varlen_reference)
    monkeypatch.setattr(graphs, "record", run_again)


def run_again(function: Callable[[], torch.Tensor], device: torch.device, pool: object) -> tuple[Any, torch.Tensor]:
    """Stands in for ``graphs.record``."""
    graph = RunAgain(function)
    return graph, graph.result


class RunAgain:
    """Stands in for a CUDA graph, on the processor."""

    def __init__(self, function: Callable[[], torch.Tensor]) -> None:
        self._function = function
        self.result = function().clone()

    def pool(self) -> None:
        """Of no memory."""

    def replay(self) -> None:
        """Write over the result."""
        self.result.copy_(self._function())


@pytest.fixture
def in_triton(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way with Triton's kernels, which Triton's interpreter runs; an error of theirs is the test's."""
    pytest.importorskip("triton")
    monkeypatch.setattr(compiler, "has_compiler", lambda: True)
    monkeypatch.setattr("convbert.engine.compiler.logger.warning", None)  # as Fused calls it for such an error
    monkeypatch.setattr("convbert.engine.run.warm_up", lambda *args, **kwargs: None)  # the interpreter takes seconds,
    monkeypatch.setattr("convbert.engine.encoder.size_of", lambda *counts: None)  # and more for what fills a batch up


@pytest.fixture
def in_cpp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Functions of rows run as the processor's kernels, and a test fails where one runs as written instead."""
    if cpu_kernels.library() is None:
        pytest.skip("no C++ compiler here")
    called: list[Fused] = []
    ran: list[str] = []
    call, run = Fused.__call__, cpu_kernels._run

    def watched(self: Fused, *args: Any) -> Any:
        called.append(self)
        return call(self, *args)

    def counted(name: str, *args: Any) -> None:
        ran.append(name)
        run(name, *args)

    monkeypatch.setattr(Fused, "__call__", watched)
    monkeypatch.setattr(cpu_kernels, "_run", counted)
    yield
    assert [fused._function.__name__ for fused in called] == ran


@pytest.fixture
def batches_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """``batches_of(limit)`` lists from now on how many tokens each batch of an encoder has; above the limit the
    encoder runs out of memory."""
    original = PackedEncoder.__call__

    def watch(limit: float = float("inf")) -> list[int]:
        sizes: list[int] = []

        def watched(self: PackedEncoder, batch: Packed, *args: Any, **kwargs: Any) -> torch.Tensor:
            sizes.append(len(batch.input_ids))
            if sizes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(self, batch, *args, **kwargs)

        monkeypatch.setattr(PackedEncoder, "__call__", watched)
        return sizes

    return watch
