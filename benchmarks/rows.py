"""A line of the table that `make bench` prints: a goal and what was measured."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    work: str
    against: str
    goal: float | None
    measured: float
    note: str = ""
