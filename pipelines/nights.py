"""A finished run in, what the manifest keeps of it out: an entry for each run (a night), the newest with details."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pipelines.drift import drift
from pipelines.figures import Figures, total_figures
from pipelines.manifest import Manifest, total_labels, total_reasons
from pipelines.models import JOBS
from pipelines.storage import redacted
from pipelines.write import Part

if TYPE_CHECKING:
    from pipelines.plan import JobPlan
    from pipelines.resources import Hardware

MOST_NIGHTS = 400  # entries that a manifest keeps
_MOST_SLOTS = 60
_MOST_INPUTS = 50
_MOST_REASONS = 10
_TOLD = {"task", "input", "output", "model", "dry_run", "max_failed_fraction"}  # settings that the report has elsewhere

Night = dict[str, Any]  # JSON: docs/report.md tells its fields


class Timeline:
    """Rows and tokens over time, in at most 60 slots of equal length, which doubles when they do not suffice."""

    def __init__(self) -> None:
        self.slot_s = 1.0
        self._rows = [0.0] * _MOST_SLOTS
        self._tokens = [0.0] * _MOST_SLOTS

    def add(self, begun_s: float, done_s: float, *, rows: float, tokens: float) -> None:
        """Spread what was done between these seconds of the run evenly over them."""
        begun_s = max(0.0, begun_s)
        while done_s >= self.slot_s * _MOST_SLOTS:
            self.slot_s *= 2
            self._rows, self._tokens = _halved(self._rows), _halved(self._tokens)
        first, last = int(begun_s / self.slot_s), int(done_s / self.slot_s)
        for slot in range(first, last + 1):
            inside_s = min(done_s, (slot + 1) * self.slot_s) - max(begun_s, slot * self.slot_s)
            share = inside_s / (done_s - begun_s) if done_s > begun_s else 1.0
            self._rows[slot] += rows * share
            self._tokens[slot] += tokens * share

    def to_values(self, seconds: float) -> dict[str, Any]:
        """For JSON: rows and tokens of each slot of a run that took so long."""
        n_slots = min(_MOST_SLOTS, max(1, math.ceil(seconds / self.slot_s)))
        return {
            "slot_s": self.slot_s,
            "rows": [round(value, 1) for value in self._rows[:n_slots]],
            "tokens": [round(value, 1) for value in self._tokens[:n_slots]],
        }


def _halved(values: list[float]) -> list[float]:
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)] + [0.0] * (len(values) // 2)


class Meter:
    """A run's clock: what was done when, and how long each stage took for it; its size does not grow with the run."""

    def __init__(self) -> None:
        self.started = datetime.now(timezone.utc)
        self._started_s = time.monotonic()
        self.timeline = Timeline()
        self.stages_s: Counter[str] = Counter()
        self.rows = self.tokens = 0
        self.hardware: Hardware | None = None
        self._first: tuple[float, float] | None = None  # seconds of the run and of its CPU when the first parts came
        self._last = (0.0, 0.0)  # the newest ones

    @property
    def driver_busy(self) -> float:
        """Of a core: how much of it this process, the driver, has taken between the first parts and the newest."""
        (first_s, first_cpu_s), (last_s, last_cpu_s) = self._first or self._last, self._last
        return (last_cpu_s - first_cpu_s) / (last_s - first_s) if last_s > first_s else 0.0

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started_s

    def add(self, parts: Iterable[Part]) -> None:
        """Count parts that have just been finished, as if their model had worked until now."""
        now_s = self.seconds
        self._last = (now_s, time.process_time())
        self._first = self._first or self._last
        for part in parts:
            self.rows += part.rows
            self.tokens += part.tokens
            self.stages_s.update(part.stages_s)
            self.timeline.add(now_s - part.busy_s, now_s, rows=part.rows, tokens=part.tokens)

    def to_values(self, seconds: float) -> dict[str, Any]:
        """For JSON: of a run that took so long."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "timeline": self.timeline.to_values(seconds),
            "stages_s": {stage: round(seconds, 3) for stage, seconds in self.stages_s.items()},
            "n_actors": self.hardware.max_actors if self.hardware else 0,
            "driver_busy": round(self.driver_busy, 3),
            "hardware": self.hardware.describe() if self.hardware else "",
        }


def with_night(manifest: Manifest, plan: JobPlan, meter: Meter) -> list[Night]:
    """A manifest's entries of all runs, this one last: the earlier ones lose their details.

    A night's records are those of the parts that the state before it did not have, what an interrupted run has left
    for it included.
    """
    nights = [] if plan.previous is None else plan.previous.nights
    night = _night(manifest, plan, meter)
    return [*(_shortened(before) for before in nights), night][-MOST_NIGHTS:]


def _night(manifest: Manifest, plan: JobPlan, meter: Meter) -> Night:
    known = set() if plan.previous is None else {part.name for part in plan.previous.parts}
    parts = [part for part in manifest.parts if part.name not in known]
    seconds = round(meter.seconds, 3)
    keys = {head["name"]: _key(head) for head in manifest.heads}
    labels = total_labels(parts)
    before = _before(plan.previous, keys)
    everything = _everything_before(plan.previous, keys)
    found = {name: drift(_reference(name, before, everything), labels.get(name, {})) for name in keys}
    reasons, examples = total_reasons(parts, _MOST_REASONS)
    spec = plan.spec
    entries = set() if plan.previous is None else {(entry.url, entry.fingerprint) for entry in plan.previous.shards}
    return {
        "started": meter.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": seconds,
        "rows": sum(part.rows for part in parts),
        "failed": sum(part.failed for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "rows_of_output": manifest.rows,
        "measured": {"rows": meter.rows, "tokens": meter.tokens},
        "drift": {name: found_drift.to_values() for name, found_drift in found.items() if found_drift},
        "details": {
            "job": {
                "script": JOBS.get(spec.task or "", ""),
                "output": redacted(spec.output),
                "inputs": [redacted(url) for url in spec.input[:_MOST_INPUTS]],
                "n_inputs": len(spec.input),
                "shards": sum((entry.url, entry.fingerprint) not in entries for entry in manifest.shards),
                "vanished": len(plan.vanished),
                "device": plan.device,
                "precision": plan.precision,
                "max_failed_fraction": spec.max_failed_fraction,
                "settings": _settings(spec.model_dump(exclude_defaults=True, exclude=_TOLD)),
            },
            "keys": keys,
            "units": len(parts),
            "bytes": sum(part.bytes for part in parts),
            "copied_tokens": sum(part.copied_tokens for part in parts),
            "labels": labels,
            "figures": total_figures(part.figures for part in parts).to_values(),
            "reasons": reasons,
            "examples": examples,
            "run": meter.to_values(seconds),
            "before": before,
            "everything_before": everything,
        },
    }


def _shortened(night: Night) -> Night:
    return {name: value for name, value in night.items() if name != "details"}


def _key(head: Mapping[str, Any]) -> str:
    """Stands for all that decides what a head gives: heads with one key may be compared."""
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:16]


def _before(previous: Manifest | None, keys: Mapping[str, str]) -> dict[str, Any] | None:
    """What the night before found with the same heads."""
    if previous is None or not previous.nights or "details" not in previous.nights[-1]:
        return None
    night = previous.nights[-1]
    details = night["details"]
    same = [name for name, key in keys.items() if details["keys"].get(name) == key]
    if night["rows"] > night["failed"]:
        found = {"started": night["started"], "labels": details["labels"], "figures": details["figures"]}
    else:  # it labelled nothing
        found = details["before"]
    if not (same and found):
        return None
    labels, figures = found["labels"], found["figures"]
    is_same_job = details["keys"] == keys  # lengths are of all encoder passes together
    return {
        "started": found["started"],
        "labels": {name: its for name, its in labels.items() if name in same},
        "figures": {
            "lengths": figures["lengths"] if is_same_job else Figures().lengths.to_values(),
            "scores": {name: its for name, its in figures["scores"].items() if name in same},
        },
    }


def _everything_before(previous: Manifest | None, keys: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """What the output held before, by label, for the same heads."""
    if previous is None:
        return {}
    same = [head["name"] for head in previous.heads if keys.get(head["name"]) == _key(head)]
    return {name: its for name, its in total_labels(previous.parts).items() if name in same}


def _reference(name: str, before: dict[str, Any] | None, everything: dict[str, dict[str, int]]) -> dict[str, int]:
    """Labels of the night before; of an output whose earlier nights were not kept, those of all of it."""
    labels: dict[str, dict[str, int]] = before["labels"] if before else everything
    return labels.get(name, {})


def _settings(values: Any) -> Any:
    """Settings as they were given, without secrets."""
    if isinstance(values, dict):
        return {key: _settings(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_settings(value) for value in values]
    return redacted(values) if isinstance(values, str) else values
