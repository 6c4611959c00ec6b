from __future__ import annotations

import io
import logging
import sys

import pytest

from pipelines import progress
from pipelines.progress import Progress
from pipelines.write import Part


def part(n: int) -> Part:
    return Part(f"part-a-0123-{n:05d}.parquet", rows=10, failed=1, tokens=100, bytes=1)


def test_logs_tell_the_figures(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 1000.0)
    with caplog.at_level(logging.INFO, "pipelines.progress"), Progress(n_units=3) as shown:
        for n in range(3):
            shown.add([part(n)])
    (line,) = caplog.messages  # the last unit is always told, those before only now and then
    assert line.startswith("3 of 3 units: 30 rows (3 failed), ")
    assert "tokens/s" in line


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Progress(n_units=2) as shown:
        shown.add([part(0), part(1)])
    assert "2/2" in terminal.getvalue()
    assert "20 rows (2 failed)" in terminal.getvalue()
    assert caplog.messages == []
