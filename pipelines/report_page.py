"""The figures of report.json in, one document of HTML out that needs nothing from outside and runs no script."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from pipelines.estimate import size_in_words
from pipelines.page import hashes
from pipelines.summary import is_above, is_too_damaged

TEMPLATE = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; style-src {hashes(TEMPLATE, 'style')}; img-src data:; base-uri 'none'; form-action 'none'"
)
"""The page's own style and nothing else: no script, no request, whatever a label holds."""
MOST_LABELS, MOST_NIGHTS, MOST_FAILURES = 20, 30, 10
_MOST_MOVED, _LEAST_MOVE = 5, 0.005
_FEWEST_EXPECTED = math.log(100)  # labels, of which chance alone leaves none once in a hundred times

Values = dict[str, Any]  # JSON


class Column(NamedTuple):
    """A column of a chart.

    Attributes:
        height, mark: in percent of the highest; the mark is the night before's, None without one.
        name: what it stands for, for a pointer that rests on it.
    """

    height: float
    mark: float | None
    name: str


class Notice(NamedTuple):
    """A sentence at the top: ``good``, ``look``, ``act``, or ``note``, which judges nothing."""

    kind: str
    text: str


def page_of(report: Values) -> str:
    """The page of a report; every string from outside is escaped.

    Raises:
        jinja2.UndefinedError, KeyError, TypeError: the report lacks a field.
    """
    return (
        _environment()
        .from_string(TEMPLATE)
        .render(
            report=report,
            policy=POLICY,
            notices=notices(report),
            heads=[(head, label_rows(head["labels"]), moved_most(head["labels"])) for head in report["heads"]],
            most_nights=MOST_NIGHTS,
            most_failures=MOST_FAILURES,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(
        count=lambda value: f"{value:,.0f}",
        number=number,
        percent=percent,
        duration=duration,
        size=size_in_words,
        when=when,
        bin=bin_name,
        short=short,
        plain=lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        columns=histogram_columns,
        rates=rate_columns,
        highest=highest_share,
        worst=worst_drift,
    )
    return environment


def notices(report: Values) -> list[Notice]:
    """What somebody must know who reads no further."""
    night, output, job = report["night"], report["output"], report["job"]
    found = []
    limit = job["max_failed_fraction"]
    if is_too_damaged(limit, output["damaged_shards"]):
        shards = f"{output['damaged_shards']:,} damaged compressed shard{'s' if output['damaged_shards'] > 1 else ''}"
        found.append(
            Notice("act", f"An unknown number of records failed, the rest of {shards}: copy again what is damaged.")
        )
    elif is_above(limit, output["failed"], output["rows"]):
        found.append(_too_many("records", output, " in the output", limit))
    elif is_above(limit, night["failed"], night["rows"]):
        found.append(_too_many("new records", night, "", limit))
    elif night["failed"]:
        share = percent(night["failed"] / night["rows"])
        found.append(Notice("look", f"{night['failed']:,} of {night['rows']:,} new records failed ({share})."))
    elif night["rows"]:
        found.append(Notice("good", "No new record failed."))
    for head in report["heads"]:
        drift = worst_drift(head["drift"])
        if drift:
            kind = {"steady": "good", "unclear": "note", "shifted": "look", "changed": "act"}[drift["verdict"]]
            found.append(
                Notice(
                    kind,
                    f"The labels of {head['name']}, against {drift['against']}: {drift['in_words']} "
                    f"(PSI {drift['psi']:.2f}).",
                )
            )
        elif (n := _expected_labels(head, night, output)) >= _FEWEST_EXPECTED:
            found.append(
                Notice(
                    "act",
                    f"{head['name']} has found no label in {night['rows'] - night['failed']:,} new records, where some "
                    f"{n:,.0f} are to be expected from those before: find out why before you rely on it.",
                )
            )
    if job["vanished"]:
        found.append(Notice("look", f"{job['vanished']:,} labelled shards are no longer among the inputs."))
    return found


def _expected_labels(head: Values, night: Values, output: Values) -> float:
    """Labels that the new records would have if they were like the others of the output; 0 where some were found."""
    if any(label["count"] for label in head["labels"]):
        return 0.0
    n_new = night["rows"] - night["failed"]
    n_others = output["rows"] - output["failed"] - n_new
    n_labels = sum(label["count_in_output"] for label in head["labels"])
    return float(n_labels * n_new / n_others) if n_others > 0 else 0.0


def _too_many(records: str, its: Values, where: str, limit: float) -> Notice:
    failed, rows = its["failed"], its["rows"]
    counts = f"{failed:,} of {rows:,}{where}, {percent(failed / rows)}"
    return Notice("act", f"Too many {records} failed: {counts}; the job takes {percent(limit)}.")


def worst_drift(drifts: Sequence[Values]) -> Values | None:
    """The one to tell: by its verdict, and of equal ones the larger; what chance may have done comes low."""
    order = ["steady", "unclear", "shifted", "changed"]
    return max(drifts, key=lambda drift: (order.index(drift["verdict"]), drift["psi"]), default=None)


def label_rows(labels: Sequence[Values]) -> list[Values]:
    """The commonest labels, and the others as one."""
    if len(labels) <= MOST_LABELS + 1:
        return [{**label, "is_others": False} for label in labels]
    commonest, others = labels[:MOST_LABELS], labels[MOST_LABELS:]
    joined = {
        name: sum(label[name] for label in others) if all(label[name] is not None for label in others) else None
        for name in ("count", "share", "share_before", "count_in_output")
    }
    name = f"{len(others):,} other labels"
    return [*({**label, "is_others": False} for label in commonest), {"label": name, "is_others": True, **joined}]


def moved_most(labels: Sequence[Values]) -> list[Values]:
    """Labels whose share is another than in the night before, the furthest first."""
    moves = [label for label in labels if label["share"] is not None and label["share_before"] is not None]
    moves = [label for label in moves if abs(label["share"] - label["share_before"]) >= _LEAST_MOVE]
    return sorted(moves, key=lambda label: -abs(label["share"] - label["share_before"]))[:_MOST_MOVED]


def histogram_columns(histogram: Values) -> list[Column]:
    """A column for each bin, its share as its height."""
    highest = highest_share(histogram) or 1.0
    return [
        Column(
            100 * (each["share"] or 0.0) / highest,
            None if each["share_before"] is None else 100 * each["share_before"] / highest,
            f"{bin_name(each, histogram['scale'])}: {each['count']:,} ({percent(each['share'])})",
        )
        for each in histogram["bins"]
    ]


def highest_share(histogram: Values) -> float:
    """The largest share of a bin in either night."""
    return max((each[name] or 0.0 for each in histogram["bins"] for name in ("share", "share_before")), default=0.0)


def rate_columns(slots: Sequence[Values], name: str) -> list[Column]:
    """A column for each slot of time, for its rows or tokens a second."""
    highest = max((slot[f"{name}_per_s"] for slot in slots), default=0.0) or 1.0
    return [
        Column(
            100 * slot[f"{name}_per_s"] / highest,
            None,
            f"{duration(slot['from_s'])} to {duration(slot['to_s'])}: {slot[f'{name}_per_s']:,.0f} {name}/s",
        )
        for slot in slots
    ]


def bin_name(each: Values, scale: str) -> str:
    """Where a bin begins and ends."""
    if scale == "length":
        first, last = each["from"], each["to"]
        return f"{first:,}" if first == last else f"{first:,}–{last:,}"
    if scale == "share":
        return f"{each['from']:.2f}–{each['to']:.2f}"
    return f"{number(each['from'])} to {number(each['to'])}"


def short(text: object, most: int = 120) -> str:
    """Its beginning, where it is long; report.json has the whole."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def number(value: float) -> str:
    """Four significant digits, without float's tail."""
    return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e12 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """In hundredths; what is little is told from nothing, and nearly all from all."""
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}"
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def when(started: str) -> str:
    """A time as people write it, in UTC."""
    return f"{datetime.strptime(started, '%Y-%m-%dT%H:%M:%SZ'):%-d %b %Y, %H:%M} UTC"
