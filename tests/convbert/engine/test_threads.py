from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convbert import ConvBertForSequenceClassification
from convbert.engine import (
    EachToken,
    Engine,
    FirstToken,
    Packed,
    PackedEncoder,
    Pooled,
    PseudoLikelihood,
    Rows,
    threads,
)
from convbert.engine.packing import Indices
from convbert.engine.threads import one_thread, side_by_side
from tests.convbert.engine.conftest import N_THREADS

pytestmark = pytest.mark.usefixtures("several_threads")


def records(*lengths: int) -> Packed:
    ids = np.random.default_rng(0).integers(5, 60, sum(lengths))
    return Packed(ids, np.concatenate([[0], np.cumsum(lengths)]))


def engine_of(checkpoint: Path, **options: Any) -> Engine:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    heads = {
        "first": FirstToken(model.classifier),
        "each": EachToken(model.classifier.dense),
        "mean": Pooled("mean"),
    }
    return Engine(model.base_model, heads, **options)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Of each batch that an encoder runs: the thread's name, its number of threads, and the tokens."""
    seen: list[tuple[str, int, int]] = []
    original = PackedEncoder.__call__

    def watched(self: PackedEncoder, batch: Packed, wanted: Indices | None = None) -> torch.Tensor:
        seen.append((threading.current_thread().name, torch.get_num_threads(), len(batch.input_ids)))
        return original(self, batch, wanted)

    monkeypatch.setattr(PackedEncoder, "__call__", watched)
    return seen


def assert_same(rows: dict[str, Rows], expected: dict[str, Rows]) -> None:
    for name in expected:
        np.testing.assert_array_equal(rows[name].offsets, expected[name].offsets)
        np.testing.assert_allclose(rows[name].values, expected[name].values, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_many_records_run_side_by_side_to_the_same_results(
    precision: str, checkpoint: Path, runs: list[tuple[str, int, int]]
) -> None:
    batch = records(*[90, 5, 17, 5, 80, 1, 1, 33, 64, 12, 40, 40] * 4)
    engine = engine_of(checkpoint, precision=precision, max_batch_tokens=100)
    rows = engine(batch)
    own = [run for run in runs if run[0].startswith("side-by-side")]
    assert {n_threads for _, n_threads, _ in own} == {1}
    assert sum(n_tokens for *_, n_tokens in own) == 4 * 388
    assert max(n_tokens for *_, n_tokens in own) <= 100
    assert torch.get_num_threads() == N_THREADS
    assert_same(rows, engine(batch))
    with one_thread():
        assert_same(rows, engine(batch))


def test_copies_of_a_record_are_scored_side_by_side(checkpoint: Path, runs: list[tuple[str, int, int]]) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    scorer = PseudoLikelihood(torch.nn.Linear(32, 60), mask_id=4, unscored=frozenset())
    engine = Engine(model.base_model, {"score": scorer}, max_batch_tokens=40)
    batch = records(9, 20, 4)
    rows = engine(batch)
    assert sum(n_tokens for name, n, n_tokens in runs if name.startswith("side-by-side") and n == 1) == 81 + 400 + 16
    with one_thread():
        assert_same(rows, engine(batch))


def test_threads_take_equal_shares_of_a_few_records(
    checkpoint: Path, runs: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, engine = records(*[80, 60, 50, 90] * 3), engine_of(checkpoint)
    with one_thread():
        expected = engine(batch)
    runs.clear()
    run, meeting = Engine._run, threading.Barrier(N_THREADS, timeout=60)  # which opens when so many run at a time

    def together(self: Engine, its: Packed) -> dict[str, torch.Tensor]:
        meeting.wait()
        return run(self, its)

    monkeypatch.setattr(Engine, "_run", together)
    assert_same(engine(batch), expected)
    assert [(n_threads, n_tokens) for _, n_threads, n_tokens in runs] == [(1, 280)] * N_THREADS
    assert len({name for name, *_ in runs}) == N_THREADS


def test_a_few_records_in_int8_are_shared_by_all_threads(checkpoint: Path, runs: list[tuple[str, int, int]]) -> None:
    engine = engine_of(checkpoint, precision="int8")
    engine(records(*[80, 60, 50, 90] * 3))
    assert [run[1:] for run in runs] == [(N_THREADS, 840)]


def test_few_records_are_shared_by_all_threads(checkpoint: Path, runs: list[tuple[str, int, int]]) -> None:
    engine_of(checkpoint, max_batch_tokens=100)(records(*[90] * 13, 29))
    assert runs == [(threading.current_thread().name, N_THREADS, n_tokens) for n_tokens in [90] * 13 + [29]]


def test_without_memory_for_all_they_run_one_by_one_from_then_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch, engine = records(*[50] * 24), engine_of(checkpoint, max_batch_tokens=100)
    expected = engine(batch)
    run, failed = Engine._run, []

    def crowded(self: Engine, its: Packed) -> dict[str, torch.Tensor]:
        if threading.current_thread() is not threading.main_thread():
            failed.append(its)
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        return run(self, its)

    monkeypatch.setattr(Engine, "_run", crowded)
    with caplog.at_level(logging.WARNING):
        assert_same(engine(batch), expected)
    assert "no memory for 3 micro-batches at a time" in caplog.text
    assert engine.max_batch_tokens == 100
    n_failed = len(failed)
    assert n_failed
    assert_same(engine(batch), expected)
    assert len(failed) == n_failed


def test_another_error_is_the_callers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(checkpoint, max_batch_tokens=100)

    def broken(self: Engine, its: Packed) -> dict[str, torch.Tensor]:
        raise RuntimeError("a shape")

    engine(records(*[50] * 24))
    monkeypatch.setattr(Engine, "_run", broken)
    with pytest.raises(RuntimeError, match="a shape"):
        engine(records(*[50] * 24))
    assert torch.get_num_threads() == N_THREADS


def test_results_come_in_the_order_of_the_pieces_and_threads_share_them() -> None:
    meeting = threading.Barrier(N_THREADS, timeout=60)  # which opens when so many run at the same time

    def run(piece: int) -> tuple[int, int]:
        meeting.wait()
        return piece, torch.get_num_threads()

    assert side_by_side(run, range(9), n_threads=N_THREADS) == [(piece, 1) for piece in range(9)]
    assert torch.get_num_threads() == N_THREADS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_threads_of_its_own() -> None:
    """The child has none but the one that forked."""

    def run() -> None:
        assert side_by_side(abs, range(3), n_threads=2) == [0, 1, 2]

    run()
    child = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0


class LastFirst:
    """Threads of which the first is so late that the second has failed by then."""

    def __init__(self) -> None:
        self.left: list[tuple[Future[None], int]] = []

    def submit(self, run: Callable[[int], None], piece: int) -> Future[None]:
        self.left.append((Future(), piece))
        if piece == 1:
            for future, its in reversed(self.left):
                try:
                    future.set_result(run(its))
                except ValueError as error:
                    future.set_exception(error)
        return self.left[piece][0]


def test_a_late_thread_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(piece: int) -> None:
        raise ValueError(f"of piece {piece}")

    late = LastFirst()
    monkeypatch.setattr(threads, "_threads", lambda n: late)
    with pytest.raises(ValueError, match="of piece 1"):
        side_by_side(run, range(2), n_threads=2)


def test_after_an_error_no_piece_begins() -> None:
    begun: list[int] = []
    failed = threading.Event()

    def run(piece: int) -> None:
        begun.append(piece)
        if piece == 0:
            failed.set()
            raise ValueError("the first")
        failed.wait(60)

    with pytest.raises(ValueError, match="the first"):
        side_by_side(run, range(100_000), n_threads=2)
    assert len(begun) < 100_000
