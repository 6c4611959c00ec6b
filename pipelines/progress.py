"""Finished parts in, a bar on a terminal or a log line now and then out."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Columns
from rich.text import Text

from pipelines.write import Part

logger = logging.getLogger(__name__)
LOG_INTERVAL_S = 10.0
STALL_S = 60.0  # without a finished unit, after which it is looked whether there is something to say
RATE_WINDOW_S = 60.0  # rates are those of the last minute: starting and loading models say nothing about the rest


class Progress:
    """Counts units, rows and tokens as parts are finished.

    Args:
        n_units: units to finish.
        n_rows: records that they have; None where reading has to tell, which is then estimated.
        n_actors: model actors that there may be at most.
        stalled: why nothing is labelled, or None where something is; asked beside the caller's thread.
    """

    def __init__(
        self,
        *,
        n_units: int,
        n_rows: int | None = None,
        n_actors: int = 1,
        stalled: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._n_units = n_units
        self._n_rows = n_rows
        self._n_actors = n_actors
        self._n_at_work = 0
        self._done = self._rows = self._failed = self._tokens = 0
        self._told = 0  # units in the last line
        self._logged = time.monotonic()
        self._recent = deque([(self._logged, 0, 0)])  # when, rows and tokens by then
        self._bar = _Bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("loading models", total=None) if self._bar else TaskID(0)
        self._stalled = stalled
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._tell_stalls, daemon=True)

    def __enter__(self) -> Progress:
        self._watch.start()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._watch.join()
        if self._bar:
            self._bar.stop()
        elif kind is None and self._done > self._told:
            self._tell()

    def add(self, parts: Iterable[Part], *, n_at_work: int) -> None:
        """Count finished parts.

        Args:
            parts: that were finished.
            n_at_work: actors that compute now.
        """
        self._n_at_work = min(n_at_work, self._n_actors)
        for part in parts:
            self._done += 1
            self._rows += part.rows
            self._failed += part.failed
            self._tokens += part.tokens
        now = time.monotonic()
        self._recent.append((now, self._rows, self._tokens))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        if self._bar:
            self._bar.figures = self._figures()
            expected = max(self._expected_rows, 1)
            self._bar.update(self._task, description="labelling", completed=min(self._rows, expected), total=expected)
        elif now - self._logged >= LOG_INTERVAL_S or self._done == self._n_units:
            self._logged = now
            self._tell()

    def _tell_stalls(self) -> None:
        done = self._done
        while not self._is_over.wait(STALL_S):
            if self._done == done and (why := self._stalled()):
                logger.warning("%s", why)
            done = self._done

    def _tell(self) -> None:
        self._told = self._done
        logger.info("%s", self._figures())

    @property
    def _expected_rows(self) -> int:
        """Rows of all units: known, or as many in each as in those that are done."""
        if self._n_rows is not None:
            return self._n_rows
        return round(self._rows * max(1.0, self._n_units / max(self._done, 1)))

    def _figures(self) -> str:
        """Everything there is to say, in one line."""
        started, rows, tokens = self._recent[0]
        seconds = max(self._recent[-1][0] - started, 1e-9)
        rows_per_s, tokens_per_s = (self._rows - rows) / seconds, (self._tokens - tokens) / seconds
        expected, about = self._expected_rows, "" if self._n_rows is not None else "about "
        figures = [
            f"{self._done:,} of {max(self._n_units, self._done):,} units: "
            f"{self._rows:,} of {about}{expected:,} rows ({self._failed:,} failed)",
            f"{rows_per_s:,.0f} rows/s",
            f"{tokens_per_s:,.0f} tokens/s",
        ]
        if self._done < self._n_units:
            figures.append(f"{self._n_at_work} of {self._n_actors} actors at work")
        if rows_per_s > 0 and self._done < self._n_units:
            figures.append(f"{timedelta(seconds=round(max(expected - self._rows, 0) / rows_per_s))} left")
        return ", ".join(figures)


class _Bar(Columns):
    """A bar over the width of the terminal, and what there is to say below it."""

    def __init__(self) -> None:
        self.figures = ""
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar's line and those below it."""
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text("  " + self.figures, style="dim")
