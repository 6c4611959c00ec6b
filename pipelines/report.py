"""A manifest in, report.json and report.html about its newest run out: what people read the morning after."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pipelines.drift import CHANGED, SHIFTED, drift
from pipelines.figures import Figures, Histogram
from pipelines.manifest import Manifest, total_labels
from pipelines.report_page import page_of
from pipelines.storage import Location, put, read_bytes, redacted

REPORT_NAME = "report.html"
FIGURES_NAME = "report.json"
FORMAT = 1
_LITTLE_WAITING = 0.15  # of the time that actors could have worked: below it the model is what a run waits for
_BUSY_DRIVER = 0.75  # of a core: its loop, which is a single thread, hardly ever waits then
_FEEDING = ("reading", "tokenising", "decoding", "writing")

logger = logging.getLogger(__name__)

Values = dict[str, Any]  # JSON


def write_report(output: Location, manifest: Manifest) -> None:
    """Put both files of the newest night, where they are not there already; a failure is a warning, no more.

    The figures come last, so that where they are there, so is the page.
    """
    try:
        if not manifest.nights or _told(output) == manifest.nights[-1]["started"]:
            return
        report = report_of(manifest)
        put(output.child(REPORT_NAME), page_of(report).encode("utf-8"))
        put(output.child(FIGURES_NAME), (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    except Exception as error:
        what = redacted(f"{type(error).__name__}: {error}")
        logger.warning("the labels are all there, but %s could not be written (%s)", REPORT_NAME, what)


def _told(output: Location) -> str | None:
    """The night that the report there tells of."""
    try:
        told: str = json.loads(read_bytes(output.child(FIGURES_NAME)))["night"]["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told


def report_of(manifest: Manifest) -> Values:
    """The figures of the newest night and of the output: report.json, whose fields docs/report.md tells.

    Raises:
        ValueError: the manifest tells of no night.
    """
    if not manifest.nights:
        raise ValueError("the manifest tells of no night: an earlier version of this package wrote it")
    night = manifest.nights[-1]
    details = night["details"]
    before = details["before"] or {}
    figures, figures_before = Figures.of_values(details["figures"]), Figures()
    if before:
        figures_before = Figures.of_values(before["figures"])
    labels = total_labels(manifest.parts)
    return {
        "format": FORMAT,
        "job": {**details["job"], "versions": manifest.versions, "passes": manifest.passes},
        "night": {
            **{name: night[name] for name in ("started", "seconds", "rows", "failed", "tokens")},
            **{name: details[name] for name in ("units", "bytes", "copied_tokens")},
            "compared_with": before.get("started"),
        },
        "output": {
            "rows": manifest.rows,
            "failed": manifest.failed,
            "damaged_shards": sum(part.n_cut for part in manifest.parts),
            "tokens": sum(part.tokens for part in manifest.parts),
            "bytes": sum(part.bytes for part in manifest.parts),
            "parts": len(manifest.parts),
            "shards": len(manifest.shards),
            "seconds": round(manifest.seconds, 3),
        },
        "heads": [
            _head(
                head,
                labels={
                    "now": details["labels"].get(head["name"], {}),
                    "before": before.get("labels", {}).get(head["name"], {}),
                    "everything_before": details["everything_before"].get(head["name"], {}),
                    "output": labels.get(head["name"], {}),
                },
                scores=figures.scores.get(head["name"], {}),
                scores_before=figures_before.scores.get(head["name"], {}),
            )
            for head in manifest.heads
        ],
        "failures": [
            {"reason": reason, "records": count, "example_id": details["examples"].get(reason)}
            for reason, count in details["reasons"].items()
        ],
        "lengths": _histogram(figures.lengths, figures_before.lengths),
        "run": _run(details["run"], night["seconds"]),
        "drift_thresholds": {"shifted": SHIFTED, "changed": CHANGED},
        "nights": [
            {name: its[name] for name in ("started", "seconds", "rows", "failed", "tokens", "rows_of_output", "drift")}
            | {"rows_per_s": _rate(its["measured"]["rows"], its["seconds"])}
            | {"tokens_per_s": _rate(its["measured"]["tokens"], its["seconds"])}
            for its in reversed(manifest.nights)
        ],
    }


def _head(
    head: Mapping[str, Any],
    *,
    labels: Mapping[str, Mapping[str, int]],
    scores: Mapping[str, Histogram],
    scores_before: Mapping[str, Histogram],
) -> Values:
    """A head, its labels with their counts, what it gives, and how far both have moved."""
    now, before, everything = labels["now"], labels["before"], labels["everything_before"]
    names = sorted(
        dict.fromkeys([*now, *before, *labels["output"]]),
        key=lambda label: (-now.get(label, 0), -labels["output"].get(label, 0), label),
    )
    return {
        "name": head["name"],
        "task": head["task"],
        "fingerprint": head["fingerprint"],
        "n_labels": len(head["labels"]),
        "settings": {
            name: value
            for name, value in head.items()
            if name not in ("name", "task", "labels", "fingerprint", "tokenizer") and value not in (None, [], "")
        },
        "labels": [
            {
                "label": name,
                "count": now.get(name, 0),
                "share": _share(now.get(name, 0), sum(now.values())),
                "share_before": _share(before.get(name, 0), sum(before.values())),
                "count_in_output": labels["output"].get(name, 0),
            }
            for name in names
        ],
        "scores": {
            name: _histogram(histogram, scores_before.get(name, Histogram(histogram.scale)))
            for name, histogram in scores.items()
        },
        "drift": [
            {"of": "labels", "against": against, **found.to_values()}
            for against, other in (
                ("the night before", before),
                ("all before", {} if everything == before else everything),
            )
            if (found := drift(other, now))
        ],
    }


def _histogram(now: Histogram, before: Histogram) -> Values:
    """Bins with their counts and shares, in both nights, and how far they have moved."""
    both = now + before
    now, before = now.widened(both.exponent), before.widened(both.exponent)
    moved = drift(before.counts, now.counts)
    return {
        "scale": now.scale,
        "n": now.n,
        "mean": now.total / now.n if now.n else None,
        "least": now.low if now.n else None,
        "greatest": now.high if now.n else None,
        "median_at_most": now.quantile(0.5) if now.n else None,
        "95_percent_at_most": now.quantile(0.95) if now.n else None,
        "bins": [
            {
                "from": first,
                "to": last,
                "count": now.counts.get(index, 0),
                "share": _share(now.counts.get(index, 0), now.n),
                "share_before": _share(before.counts.get(index, 0), before.n),
            }
            for index, (first, last) in zip(both.indices(), both.bins(), strict=True)
        ],
        "drift": moved.to_values() if moved else None,
    }


def _run(run: Mapping[str, Any], seconds: float) -> Values:
    """How fast the run was, how busy its actors, and what held it back."""
    stages = dict(run["stages_s"])
    timeline = run["timeline"]
    waiting_s, busy_s = stages.pop("waiting", 0.0), stages.get("model", 0.0)
    actors_s = max(run["n_actors"] * seconds, busy_s + waiting_s)
    other_s = actors_s - busy_s - waiting_s
    driver_busy = run.get("driver_busy", 0.0)  # earlier versions have not measured it
    held_back_by = _held_back_by(stages, busy_s=busy_s, waiting_s=waiting_s, other_s=other_s, driver_busy=driver_busy)
    return {
        "rows": run["rows"],
        "tokens": run["tokens"],
        "rows_per_s": _rate(run["rows"], seconds),
        "tokens_per_s": _rate(run["tokens"], seconds),
        "hardware": run["hardware"],
        "n_actors": run["n_actors"],
        "actors": {
            "computing": _share(busy_s, actors_s),
            "waiting": _share(waiting_s, actors_s),
            "starting_and_ending": _share(other_s, actors_s),
        },
        "stages_s": stages,
        "driver_busy": driver_busy,
        "held_back_by": held_back_by,
        "held_back_in_words": _HELD_BACK[held_back_by],
        "throughput": [
            {
                "from_s": i * timeline["slot_s"],
                "to_s": min(seconds, (i + 1) * timeline["slot_s"]),
                "rows_per_s": _rate(rows, min(seconds - i * timeline["slot_s"], timeline["slot_s"])),
                "tokens_per_s": _rate(tokens, min(seconds - i * timeline["slot_s"], timeline["slot_s"])),
            }
            for i, (rows, tokens) in enumerate(zip(timeline["rows"], timeline["tokens"], strict=True))
        ],
    }


_HELD_BACK = {
    "nothing": "Nothing was computed in this run.",
    "starting": "Starting Ray, waiting for machines and loading the models took most of the time. A longer run loses "
    "less to it, but not one whose cluster never has room for all actors.",
    "model": "The model: its actors hardly ever waited for work. More or faster actors make the run faster.",
    "driver": "The driver: the actors waited for work, and it was busy with handing out units. Larger ones make the "
    "run faster: give a new output a higher --unit-rows.",
    "reading": "Reading: the actors waited for work, and of the stages around the model reading took longest. Look at "
    "the store and at how many tasks may read at once.",
    "tokenising": "Tokenising: the actors waited for work, and of the stages around the model tokenising took longest. "
    "More CPUs beside the actors make the run faster.",
    "decoding": "Decoding: the actors waited for work, and of the stages around the model making columns of its "
    "results took longest. More CPUs beside the actors make the run faster.",
    "writing": "Writing: the actors waited for work, and of the stages around the model writing took longest. Look at "
    "the store of the output, or give the job more CPUs.",
}


def _held_back_by(
    stages: Mapping[str, float], *, busy_s: float, waiting_s: float, other_s: float, driver_busy: float
) -> str:
    if not busy_s:
        return "nothing"
    if other_s > busy_s + waiting_s:
        return "starting"
    if waiting_s <= _LITTLE_WAITING * (busy_s + waiting_s):
        return "model"
    if driver_busy >= _BUSY_DRIVER:
        return "driver"
    return max(_FEEDING, key=lambda stage: stages.get(stage, 0.0))


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
