from __future__ import annotations

import time
from dataclasses import replace

from pipelines.summary import is_above, reasons_in_words
from pipelines.write import Part
from tests.pipelines.nights import SUMMARY


def test_a_run_is_told_in_rows_tokens_and_labels() -> None:
    assert SUMMARY.lines() == [
        "500 rows labelled in 2.0 s (250 rows/s, 10,000 tokens/s)",
        "1,000 rows in out, 10 failed",
        "2 model actors busy for 75% of that time",
        "spam: ham 700, spam 290",
        "failed: text is null (10)",
    ]


def test_that_there_are_more_reasons_is_told() -> None:
    lines = replace(SUMMARY, failed=1_012).lines()
    assert lines[-2:] == ["failed: text is null (10)", "failed: for other reasons (1,002)"]


def test_the_share_of_duplicates_is_told() -> None:
    lines = replace(SUMMARY, copied_tokens=2_500).lines()
    assert lines[3] == "12.5% of the tokens were in duplicates, which are computed once"


def test_a_run_with_nothing_to_do_says_so() -> None:
    assert replace(SUMMARY, seconds=0.0).lines()[0] == "nothing to do: all 1,000 rows are labelled in out"
    only_drops = replace(SUMMARY, seconds=0.0, is_done=False)
    assert only_drops.lines()[0] == "nothing to label: all 1,000 rows are labelled in out"


def test_the_share_of_failures_is_judged_over_the_whole_output_and_over_the_newest_night() -> None:
    assert not SUMMARY.has_failed_too_often  # a hundredth of both
    whole = replace(SUMMARY, failed=11)
    assert whole.too_many_failed == "11 of 1,000 records failed, more than --max-failed-fraction 0.01"
    night = replace(SUMMARY, night_failed=6)
    assert night.too_many_failed == "6 of 500 new records failed, more than --max-failed-fraction 0.01"
    assert whole.has_failed_too_often
    assert night.has_failed_too_often
    assert not replace(SUMMARY, rows=0, failed=0, night_rows=0, night_failed=0).has_failed_too_often


def test_reasons_are_told_with_an_example_where_there_is_one() -> None:
    each = [
        Part("a", 9, 3, 0, reasons={"text is null": 1200}, examples={"text is null": "a1"}),
        Part("b", 9, 3, 0, reasons={"text is null": 34, "odd": 2}, examples={"text is null": "b1"}),
    ]
    assert reasons_in_words(each) == "text is null (1,234, such as a1); odd (2)"
    assert reasons_in_words(each, n=1) == "text is null (1,234, such as a1)"


def test_reasons_of_many_parts_are_told_at_once() -> None:
    """Each part with a reason of its own: what copies all before it for each takes minutes."""
    each = [Part("a", 1, 1, 0, reasons={f"r{n}": 1}, examples={f"r{n}": f"id{n}"}) for n in range(50_000)]
    started = time.process_time()
    assert reasons_in_words(each, n=1) == "r0 (1, such as id0)"
    assert time.process_time() - started < 5


def test_a_limit_is_the_decimal_that_was_written() -> None:
    assert 29 > 0.29 * 100  # as floats have it
    assert not is_above(0.29, 29, 100)
    assert is_above(0.29, 30, 100)
    assert is_above(0.0, 1, 10**9)
