from __future__ import annotations

from dataclasses import replace

from tests.pipelines.nights import SUMMARY


def test_a_run_is_told_in_rows_tokens_and_labels() -> None:
    assert SUMMARY.lines() == [
        "500 rows labelled in 2.0 s (250 rows/s, 10,000 tokens/s)",
        "1,000 rows in out, 10 failed",
        "2 model actors busy for 75% of that time",
        "spam: ham 700, spam 290",
        "failed: text is null (10)",
    ]


def test_the_share_of_duplicates_is_told() -> None:
    lines = replace(SUMMARY, copied_tokens=2_500).lines()
    assert lines[3] == "12.5% of the tokens were in duplicates, which are computed once"


def test_a_run_with_nothing_to_do_says_so() -> None:
    assert replace(SUMMARY, seconds=0.0).lines()[0] == "nothing to do: all 1,000 rows are labelled in out"


def test_the_share_of_failures_is_judged_over_the_whole_output() -> None:
    assert not SUMMARY.has_failed_too_often
    assert replace(SUMMARY, failed=11).has_failed_too_often
    assert not replace(SUMMARY, rows=0, failed=0).has_failed_too_often
