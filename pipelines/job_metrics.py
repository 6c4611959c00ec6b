"""Finished parts in, Prometheus metrics of the job on Ray's metrics port out."""

from __future__ import annotations

import re
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType

from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge, Histogram

from pipelines.write import Part

BEAT_S = 2.0  # Ray forgets a gauge that is not set again
MAX_REASONS = 20  # time series that failures may make; what comes later counts as "other"
OTHER = "other"
BOUNDARIES_S: list[float] = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class JobMetrics:
    """Counts what a run labels. The driver holds these numbers: parts come to it, and it lives as long as the run.

    Args:
        output: URL of the output folder, without secrets: tells the jobs of a cluster apart.
        n_units: units to finish.
        n_rows: records that they have; None where reading has to tell.
        n_actors: model actors that there may be at most.
        n_at_work: tells how many of them compute now.
    """

    def __init__(
        self, *, output: str, n_units: int, n_rows: int | None, n_actors: int, n_at_work: Callable[[], int]
    ) -> None:
        tags = ("output",)
        self._units_planned = Counter("convbert_job_units_planned", "units that runs began with", tags)
        self._rows_planned = Counter("convbert_job_rows_planned", "their records, where known before reading", tags)
        self._units = Counter("convbert_job_units", "units that were finished", tags)
        self._rows = Counter("convbert_job_rows", "records that came out, failed ones included", tags)
        self._failed = Counter("convbert_job_failed_rows", "records with an error, by reason", (*tags, "reason"))
        self._tokens = Counter("convbert_job_tokens", "tokens of records, those of duplicates included", tags)
        self._copied = Counter("convbert_job_copied_tokens", "tokens of duplicates, which are computed once", tags)
        self._busy_s = Counter("convbert_job_busy_seconds", "seconds that model actors took for units", tags)
        self._unit_s = Histogram(
            "convbert_job_unit_seconds", "seconds that a model actor took for a unit", BOUNDARIES_S, tags
        )
        self._actors = Gauge("convbert_job_actors", "model actors that there may be at most", tags)
        self._at_work = Gauge("convbert_job_actors_at_work", "model actors that compute now", tags)
        for metric in vars(self).copy().values():
            metric.set_default_tags({"output": _ascii(output)})
        self._units_planned.inc(n_units)
        if n_rows:
            self._rows_planned.inc(n_rows)
        self._n_actors, self._n_at_work = n_actors, n_at_work
        self._reasons: set[str] = set()
        self._stopped = threading.Event()
        self._beat = threading.Thread(target=self._set_gauges, daemon=True)

    def __enter__(self) -> JobMetrics:
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._beat.join()

    def add(self, parts: Iterable[Part]) -> None:
        """Count finished parts."""
        for part in parts:
            self._units.inc(1)
            self._unit_s.observe(part.busy_s)
            figures = {
                self._rows: part.rows,
                self._tokens: part.tokens,
                self._copied: part.copied_tokens,
                self._busy_s: part.busy_s,  # Ray knows a histogram's sum from its buckets only
            }
            for metric, figure in figures.items():
                if figure:  # Ray takes no 0
                    metric.inc(figure)
            for reason, count in self._failures(part):
                self._failed.inc(count, {"reason": reason})

    def _failures(self, part: Part) -> Iterator[tuple[str, int]]:
        """Failed records by reason, without what comes from the records: every reason is a time series."""
        counts: Counts[str] = Counts()
        for reason, count in part.reasons.items():
            counts[self._known(_ascii(_QUOTED.sub("...", reason))[:80])] += count
        counts[OTHER] += part.failed - sum(part.reasons.values())  # a part tells its commonest only
        return ((reason, count) for reason, count in counts.items() if count > 0)

    def _known(self, reason: str) -> str:
        if len(self._reasons) < MAX_REASONS:
            self._reasons.add(reason)
        return reason if reason in self._reasons else OTHER

    def _set_gauges(self) -> None:
        while True:
            self._actors.set(self._n_actors)
            with suppress(RayError):  # metrics never end a run
                self._at_work.set(min(self._n_at_work(), self._n_actors))
            if self._stopped.wait(BEAT_S):
                return


def _ascii(text: str) -> str:
    """The text in the only characters that Ray takes in a tag."""
    return text.encode("ascii", "backslashreplace").decode()
