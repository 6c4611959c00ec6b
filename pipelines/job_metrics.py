"""Finished parts in, Prometheus metrics of the job on Ray's metrics port out."""

from __future__ import annotations

import re
from collections import Counter as Counts
from collections.abc import Iterable, Iterator

from ray.util.metrics import Counter, Gauge, Histogram

from pipelines.write import Part

MAX_REASONS = 20  # time series that failures may make; what comes later counts as "other"
OTHER = "other"
BOUNDARIES_S: list[float] = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
_TAG = "output"
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class JobMetrics:
    """Counts what a run labels. The driver holds these numbers: parts come to it, and it lives as long as the run.

    Args:
        output: URL of the output folder, without secrets: tells the jobs of a cluster apart.
        n_units: units to finish.
        n_rows: records that they have; None where reading has to tell.
        n_actors: model actors that there may be at most.
    """

    def __init__(self, *, output: str, n_units: int, n_rows: int | None, n_actors: int) -> None:
        self._rows = Counter("convbert_job_rows", "records that came out, failed ones included", (_TAG,))
        self._failed = Counter("convbert_job_failed_rows", "records with an error, by reason", (_TAG, "reason"))
        self._tokens = Counter("convbert_job_tokens", "tokens of records, those of duplicates included", (_TAG,))
        self._copied = Counter("convbert_job_copied_tokens", "tokens of duplicates, which are computed once", (_TAG,))
        self._done = Counter("convbert_job_units_done", "units that were finished", (_TAG,))
        self._unit_s = Histogram(
            "convbert_job_unit_seconds", "seconds that a model actor took for a unit", BOUNDARIES_S, (_TAG,)
        )
        self._at_work = Gauge("convbert_job_actors_at_work", "model actors that compute now", (_TAG,))
        planned = {
            "convbert_job_units": ("units that this run has to finish", n_units),
            "convbert_job_rows_expected": ("records that they have, where that is known before reading", n_rows),
            "convbert_job_actors": ("model actors that there may be at most", n_actors),
        }
        for metric in (self._rows, self._failed, self._tokens, self._copied, self._done, self._unit_s, self._at_work):
            metric.set_default_tags({_TAG: output})
        for name, (description, value) in planned.items():
            if value is not None:
                Gauge(name, description, (_TAG,)).set(value, {_TAG: output})
        self._known_reasons: set[str] = set()

    def add(self, parts: Iterable[Part], *, n_at_work: int) -> None:
        """Count finished parts.

        Args:
            parts: that were finished.
            n_at_work: actors that compute now.
        """
        for part in parts:
            self._done.inc(1)
            self._unit_s.observe(part.busy_s)
            for metric, value in (
                (self._rows, part.rows),
                (self._tokens, part.tokens),
                (self._copied, part.copied_tokens),
            ):
                if value:
                    metric.inc(value)
            for reason, count in self._reasons(part):
                self._failed.inc(count, {"reason": reason})
        self._at_work.set(n_at_work)

    def _reasons(self, part: Part) -> Iterator[tuple[str, int]]:
        """Failed records by reason, without what comes from the records: every reason is a time series."""
        counts: Counts[str] = Counts()
        for reason, count in part.reasons.items():
            counts[self._known(_QUOTED.sub("…", reason)[:80])] += count
        counts[OTHER] += part.failed - sum(part.reasons.values())  # a part tells its commonest only
        return ((reason, count) for reason, count in counts.items() if count > 0)

    def _known(self, reason: str) -> str:
        if len(self._known_reasons) < MAX_REASONS:
            self._known_reasons.add(reason)
        return reason if reason in self._known_reasons else OTHER
