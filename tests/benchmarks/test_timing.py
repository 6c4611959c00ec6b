from __future__ import annotations

from benchmarks.timing import interleaved, ratio


def test_contenders_take_turns_after_a_run_that_does_not_count() -> None:
    runs: list[str] = []
    seconds = interleaved({name: lambda name=name: runs.append(name) for name in ("a", "b", "c")}, 2)
    assert "".join(runs) == "abc" * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratio_is_the_median_of_the_rounds() -> None:
    assert ratio([2.0, 30.0, 9.0], [1.0, 1.0, 3.0]) == 3.0  # not 9 / 1, the ratio of the medians


def test_ratio_takes_the_rounds_that_both_ran_in() -> None:
    assert ratio([8.0], [2.0, 4.0]) == 4.0


def test_who_takes_too_long_drops_out() -> None:
    runs: list[str] = []
    contenders = {name: lambda name=name: runs.append(name) for name in ("a", "b")}
    assert [len(each) for each in interleaved(contenders, 3, patience_s=0.0).values()] == [1, 1]
