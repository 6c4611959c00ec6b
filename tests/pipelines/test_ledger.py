"""Simulated processes: each does what the ledger orders, and dies where it would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from pipelines.ledger import MAX_DEATHS, MAX_IN_VAIN, MAX_KILLERS, N_PIECES, Ledger

UNIT = "labelling part-a-00000"
Dies = Callable[[set[int]], bool]


def processes(ledger: Ledger, n_rows: int, dies: Dies) -> tuple[dict[int, int], str | None, int, list[int]]:
    """One process after the other, until the unit is done or given up.

    Returns:
        The killers, why it was given up, how many died, and how many rows each stretch had that was tried.
    """
    n_dead = 0
    tried: list[int] = []
    while True:
        order = ledger.begin(UNIT, n_rows)
        while True:
            if order.give_up:
                return order.killers, order.give_up, n_dead, tried
            if order.stretch is not None:
                tried.append(len(order.stretch))
            rows = set(range(max(1, n_rows)) if order.stretch is None else order.stretch) - set(order.killers)
            if dies(rows):
                n_dead += 1
                break
            if order.stretch is None:
                ledger.finish(UNIT)
                return order.killers, None, n_dead, tried
            order = ledger.worked(UNIT, n_rows)


def killed_by(*killers: int) -> Dies:
    return lambda rows: bool(rows & set(killers))


def dying_at(*times: int) -> Dies:
    """Dies at these of its attempts, whatever the rows."""
    counter = iter(range(10**9))
    return lambda rows: next(counter) in times


def test_a_unit_without_trouble_is_begun_once() -> None:
    assert processes(Ledger(), 5000, killed_by()) == ({}, None, 0, [])


def test_units_at_work_are_those_that_are_begun_and_not_finished() -> None:
    ledger = Ledger()
    for unit in ("labelling part-a", "labelling part-b", "writing part-a"):
        ledger.begin(unit, 5)
    assert (ledger.n_at_work("labelling"), ledger.n_at_work("writing"), ledger.n_at_work("label")) == (2, 1, 0)
    ledger.finish("labelling part-a")
    assert (ledger.n_at_work("labelling"), ledger.n_at_work("writing")) == (1, 1)
    ledger.finish("labelling part-b")
    assert ledger.n_at_work("labelling") == 0


@pytest.mark.parametrize("n_deaths", range(1, MAX_DEATHS))
def test_fewer_deaths_than_three_change_nothing(n_deaths: int) -> None:
    assert processes(Ledger(), 5000, dying_at(*range(n_deaths))) == ({}, None, n_deaths, [])


@pytest.mark.parametrize(
    ("n_rows", "killers"),
    [
        (1, {0}),
        (2, {1}),
        (5, {2}),
        (100, {99}),
        (50, {0, 1, 2, 3}),
        (150, {140}),
        (5000, {4711}),
        (5000, {0, 17, 18, 4999}),
    ],
)
def test_killers_are_found_and_nothing_else(n_rows: int, killers: set[int]) -> None:
    found, given_up, n_dead, _ = processes(Ledger(), n_rows, killed_by(*killers))
    assert given_up is None
    assert found == dict.fromkeys(killers, MAX_DEATHS)
    n_levels = math.ceil(math.log(n_rows, N_PIECES)) if n_rows > 1 else 1
    assert n_dead <= MAX_DEATHS + len(killers) * (n_levels - 1 + MAX_DEATHS)


def test_an_unlucky_unit_is_searched_once_and_then_done_whole() -> None:
    found, given_up, n_dead, tried = processes(Ledger(), 5000, dying_at(0, 1, 2, 30, 31))
    assert (found, given_up, n_dead) == ({}, None, 5)
    assert sum(tried) >= 5000  # every row, and those of the stretches that died by chance again


def test_a_row_that_dies_by_chance_is_not_blamed() -> None:
    rng = random.Random(3)
    for _ in range(50):
        by_chance = dying_at(*rng.sample(range(60), 4))
        found, given_up, _, _ = processes(Ledger(), 40, lambda rows, by_chance=by_chance: by_chance(rows) or 7 in rows)
        assert given_up is None
        assert found == {7: MAX_DEATHS}


def test_a_unit_that_kills_only_as_a_whole_is_given_up() -> None:
    found, given_up, n_dead, tried = processes(Ledger(), 200, lambda rows: len(rows) == 200)
    assert (found, n_dead, sum(tried)) == ({}, MAX_IN_VAIN, 200)
    assert given_up is not None
    assert given_up.startswith(f"{UNIT} has killed {MAX_IN_VAIN} processes, and no record of it is to blame: give")


def test_what_cannot_be_tried_apart_is_given_up_after_as_many_deaths() -> None:
    _, given_up, n_dead, tried = processes(Ledger(), 0, lambda rows: True)
    assert (n_dead, tried) == (MAX_IN_VAIN, [])
    assert given_up is not None


def test_where_nothing_lives_no_record_is_to_blame() -> None:
    _, given_up, n_dead, _ = processes(Ledger(), 5000, lambda rows: bool(rows))
    assert given_up is not None
    assert f"with each of {MAX_KILLERS} records, and worked with none" in given_up
    assert n_dead <= MAX_DEATHS + 1 + MAX_KILLERS * MAX_DEATHS


def test_a_finished_unit_that_is_done_again_remembers_its_killers() -> None:
    ledger = Ledger()
    processes(ledger, 300, killed_by(5))
    assert processes(ledger, 300, killed_by(5)) == ({5: MAX_DEATHS}, None, 0, [])
    assert processes(ledger, 300, dying_at(0)) == ({5: MAX_DEATHS}, None, 1, [])


def test_a_ledger_that_was_lost_itself_counts_anew() -> None:
    ledger = Ledger()
    assert ledger.worked(UNIT, 10).stretch is None
    ledger.finish(UNIT)
    ledger.finish(UNIT)
    assert processes(ledger, 10, killed_by(2))[0] == {2: MAX_DEATHS}
