from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.drift import chi_square_99, drift, psi


def test_the_index_is_the_sum_of_its_formula() -> None:
    before, now = {"a": 599_999.5, "b": 399_999.5}, {"a": 299_999.5, "b": 699_999.5}  # shares 0.6, 0.4 and 0.3, 0.7
    expected = (0.3 - 0.6) * math.log(0.3 / 0.6) + (0.7 - 0.4) * math.log(0.7 / 0.4)
    assert psi(before, now) == pytest.approx(expected)  # type: ignore[arg-type]
    assert psi(before, now) == psi(now, before)  # type: ignore[arg-type]
    assert psi({"a": 7, "b": 3}, {"b": 3, "a": 7}) == 0


def test_a_label_that_one_side_lacks_makes_no_infinity() -> None:
    found = drift({"a": 500}, {"a": 400, "b": 100})
    assert found is not None
    assert 0.25 < found.psi < 10
    assert found.verdict == "changed"


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 6.635), (2, 9.210), (5, 15.086), (19, 36.191), (100, 135.807), (999, 1105.917)]
)
def test_the_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert chi_square_99(degrees) == pytest.approx(quantile, rel=0.01)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ({"a": 700, "b": 300}, {"a": 690, "b": 310}, "steady"),
        ({"a": 700, "b": 300}, {"a": 540, "b": 460}, "shifted"),
        ({"a": 700, "b": 300}, {"a": 300, "b": 700}, "changed"),
        ({"a": 700, "b": 300}, {"a": 2, "b": 3}, "unclear"),
        ({"a": 7, "b": 3}, {"a": 3, "b": 7}, "unclear"),
    ],
)
def test_the_verdict_takes_chance_into_account(before: dict[str, int], now: dict[str, int], verdict: str) -> None:
    found = drift(before, now)
    assert found is not None
    assert found.verdict == verdict
    assert (found.n_before, found.n_now) == (sum(before.values()), sum(now.values()))


def test_without_a_shift_chance_is_exceeded_about_once_in_a_hundred() -> None:
    rng = np.random.default_rng(11)
    shares_ = [0.5, 0.2, 0.1, 0.1, 0.1]
    n_over = 0
    for _ in range(2000):
        before, now = rng.multinomial(800, shares_), rng.multinomial(300, shares_)
        found = drift(dict(enumerate(before.tolist())), dict(enumerate(now.tolist())))
        assert found is not None
        n_over += found.psi > found.chance
    assert 5 <= n_over <= 40


def test_nothing_is_compared_with_nothing() -> None:
    assert drift({}, {"a": 1, "b": 1}) is None
    assert drift({"a": 1, "b": 1}, {}) is None
    assert drift({"a": 5}, {"a": 9, "b": 0}) is None


@pytest.mark.parametrize("label", ["a", "b"])
def test_a_label_that_has_gone_counts_as_much_as_a_new_one(label: str) -> None:
    both, one = {"a": 500, "b": 500}, {label: 500}
    gone, new = drift(both, one), drift(one, both)
    assert gone is not None
    assert new is not None
    assert (gone.psi, gone.verdict) == (pytest.approx(new.psi), "changed")
