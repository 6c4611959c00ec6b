"""The kernels in C++ against the same functions as written, and where there is no compiler for them."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convbert import ConvBertForSequenceClassification
from convbert.engine import Engine, FirstToken, Packed, compiler, convolution, cpu_kernels, int8
from convbert.engine.packing import layout
from convbert.engine.threads import one_thread

pytestmark = pytest.mark.usefixtures("several_threads")
needs_a_compiler = pytest.mark.skipif(cpu_kernels.library() is None, reason="no C++ compiler here")
SIZES = [(1, 1), (1, 8), (7, 33), (40, 768), (130, 257)]  # the last two are shared by threads


def rows(n_rows: int, width: int, seed: int = 0) -> Tensor:
    """Rows of very different ranges."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, width, generator=generator) * torch.logspace(-3, 2, n_rows)[:, None]


def scales(n_rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(n_rows, 1, generator=generator)
    return scale, torch.randint(0, 255, (n_rows, 1), generator=generator).float()


def assert_same_levels(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """But for a number in a thousand, which another last digit rounds to the next level."""
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1)
    assert (found[0] != expected[0]).float().mean() <= 0.001
    for part, expected_part in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(part, expected_part)


@needs_a_compiler
@pytest.mark.parametrize(("n_rows", "width"), SIZES)
@pytest.mark.parametrize("n_levels", [128, 256])
def test_rows_have_the_same_levels(n_rows: int, width: int, n_levels: int) -> None:
    x = rows(n_rows, width)
    assert_same_levels(cpu_kernels.quantised(x, n_levels), int8.quantised(x, n_levels))
    columns = torch.cat([x, x], 1)[:, width:]
    assert_same_levels(cpu_kernels.quantised(columns, n_levels), int8.quantised(x, n_levels))


@needs_a_compiler
@pytest.mark.parametrize(("n_rows", "width"), SIZES)
def test_products_become_the_same_rows(n_rows: int, width: int) -> None:
    scale, zero = scales(n_rows)
    sums, bias, weight, shift = rows(4, width, seed=2).sign()
    product, residual = 100 * rows(n_rows, width).sign(), rows(n_rows, width, seed=3)
    of_product = (scale, zero, sums, bias)
    expected = int8.rescaled(product.clone(), *of_product)
    torch.testing.assert_close(cpu_kernels.rescaled(product.clone(), *of_product), expected)
    expected = int8.normalised(product.clone(), *of_product, residual, weight, shift, 1e-5)
    found = cpu_kernels.normalised(product.clone(), *of_product, residual, weight, shift, 1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@needs_a_compiler
@pytest.mark.parametrize(("n_rows", "width"), SIZES)
def test_gelu_is_the_exact_one(n_rows: int, width: int) -> None:
    product = torch.linspace(-12, 12, n_rows * width).view(width, n_rows).T.contiguous()
    of_product = (torch.ones(n_rows, 1), torch.zeros(n_rows, 1), torch.ones(width), torch.zeros(width))
    expected = torch.nn.functional.gelu(product.double())
    found = product.clone()
    assert_same_levels(
        cpu_kernels.gelu_quantised(found, *of_product, 256), int8.gelu_quantised(product, *of_product, 256)
    )
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)


@needs_a_compiler
@pytest.mark.parametrize(("width", "n_heads"), [(768, 12), (48, 1), (50, 2), (6, 3), (384, 6)])
@pytest.mark.parametrize("n_taps", [1, 4, 9])
def test_convolutions_are_the_same(width: int, n_heads: int, n_taps: int) -> None:
    where = layout(np.array([3, 1, 20, 100]), n_taps=n_taps, max_length=100)
    sides = torch.from_numpy(where.sides)
    x, taps = rows(124, width), rows(n_taps, width, seed=1).sign()
    found, expected = cpu_kernels.depthwise_taps(x, taps, sides), convolution.depthwise_taps(x, taps, sides)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    logits, values = 20 * rows(124, n_heads * n_taps).tanh(), torch.cat([x, x], 1)[:, width:]
    for attended in (None, 2 * x):
        found, expected = torch.zeros(124, 2 * width), torch.zeros(124, 2 * width)
        cpu_kernels.mixed_taps(found, logits, values, sides, attended, n_heads)
        convolution.mixed_taps(expected, logits, values, sides, attended, n_heads)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@needs_a_compiler
@pytest.mark.parametrize("no_number", [torch.nan, torch.inf, -torch.inf])
def test_a_row_with_no_number_has_none_at_all_and_leaves_the_others(no_number: float) -> None:
    x = rows(40, 768)
    x[3, 5] = no_number
    levels, scale, zero = cpu_kernels.quantised(x, 256)
    values = scale * (levels.float() - zero)
    assert not values[3].isfinite().any()
    others = torch.arange(40) != 3
    assert_same_levels((levels[others], scale[others]), int8.quantised(x[others], 256)[:2])


@needs_a_compiler
def test_a_row_does_not_depend_on_the_number_of_threads() -> None:
    sums, bias, weight, shift = rows(4, 768, seed=2)
    where = torch.from_numpy(layout(np.array([40]), n_taps=9, max_length=40).sides)

    def results() -> list[Tensor]:
        product = rows(40, 768)
        context = torch.zeros(40, 1536)
        cpu_kernels.mixed_taps(context, rows(40, 108), product, where, None, 12)
        convolved = cpu_kernels.depthwise_taps(product, rows(9, 768), where)
        levels = cpu_kernels.gelu_quantised(product, *scales(40), sums, bias, 256)
        return [
            context,
            convolved,
            *levels,
            cpu_kernels.normalised(product, *scales(40), sums, bias, product.clone(), weight, shift, 1e-5),
        ]

    together = results()
    with one_thread():
        alone = results()
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found, expected)


@needs_a_compiler
def test_pythons_lock_is_free_while_a_kernel_runs() -> None:
    """Or threads that have micro-batches of their own would take turns."""
    x, scale, zero, levels = (
        rows(200, 3072),
        torch.empty(200),
        torch.empty(200),
        torch.empty(200, 3072, dtype=torch.uint8),
    )
    arguments = (*(tensor.data_ptr() for tensor in (x, levels, scale, zero)), 200, 3072, 256, 1)
    kernel = cpu_kernels.library().quantised
    begun, n_steps, deadline = threading.Event(), [0], time.monotonic() + 30
    seen: list[int] = []

    def run() -> None:
        begun.set()
        while not n_steps[0] and time.monotonic() < deadline:  # nothing else here leaves the lock, as torch's calls do
            kernel(*arguments)
        seen.append(n_steps[0])

    thread = threading.Thread(target=run)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600)  # from now on a thread gets the lock only when the other leaves it
    try:
        thread.start()
        begun.wait()
        for _ in range(1000):
            n_steps[0] += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == [1000]


@needs_a_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_threads_that_share_a_kernel_are_torchs() -> None:
    """A second OpenMP would bring threads of its own, which fight torch's for the cores."""
    code = (
        "from convbert.engine import cpu_kernels; cpu_kernels.library()\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.rpartition('/')[2]})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (loaded,) = ast.literal_eval(run.stdout)
    assert Path(torch.__file__).parent in Path(loaded).parents


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_without_a_compiler_gives_the_same(
    precision: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    lengths = [90, 1, 17, 5]
    ids = np.random.default_rng(0).integers(5, 60, sum(lengths))
    batch = Packed(ids, np.concatenate([[0], np.cumsum(lengths)]))

    def scores() -> np.ndarray:
        engine = Engine(model.base_model, {"scores": FirstToken(model.classifier)}, precision=precision)
        return engine(batch)["scores"].values

    expected = scores()
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    np.testing.assert_allclose(scores(), expected, atol=1e-5 if precision == "fp32" else 1e-2)  # a level up or down


def compiler_that(folder: Path, script: str) -> str:
    program = folder / "c++"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "none"), "is installed: the engine runs slower than it could (install g++)"),
        (lambda folder: compiler_that(folder, "echo no such processor >&2; exit 1"), "no such processor"),
        (lambda folder: compiler_that(folder, 'for last; do :; done; echo no code > "$last"'), "cpu_kernels.so"),
        (lambda folder: compiler_that(folder, r"printf 'f\374r\n' >&2; exit 1"), "it could: f\ufffdr"),  # in Latin-1
        (lambda folder: compiler_that(folder, "exec sleep 60"), "timed out after 3 seconds"),
    ],
    ids=["none", "fails", "makes nothing that can be loaded", "speaks no UTF-8", "hangs"],
)
def test_without_a_compiler_that_works_the_functions_run_as_written(
    make: Callable[[Path], str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cpu_kernels, "MOST_S", 3)
    monkeypatch.setenv("CXX", make(tmp_path))
    assert cpu_kernels.library.__wrapped__() is None
    assert message in caplog.text
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    assert not compiler.has_cpu_kernels(torch.device("cpu"), torch.float32)
    x = rows(7, 33)
    for found, expected in zip(int8.quantise(x), int8.quantised(x, int8.most_levels()), strict=True):
        assert torch.equal(found, expected)


@needs_a_compiler
@pytest.mark.parametrize("command", ["", " ", "env g++", "g++ -DNDEBUG"])
def test_a_compiler_may_have_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    assert cpu_kernels.library.__wrapped__() is not None


@needs_a_compiler
def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert cpu_kernels.library.__wrapped__() is None
    assert "cannot compile for this machine" in caplog.text
