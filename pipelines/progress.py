"""Finished parts in, a bar on a terminal or a log line now and then out."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipelines.write import Part

logger = logging.getLogger(__name__)
LOG_INTERVAL_S = 10.0


class Progress:
    """Counts units, rows and tokens as parts are finished.

    Args:
        n_units: units to finish.
    """

    def __init__(self, *, n_units: int) -> None:
        self._n_units = n_units
        self._done = self._rows = self._failed = self._tokens = 0
        self._started = self._logged = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            self._bar = Bar(
                BarColumn(bar_width=14),
                MofNCompleteColumn(),
                TextColumn("units, {task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("labelling", total=n_units, figures="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, parts: Iterable[Part]) -> None:
        """Count finished parts."""
        for part in parts:
            self._done += 1
            self._rows += part.rows
            self._failed += part.failed
            self._tokens += part.tokens
        if self._bar:
            self._bar.update(
                self._task, completed=self._done, total=max(self._n_units, self._done), figures=self._figures()
            )
        elif time.monotonic() - self._logged >= LOG_INTERVAL_S or self._done == self._n_units:
            self._logged = time.monotonic()
            logger.info("%d of %d units: %s", self._done, self._n_units, self._figures())

    def _figures(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        failed = f" ({self._failed:,} failed)" if self._failed else ""
        return (
            f"{self._rows:,} rows{failed}, {self._rows / seconds:,.0f} rows/s, {self._tokens / seconds:,.0f} tokens/s"
        )
