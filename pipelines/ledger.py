"""Reports of who begins and finishes which unit in, the records that kill the process working on them out.

A process that is killed cannot say so, and Ray repeats its unit in a new one for ever. So each process tells
the ledger before it begins. If a unit is begun again before anybody has finished it, the process that had begun
it must have died. After three deaths the unit is gone through in stretches, and each stretch that kills again in
smaller ones, until the record that does it is alone. The unit is then done in one go without it.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass, field

MAX_DEATHS = 3  # over a unit, or over a record alone: processes also die for other reasons
MAX_IN_VAIN = 9  # over a unit, when no record is to blame
MAX_KILLERS = 3  # where so many records have killed and no stretch has worked, it is not the records
N_PIECES = 100  # a stretch that works costs its time again, one that kills a new process: few, large steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What to do next with a unit.

    Attributes:
        stretch: records to try, only to see whether the process lives; None to do the unit.
        killers: records to leave out, and how many processes each has killed alone.
        give_up: why the unit cannot be done; None where it can.
    """

    stretch: range | None
    killers: dict[int, int]
    give_up: str | None = None


@dataclass
class _Case:
    """What is known of a unit.

    Attributes:
        is_begun: by somebody, who has not finished.
        stretch: what he does of it; None: all.
        deaths: over the whole unit, since a killer was last found.
        is_searched: since then.
        pending: stretches to try.
        alone: deaths over each record alone.
        n_worked: stretches that did not kill.
    """

    is_begun: bool = False
    stretch: range | None = None
    deaths: int = 0
    is_searched: bool = False
    pending: list[range] = field(default_factory=list)
    alone: Counter[int] = field(default_factory=Counter)
    n_worked: int = 0

    @property
    def killers(self) -> dict[int, int]:
        return {record: deaths for record, deaths in self.alone.items() if deaths >= MAX_DEATHS}

    def note_death(self) -> None:
        if self.stretch is None:
            self.deaths += 1
        elif len(self.stretch) > 1:
            self.pending += _pieces(self.stretch)
        else:
            self.alone[self.stretch[0]] += 1
            if self.stretch[0] in self.killers:
                self.deaths, self.is_searched = 0, False
            else:
                self.pending.append(self.stretch)


class Ledger:
    """Outlives the processes: an actor beside the driver."""

    def __init__(self) -> None:
        self._cases: dict[str, _Case] = {}

    def begin(self, unit: str, n_records: int) -> Order:
        """A process is about to begin a unit.

        Args:
            unit: what is done with it, and its name.
            n_records: those that can be tried apart.
        """
        case = self._cases.setdefault(unit, _Case())
        if case.is_begun:
            case.note_death()
            logger.warning("%s: a process has died over %s", unit, _describe(case.stretch))
        return self._next(unit, case, n_records)

    def worked(self, unit: str, n_records: int) -> Order:
        """A stretch did not kill."""
        case = self._cases.setdefault(unit, _Case())
        case.n_worked += 1
        return self._next(unit, case, n_records)

    def finish(self, unit: str) -> None:
        """A unit is done; it may be begun again where Ray loses what was made of it."""
        case = self._cases.pop(unit, _Case())
        if case.killers:
            self._cases[unit] = _Case(alone=Counter(case.killers))

    def n_at_work(self, doing: str) -> int:
        """Units with which this is being done."""
        return sum(case.is_begun for unit, case in self._cases.items() if unit.startswith(f"{doing} "))

    def _next(self, unit: str, case: _Case, n_records: int) -> Order:
        killers = case.killers
        if case.deaths >= MAX_IN_VAIN:
            reason = f"{unit} has killed {case.deaths} processes, and no record of it is to blame"
            return Order(None, killers, f"{reason}: give them more memory, or lower --unit-rows")
        if len(killers) >= MAX_KILLERS and not case.n_worked:
            reason = f"{unit} has killed processes with each of {len(killers)} records, and worked with none"
            return Order(None, killers, f"{reason}: give them more memory, or start fewer at a time")
        if n_records and case.deaths >= MAX_DEATHS and not case.is_searched:
            case.is_searched, case.pending = True, _pieces(range(n_records))
        case.is_begun = True
        case.stretch = case.pending.pop() if case.pending else None
        return Order(case.stretch, killers)


def _pieces(records: range) -> list[range]:
    """Records taken in turn, and the pieces in no order: the first to be tried are a sample of all."""
    n_pieces = min(N_PIECES, len(records))
    return [records[piece::n_pieces] for piece in random.Random(0).sample(range(n_pieces), n_pieces)]


def _describe(stretch: range | None) -> str:
    return "all of it" if stretch is None else f"{len(stretch)} of its records"
