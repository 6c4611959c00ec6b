from __future__ import annotations

import io
import logging
import re
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import progress
from pipelines.progress import Progress
from pipelines.write import Part


def part(n: int, rows: int = 10) -> Part:
    return Part(f"part-a-0123-{n:05d}.parquet", rows=rows, failed=1, tokens=10 * rows, bytes=1)


def test_that_nothing_is_labelled_is_told_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STALL_S", 0.01)
    looked, reasons = threading.Semaphore(0), ["no room", None, "no room yet"]

    def stalled() -> str | None:
        looked.release()
        return reasons.pop(0) if reasons else None

    with caplog.at_level(logging.WARNING, "pipelines.progress"), Progress(n_units=3, stalled=stalled):
        for _ in range(5):
            assert looked.acquire(timeout=60)
    assert caplog.messages == ["no room", "no room yet"]


def test_a_run_that_goes_on_is_not_asked_whether_it_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []

    def waited(seconds: float) -> bool:
        """A part is finished meanwhile; the third wait is the last."""
        waits.append(seconds)
        shown.add([part(len(waits))], n_at_work=1)
        return len(waits) == 3

    shown = Progress(n_units=9, stalled=lambda: pytest.fail("it goes on"))
    monkeypatch.setattr(shown._is_over, "wait", waited)
    shown._tell_stalls()
    assert waits == [progress.STALL_S] * 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which tests set."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))  # and nobody else's
    return now


def test_logs_tell_the_figures(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=30, n_rows=300, n_actors=4) as shown:
        for n in range(30):
            clock[0] += 2
            shown.add([part(n)], n_at_work=3)
    assert len(caplog.messages) == 6  # one in ten seconds
    assert caplog.messages[0] == (
        "5 of 30 units: 50 of 300 rows (5 failed), 5 rows/s, 50 tokens/s, 3 of 4 actors at work, 0:00:50 left"
    )
    assert caplog.messages[-1] == "30 of 30 units: 300 of 300 rows (30 failed), 5 rows/s, 50 tokens/s"


def test_the_last_unit_is_always_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=3) as shown:
        for n in range(3):
            shown.add([part(n)], n_at_work=1)
    (line,) = caplog.messages
    assert line.startswith("3 of 3 units: 30 of about 30 rows (3 failed), ")


@pytest.mark.parametrize("n_units", [2, 5])
def test_the_end_is_told_where_the_number_of_units_was_an_estimate(
    n_units: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=n_units) as shown:
        for n in range(3):
            shown.add([part(n)], n_at_work=1)
    assert [message.split(":")[0] for message in caplog.messages if message.startswith("3 of ")] == [
        f"3 of {max(n_units, 3)} units"
    ]


def test_rows_that_nobody_knows_are_estimated(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=8) as shown:
        clock[0] += 10
        shown.add([part(0, rows=10), part(1, rows=30)], n_at_work=1)
    assert "40 of about 160 rows" in caplog.messages[0]
    assert "0:00:30 left" in caplog.messages[0]


def test_rates_are_those_of_the_last_minute(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=1000, n_rows=10000) as shown:
        clock[0] += 500  # the models were loaded
        shown.add([part(0)], n_at_work=1)
        for n in range(1, 71):
            clock[0] += 1
            shown.add([part(n)], n_at_work=1)
    assert "10 rows/s, 100 tokens/s" in caplog.messages[-1]


@pytest.mark.parametrize("columns", [200, 80])
def test_a_terminal_gets_a_bar(columns: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress(n_units=4, n_rows=40, n_actors=2) as shown:
        shown.add([part(0), part(1)], n_at_work=2)
    text = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).split())
    for figure in ("50%", "20 of 40 rows (2 failed)", "rows/s", "tokens/s", "2 of 2 actors at work", "left"):
        assert figure in text
    assert caplog.messages == []
