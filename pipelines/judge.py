"""Finished parts in, an error out as soon as the run cannot succeed any more, however good the rest is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.errors import RunError
from pipelines.jsonl import compression_of
from pipelines.plan import JobPlan
from pipelines.summary import is_above, reasons_in_words
from pipelines.units import Stream, Unit, unit_of
from pipelines.write import Part

_JUDGED_UNITS = 10  # a smaller job comes out whole, with all of its errors to look at


class Judge:
    """Stops a run that has gone wrong: it would fail even if no further record did.

    Totals are kept, so that a part costs as much to judge as the one before it, however many there are.
    """

    def __init__(self, plan: JobPlan) -> None:
        self._limit = plan.spec.max_failed_fraction
        self._known = set() if plan.previous is None else {part.name for part in plan.previous.parts}
        self._whole, self._new = _Tally(), _Tally()
        self._count(plan.parts)
        self._n_kept = len(self._whole.parts)
        self._to_come = _most_records(plan)
        self._n_to_come = sum(n_rows or 0 for n_rows in self._to_come.values())
        self._n_untold = sum(n_rows is None for n_rows in self._to_come.values())

    def add(self, parts: list[Part]) -> None:
        """Count parts that have just been finished.

        Raises:
            RunError: with the commonest reasons and an example of each.
        """
        self._count(parts)
        for part in parts:
            n_rows = self._to_come.pop(unit_of(part.name), 0)
            self._n_to_come -= n_rows or 0
            self._n_untold -= n_rows is None
        if not self._to_come or len(self._whole.parts) - self._n_kept < _JUDGED_UNITS:
            return
        if self._n_untold and self._limit > 0:
            return
        for tally, new in ((self._whole, ""), (self._new, "new ")):
            if is_above(self._limit, tally.failed, tally.rows + self._n_to_come):
                raise RunError(
                    f"stopped, since {tally.failed:,} of {tally.rows:,} {new}records have failed, too many for "
                    f"--max-failed-fraction {self._limit} whatever follows: {reasons_in_words(tally.parts)}. "
                    "Finished parts stay: mend the input, or raise the limit and start again"
                )

    def _count(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self._whole.add(part)
            if part.name not in self._known:
                self._new.add(part)


def _most_records(plan: JobPlan) -> dict[str, int | None]:
    """How many good records each pending unit can hold at most, None where only reading tells.

    A stream stands there as a whole: how many units it still has shows at its end.
    """
    columns = [*plan.columns.texts, *plan.columns.lists]
    shortest = json.dumps(dict.fromkeys(columns, ""), ensure_ascii=False, separators=(",", ":")) + "\n"
    n_bytes = len(shortest.encode())
    most: dict[str, int | None] = {}
    for task in plan.pending:
        if isinstance(task, Stream):
            most[task.stem] = None
        else:
            most |= {unit.name: _most_in(unit, n_bytes) for unit in task}
    return most


def _most_in(unit: Unit, n_bytes: int) -> int | None:
    """Records in a unit, or how many lines of so many bytes have room in it."""
    if unit.n_rows is not None:
        return unit.n_rows
    if any(shard.is_parquet or compression_of(shard.url) for shard in unit.shards):
        return None
    size = sum(shard.size for shard in unit.shards) if unit.stop is None else unit.stop - unit.start
    return size // n_bytes + len(unit.shards)  # a shard's last line may lack its end, and one of a range end behind it


@dataclass
class _Tally:
    """Parts and their totals."""

    parts: list[Part] = field(default_factory=list)
    rows: int = 0
    failed: int = 0

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.rows += part.rows
        self.failed += part.failed
