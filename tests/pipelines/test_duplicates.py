from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convbert.engine import Packed, PackedEncoder, Rows
from pipelines.duplicates import Distinct, distinct
from pipelines.results import N_COPIED, N_TOKENS
from pipelines.sequences import Sequences
from tests.conftest import save_checkpoint
from tests.pipelines.labelling import job, label

# A sequence as (ids, types, attended, counted), of few different ones so that many are equal.
sequence = st.integers(1, 3).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 2), min_size=n, max_size=n).map(tuple),
        st.lists(st.integers(0, 1), min_size=n, max_size=n).map(tuple),
        st.integers(1, n),
        st.tuples(st.just(0), st.integers(1, n)),
    )
)
Record = list[tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, int]]]


def offsets(counts: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def sequences_from(records: list[Record]) -> Sequences:
    flat = [sequence for record in records for sequence in record]
    return Sequences(
        offsets([len(record) for record in records]),
        Packed(
            np.array([i for ids, *_ in flat for i in ids], np.int32),
            offsets([len(ids) for ids, *_ in flat]),
            np.array([t for _, types, *_ in flat for t in types], np.int8),
            np.array([attended for *_, attended, _ in flat], np.int64),
            np.array([counted for *_, counted in flat], np.int32).reshape(-1, 2),
        ),
    )


@settings(deadline=None)
@given(st.lists(st.lists(sequence, min_size=1, max_size=2), min_size=1, max_size=12))
def test_records_are_equal_where_all_that_the_engine_reads_is(records: list[Record]) -> None:
    found = distinct(sequences_from(records))
    seen: list[Record] = []
    for record, is_copy in zip(records, found.is_copy, strict=True):
        assert is_copy == (record in seen)
        seen.append(record)
    assert [records[found.firsts[kind]] for kind in found.kinds] == records
    assert found.firsts.tolist() == sorted(set(found.firsts.tolist()))


@settings(deadline=None)
@given(st.lists(st.lists(sequence, min_size=1, max_size=2), min_size=1, max_size=9), st.data())
def test_sequences_of_some_records_are_theirs(records: list[Record], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=5))
    taken, expected = (
        sequences_from(records).take(np.array(some)),
        sequences_from([records[number] for number in some]),
    )
    np.testing.assert_array_equal(taken.records, expected.records)
    assert taken.spans is None
    for ours, theirs in zip(taken.packed, expected.packed, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_of_one_record_are_those_of_its_copies() -> None:
    rows = Rows(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 3]))
    values, offsets = Distinct(np.array([0, 1]), np.array([0, 1, 1, 0])).spread(rows)
    assert values.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3], [4, 5], [0, 1]]
    assert offsets.tolist() == [0, 1, 3, 5, 6]


TEXTS = ["free mail", "the offer now", "free mail", None, "mail " * 30, "x 12", "the offer now", "mail " * 30]
MASKED = [text and "[MASK] " + text for text in TEXTS]
PAIRED = [text and "free zebra" for text in TEXTS]
CHOICES = [["free", "the mail"], ["x"], ["free", "the mail"], None, ["a", "b"], ["12"], ["x", "x"], ["b", "a"]]


@pytest.mark.parametrize(
    ("architecture", "changes", "columns", "n_copies"),
    [
        ("ConvBertForSequenceClassification", {}, {"text": TEXTS}, 3),
        ("ConvBertForSequenceClassification", {"long_text": "window", "max_length": 12}, {"text": TEXTS}, 3),
        ("ConvBertForTokenClassification", {}, {"text": TEXTS}, 3),
        ("ConvBertForMaskedLM", {}, {"text": MASKED}, 3),
        ("ConvBertForMaskedLM", {"pseudo_log_likelihood": True}, {"text": TEXTS}, 3),
        ("ConvBertForQuestionAnswering", {"max_length": 24}, {"question": PAIRED, "context": TEXTS}, 3),
        ("ConvBertForMultipleChoice", {}, {"text": TEXTS, "choices": CHOICES}, 1),
        ("ConvBertModel", {}, {"text": TEXTS}, 3),
    ],
)
def test_every_head_gives_copies_what_it_gives_the_distinct_records(
    architecture: str,
    changes: dict[str, Any],
    columns: dict[str, list[Any]],
    n_copies: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = job(save_checkpoint(tmp_path, architecture=architecture), **changes)
    keys = [tuple(map(str, row)) for row in zip(*columns.values(), strict=True)]
    firsts = sorted({key: row for row, key in reversed(list(enumerate(keys)))}.values())
    without = label(spec, **{name: [values[row] for row in firsts] for name, values in columns.items()})
    n_without = count_tokens(monkeypatch)
    result = label(spec, **columns)
    places = [firsts.index(keys.index(key)) for key in keys]
    for name in ("prediction", "error", N_TOKENS):
        assert result[name].combine_chunks().equals(without[name].combine_chunks().take(pa.array(places)))
    copied = result[N_COPIED].to_pylist()
    assert [row for row, n in enumerate(copied) if n] == [row for row in range(len(keys)) if row not in firsts]
    assert sum(n > 0 for n in copied) == n_copies
    if "pseudo_log_likelihood" not in changes:  # which runs the encoder for each token anew
        assert sum(n_without) - 1 == sum(result[N_TOKENS].to_pylist()) - sum(copied)  # 1: the check at the start


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each batch that the encoder computes from now on."""
    n_tokens: list[int] = []
    original = PackedEncoder.__call__

    def counting(self: PackedEncoder, batch: Packed, *wanted: Any, **settings: Any) -> torch.Tensor:
        n_tokens.append(len(batch.input_ids))
        return original(self, batch, *wanted, **settings)

    monkeypatch.setattr(PackedEncoder, "__call__", counting)
    return n_tokens
