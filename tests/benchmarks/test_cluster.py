"""What a run's calls tell, worked out by hand."""

import pytest

from benchmarks.cluster import efficiency
from benchmarks.stand_in import Call


def test_two_actors_of_which_one_starts_late() -> None:
    calls = [Call(1, 0.0, 1.0, 0.9), Call(2, 0.5, 1.5, 0.9), Call(1, 1.25, 2.25, 0.9)]
    found = efficiency(calls, 2)
    assert (found.n_units, found.seconds, found.gap_ms) == (3, 1.75, 250.0)
    assert found.share == pytest.approx((0.5 * 0.9 + 0.9 + 0.9) / (2 * 1.75))  # from 0.5 to 2.25
    assert found.steady == pytest.approx((0.5 * 0.9 + 0.9 + 0.25 * 0.9) / (2 * 1.0))  # from 0.5 to 1.5


def test_first_units_do_not_count() -> None:
    calls = [Call(1, 0.0, 1.0, 0.5), Call(1, 3.0, 4.0, 1.0), Call(1, 4.0, 5.0, 1.0)]
    found = efficiency(calls, 1, skip=1)
    assert (found.n_units, found.seconds, found.share) == (2, 2.0, 1.0)


def test_an_actor_that_never_had_a_unit_counts() -> None:
    assert efficiency([Call(1, 0.0, 1.0, 1.0)], 2).share == 0.5
