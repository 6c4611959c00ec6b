"""The benchmark of several heads, at its smallest."""

from __future__ import annotations

import pytest

from benchmarks.heads import measure


@pytest.mark.slow
def test_three_heads_cost_less_than_three_times_one() -> None:
    (row,) = measure(rounds=3, n_texts=8, size="small")
    assert 0.5 < row.measured < 3
    assert row.note.startswith("8 e-mails; of three: ")
