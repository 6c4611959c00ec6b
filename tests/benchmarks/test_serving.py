"""The parts of the serving benchmark that only count, worked out by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest

from benchmarks.load import Reply
from benchmarks.serving import Rate, arrivals, climb, largest_difference, percentile, rate_of, rates_from, sustained


def test_arrivals_are_as_many_as_the_rate_says_and_the_same_every_time() -> None:
    times = arrivals(25.0, 8.0)
    assert len(times) == 200
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 8.0
    assert times == arrivals(25.0, 8.0)


def test_gaps_between_arrivals_are_exponential() -> None:
    gaps = [late - early for early, late in itertools.pairwise(arrivals(100.0, 100.0))]
    assert statistics.mean(gaps) == pytest.approx(1 / 100, rel=0.01)
    assert statistics.stdev(gaps) == pytest.approx(1 / 100, rel=0.05)  # of an exponential the mean
    assert sum(gap > 0.02 for gap in gaps) / len(gaps) == pytest.approx(0.135, abs=0.01)  # e to the -2


@pytest.mark.parametrize(("percent", "expected"), [(50, 100.0), (99, 198.0), (100, 200.0)])
def test_percentile(percent: int, expected: float) -> None:
    assert percentile([float(value) for value in range(200, 0, -1)], percent) == expected


def test_percentile_of_few_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


def test_rates_are_the_same_ones_wherever_they_begin() -> None:
    low, high = (list(itertools.islice(rates_from(lowest), 9)) for lowest in (3.9, 8.1))
    assert low[5:] == high[:4] == pytest.approx([2 ** (power / 4) for power in range(12, 16)])
    assert low[0] == pytest.approx(2**1.75)


def test_failed_requests_are_counted() -> None:
    replies = [Reply(10.0, 200, []), Reply(30.0, 503, {}), Reply(20.0, 0, None)]
    assert rate_of(4.0, replies) == Rate(4.0, 20.0, 30.0, 2)


def test_sustained_is_the_highest_rate_in_time_and_without_failure() -> None:
    rates = [Rate(4, 1, 90, 0), Rate(5, 1, 110, 0), Rate(6, 1, 100, 0), Rate(7, 1, 80, 1), Rate(8, 1, 300, 0)]
    assert sustained(rates, 100) == 6
    assert sustained(rates, 50) == 0


def test_a_climb_tries_between_the_highest_rate_in_time_and_the_next() -> None:
    steps = [rate.per_s for rate in climb(lambda per_s: Rate(per_s, 1, 10 * per_s, 0), 2.0, 45)]
    assert steps == pytest.approx([2 ** (power / 8) for power in (8, 10, 12, 14, 16, 18, 20, 17)])


def test_a_climb_is_bound_by_its_lowest_rate_where_no_bound_is_given() -> None:
    steps = [rate.per_s for rate in climb(lambda per_s: Rate(per_s, 1, per_s - 0.5, 0), 2.1, None)]  # at 2.0: 1.5
    assert steps == pytest.approx([2 ** (power / 8) for power in (8, 10, 12, 14, 16, 18, 15)])


def test_a_climb_above_which_nothing_holds_ends() -> None:
    assert [rate.n_failed for rate in climb(lambda per_s: Rate(per_s, 1, 1, 1), 2.0, 45)] == [1, 1]


def test_largest_difference_is_label_by_label() -> None:
    ours = [Reply(1, 200, [[{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]])]
    theirs = [Reply(1, 200, [[{"label": "b", "score": 0.5}, {"label": "a", "score": 0.5}]])]
    assert largest_difference(ours, theirs) == 0.25
