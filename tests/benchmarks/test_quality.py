from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import corpus, difference

ROOT = Path(__file__).parents[2]


def test_labels_and_probabilities_are_compared() -> None:
    reference = np.log(np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], np.float32))
    found = np.log(np.array([[0.70, 0.30], [0.75, 0.25], [0.5, 0.5], [0.9, 0.1]], np.float32))
    agreement, largest, mean = difference(reference, found)
    assert agreement == 3 / 4
    assert largest == pytest.approx(0.5)
    assert mean == pytest.approx((2 * 0.05 + 2 * 0.5) / 8)


def test_a_shift_of_all_logits_changes_no_probability() -> None:
    logits = np.array([[1.0, 2.0, 4.0]], np.float32)
    assert difference(logits, logits + 8) == (1.0, 0.0, 0.0)


def test_every_shard_of_a_corpus_is_read() -> None:
    assert len(corpus(ROOT / "examples/spam/corpus")) == 955  # the number that the README of the example gives
