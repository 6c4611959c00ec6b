"""Hours and money, worked out by hand."""

import pytest

from benchmarks.cost import Machine, bill


def test_a_corpus_on_one_machine() -> None:
    machine = Machine("slow", tokens_per_s=1000.0, usd_per_hour=2.0)
    assert bill(machine, 1, n_tokens=3.6e6, efficiency=0.5) == pytest.approx((2.0, 4.0))


def test_more_machines_take_less_time_and_the_same_money() -> None:
    machine = Machine("slow", tokens_per_s=1000.0, usd_per_hour=2.0)
    assert bill(machine, 4, n_tokens=3.6e6, efficiency=0.5) == pytest.approx((0.5, 4.0))
