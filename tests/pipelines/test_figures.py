from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.figures import Figures, Histogram, lengths, numbers, shares, total_figures

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def assert_equal(one: Histogram, other: Histogram) -> None:
    """Apart from the sum, whose last digits depend on the order."""
    assert (one.scale, one.exponent, one.low, one.high) == (other.scale, other.exponent, other.low, other.high)
    assert dict(sorted(one.counts.items())) == dict(sorted(other.counts.items()))
    assert one.total == pytest.approx(
        other.total, rel=1e-9, abs=1e-9 * max(abs(one.low), abs(one.high)) * max(1, one.n)
    )


def test_probabilities_fall_into_twentieths_and_one_into_the_last() -> None:
    found = shares([0.0, 0.049, 0.051, 0.5, 0.99, 1.0])
    assert found.counts == {0: 2, 1: 1, 10: 1, 19: 2}
    assert (found.n, found.low, found.high) == (6, 0.0, 1.0)
    assert found.bins()[0] == (0.0, 0.05)
    assert len(found.bins()) == 20


def test_lengths_fall_between_powers_of_two_and_their_middles() -> None:
    values = range(5000)
    found = lengths(values)
    bins = found.bins()
    assert bins[:9] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15), (16, 23)]
    counts = [found.counts[index] for index in found.indices()]
    assert counts[:-1] == [last - first + 1 for first, last in bins[:-1]]
    assert found.quantile(0.5) == 3071  # 2,500 lies between 2,048 and 3,071
    assert lengths([512]).bins() == [(512, 767)]
    assert lengths([512]).quantile(0.95) == 512


@given(st.lists(FLOATS, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_numbers_give_the_same_histogram_in_whatever_pieces(values: list[float], rng: random.Random) -> None:
    whole = numbers(values)
    rng.shuffle(values)
    cut = rng.randrange(len(values) + 1)
    assert_equal(numbers(values[:cut]) + numbers(values[cut:]), whole)
    assert max(whole.counts) - min(whole.counts) < 32
    for value in values:
        first, last = whole.edges(math.floor(math.ldexp(value * 20, -whole.exponent)))
        assert first <= value or math.isclose(first, value, rel_tol=1e-6)
        assert value <= last or math.isclose(last, value, rel_tol=1e-6)


def test_what_is_not_finite_does_not_count() -> None:
    assert numbers([np.nan, np.inf, -np.inf]) == Histogram("number")
    assert numbers([1.0, np.inf]).n == 1


def test_an_empty_histogram_adds_nothing() -> None:
    found = numbers([3.0, 4.0])
    assert found + Histogram("number") == found == Histogram("number") + found
    assert (Histogram("number").bins(), Histogram("length").bins()) == ([], [])
    with pytest.raises(ValueError, match="of number and one of share cannot be added"):
        found + shares([0.5])


def test_figures_of_parts_are_those_of_all_records() -> None:
    rng = np.random.default_rng(3)
    tokens, scores, sizes = rng.integers(1, 500, 1000), rng.random(1000), rng.normal(0, 1e4, 1000)
    parts = [
        Figures(
            lengths(tokens[rows]),
            {"spam": {"score": shares(scores[rows]), "size": numbers(sizes[rows])}, f"only-{n}": {}},
        )
        for n, rows in enumerate((slice(0, 10), slice(10, 700), slice(700, None)))
    ]
    total = total_figures(["", *(part.to_text() for part in parts)])
    assert_equal(total.lengths, lengths(tokens))
    assert_equal(total.scores["spam"]["score"], shares(scores))
    assert_equal(total.scores["spam"]["size"], numbers(sizes))
    assert list(total.scores) == ["spam", "only-0", "only-1", "only-2"]
    assert Figures.of_values(json.loads(total.to_text())) == total


def test_a_part_tells_it_in_few_characters() -> None:
    rng = np.random.default_rng(5)
    figures = Figures(lengths(rng.integers(1, 513, 5000)), {"spam": {"score": shares(rng.random(5000))}})
    assert len(figures.to_text()) < 800
