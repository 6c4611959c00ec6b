from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from convbert.engine import Packed
from pipelines.sequences import Sequences, add_sequences, concatenated, list_column, sequences_of

records_of = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=8)


@given(records_of, st.data())
def test_what_is_written_for_some_rows_is_read_back(records: list[list[int]], data: st.DataObject) -> None:
    n_rows = len(records) + data.draw(st.integers(0, 3))
    rows = np.array(sorted(data.draw(st.permutations(range(n_rows)))[: len(records)]), np.int64)
    lengths = [length for record in records for length in record]
    n_tokens = sum(lengths)
    packed = Packed(
        np.arange(n_tokens, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.arange(n_tokens, dtype=np.int8) % 2,
        np.array(lengths, np.int64),
        np.array([[0, length] for length in lengths], np.int64).reshape(-1, 2),
    )
    starts = np.concatenate([[0], np.cumsum([len(record) for record in records])]).astype(np.int64)
    spans = np.arange(3 * n_tokens, dtype=np.int32).reshape(-1, 3)
    block = pa.table({"id": list(range(n_rows))})
    block = add_sequences(block, "0", Sequences(starts, packed, spans), rows)
    found = sequences_of(block, "0", pa.array(rows))
    np.testing.assert_array_equal(found.records, starts)
    np.testing.assert_array_equal(found.spans, spans)
    for ours, theirs in zip(found.packed, packed, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in block.column_names[1:]:
        assert [row for row, value in enumerate(block[name].to_pylist()) if value is not None] == rows.tolist()
    some = sequences_of(block, "0", pa.array(rows[::2]))
    assert np.diff(some.records).tolist() == [len(record) for record in records[::2]]
    later = sequences_of(block[len(block) // 2 :], "0", pa.array(rows[rows >= n_rows // 2] - n_rows // 2))
    assert later.packed.input_ids.tolist() == [
        token
        for record, (first, last) in enumerate(zip(found.tokens, found.tokens[1:], strict=False))
        if rows[record] >= n_rows // 2
        for token in range(first, last)
    ]


def test_counted_tokens_are_told_for_every_window() -> None:
    packed = Packed(np.zeros(7, np.int32), np.array([0, 4, 7]), counted=np.array([[0, 3], [1, 3]]))
    sequences = Sequences(np.array([0, 2]), packed)
    assert sequences.packed.is_counted.tolist() == [True, True, True, False, False, True, True]
    assert sequences.packed.n_counted.tolist() == [3, 2]


def test_sequences_of_some_records_have_their_spans() -> None:
    packed = Packed(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6]))
    sequences = Sequences(np.array([0, 2, 3]), packed, np.arange(18, dtype=np.int32).reshape(6, 3))
    taken = sequences.take(np.array([1, 0]))
    assert taken.packed.input_ids.tolist() == [3, 4, 5, 0, 1, 2]
    assert taken.spans is not None
    assert taken.spans[:, 0].tolist() == [9, 12, 15, 0, 3, 6]


def test_parts_are_found_again_in_what_they_make_together() -> None:
    texts = Packed(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6]))
    windows = Packed(np.array([7, 8, 9], np.int32), np.array([0, 2, 3]), counted=np.array([[0, 1], [0, 1]]))
    pairs = texts._replace(token_type_ids=np.array([0, 0, 1, 0, 0, 1], np.int8), attended=np.array([1, 1, 3]))
    parts = [
        Sequences(np.array([0, 2, 3]), texts, np.zeros((6, 3), np.int32)),
        Sequences(np.array([0, 2]), windows),
        Sequences(np.array([0, 1, 3]), pairs),
    ]
    first, second, third = (concatenated(parts).take(np.array(records)).packed for records in ([0, 1], [2], [3, 4]))
    for found, part, expected in [
        (first, texts, ([0] * 6, [1, 2, 3], [[0, 1], [0, 2], [0, 3]])),
        (second, windows, ([0] * 3, [2, 1], [[0, 1], [0, 1]])),
        (third, pairs, ([0, 0, 1, 0, 0, 1], [1, 1, 3], [[0, 1], [0, 2], [0, 3]])),
    ]:
        np.testing.assert_array_equal(found.input_ids, part.input_ids)
        np.testing.assert_array_equal(found.offsets, part.offsets)
        for values, own in zip(found[2:], expected, strict=True):
            np.testing.assert_array_equal(values, own)
    assert concatenated(parts).records.tolist() == [0, 2, 3, 5, 6, 8]
    alone = concatenated(parts[:1])
    assert (alone.packed, alone.spans) == (texts, None)


def test_list_columns_have_values_at_their_rows() -> None:
    column = list_column(pa.array([1, 2, 3]), np.array([2, 1]), np.array([0, 2]), 4)
    assert column.to_pylist() == [[1, 2], None, [3], None]
