from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import Subject, corpus, difference, sampled
from convbert.engine import Packed

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


def test_a_sample_is_spread_over_all_records_and_keeps_each_label_s_row() -> None:
    model: Any = None
    head: Any = None
    records = Packed(np.arange(10), np.array([0, 2, 5, 6, 10]))
    subject = Subject("words", model, head, records, np.array([1, 0, 1, 1, 0, 1, 0, 0, 1, 1], np.bool_))
    assert sampled(subject, None) is sampled(subject, 10) is subject
    half = sampled(subject, 5)
    assert half.records.input_ids.tolist() == [0, 1, 5]
    assert half.records.offsets.tolist() == [0, 2, 3]
    assert isinstance(half.labels, np.ndarray)
    assert half.labels.tolist() == [True, False, True]
    of_records = sampled(subject._replace(labels=slice(None)), 5)
    assert of_records.labels == slice(None)
    assert of_records.records.input_ids.tolist() == [0, 1, 5]
