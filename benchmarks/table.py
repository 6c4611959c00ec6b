"""What every benchmark measured in, one table of goals and measured values out (`make bench`)."""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.rows import Row

BENCHMARKS = ("engine", "job", "heads", "tokenising", "quality", "start")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results/")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="run these alone")
    options = parser.parse_args()
    text = f"{describe()}\n\n{render(measured(options.only))}\n"
    print(text)
    if options.save:
        path = RESULTS / f"{datetime.date.today().isoformat()}-table.md"
        path.write_text(text, encoding="utf-8")
        print(f"kept in {path.relative_to(RESULTS.parents[1])}", file=sys.stderr)


def measured(names: Sequence[str]) -> list[Row]:
    """The rows of these benchmarks."""
    rows: list[Row] = []
    for name in names:
        started = time.monotonic()
        found = importlib.import_module(f"benchmarks.{name}").measure()
        print(f"{name}: {time.monotonic() - started:.0f} s\n{render(found)}", file=sys.stderr)  # a later one may fail
        rows += found
    return rows


def render(rows: Iterable[Row]) -> str:
    """A Markdown table."""
    header = ["| work | against | goal | measured | reached? | note |", "|---|---|---|---|---|---|"]
    return "\n".join([*header, *map(_line, rows)])


def _line(row: Row) -> str:
    goal = "" if row.goal is None else f"≥ {row.goal:g}"
    measured = "" if math.isnan(row.measured) else f"{row.measured:.4g}"
    cells = [row.work, row.against, goal, measured, reached(row), row.note]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def reached(row: Row) -> str:
    """yes or no; nothing where there is no goal, or nothing was measured."""
    if row.goal is None or math.isnan(row.measured):
        return ""
    return "yes" if row.measured >= row.goal else "no"


if __name__ == "__main__":
    main()
