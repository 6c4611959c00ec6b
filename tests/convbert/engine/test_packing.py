from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convbert import InputError
from convbert.engine.convolution import sides_of
from convbert.engine.packing import (
    LEAST_EQUAL_SHARE,
    LEAST_SHARE,
    MOST_OF_EQUAL_SHARE,
    MOST_RECORDS,
    Packed,
    equal_shares,
    layout,
    micro_batches,
    sums_of,
)

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(lambda lengths: np.array(lengths))


@given(lengths_of, st.integers(1, 100))
def test_micro_batches_hold_every_record_once_within_the_budget(lengths: np.ndarray, budget: int) -> None:
    batches = list(micro_batches(lengths, budget))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(lengths[batch].sum() <= budget or len(batch) == 1 for batch in batches)


@given(lengths_of, st.integers(1, 2000), st.integers(2, 9))
def test_batches_of_several_threads_are_none_that_the_others_would_wait_for(
    lengths: np.ndarray, budget: int, n_threads: int
) -> None:
    batches = list(micro_batches(lengths, budget, n_threads=n_threads))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    left = lengths.sum()
    for batch in batches:
        n_tokens = lengths[batch].sum()
        assert n_tokens <= min(budget, max(LEAST_SHARE, left / (2 * n_threads))) or len(batch) == 1
        left -= n_tokens


def test_batches_of_several_threads_are_full_at_first_and_small_in_the_end() -> None:
    sizes = [len(batch) for batch in micro_batches(np.ones(3000, np.int64), 600, n_threads=2)]
    assert sizes == [600, 600, 450, 337, 253, 190, 142, 128, 128, 128, 44]


def test_micro_batches_begin_with_the_longest_and_keep_the_order_of_equals() -> None:
    assert [batch.tolist() for batch in micro_batches(np.array([2, 5, 2, 5]), 9)] == [[1], [3, 0, 2]]


def test_micro_batches_hold_no_more_records_than_a_gpu_attends_to() -> None:
    sizes = [len(batch) for batch in micro_batches(np.ones(2 * MOST_RECORDS + 1, np.int64), 10**9)]
    assert sizes == [65_535, 65_535, 1]


@given(lengths_of.map(lambda lengths: 20 * lengths), st.integers(1, 9000), st.integers(2, 5))
def test_equal_shares_hold_every_record_once_and_keep_no_thread_waiting(
    lengths: np.ndarray, budget: int, n_threads: int
) -> None:
    if shares := equal_shares(lengths, n_threads, budget):
        assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
        n_tokens = [lengths[share].sum() for share in shares]
        assert len(shares) == n_threads
        assert LEAST_EQUAL_SHARE * n_threads <= min(n_tokens)
        assert max(n_tokens) <= min(budget, MOST_OF_EQUAL_SHARE * lengths.sum() / n_threads)


@pytest.mark.parametrize(
    ("lengths", "budget", "shares"),
    [
        ([90, 200, 100, 210], 1000, [[3, 0], [1, 2]]),
        ([300], 1000, []),  # nothing to share
        ([300, 100, 40], 1000, []),  # the others would wait for the longest
        ([90, 60, 100, 50], 1000, [[2, 3], [0, 1]]),
        ([60, 60], 1000, []),  # weights take longer to read than so few tokens to compute
        ([500, 500, 100, 100], 599, []),
        ([500, 500, 100, 100], 600, [[0, 2], [1, 3]]),
    ],
)
def test_equal_shares_of_records(lengths: list[int], budget: int, shares: list[list[int]]) -> None:
    assert [share.tolist() for share in equal_shares(np.array(lengths), 2, budget)] == shares


def test_no_records_give_no_batches() -> None:
    assert equal_shares(np.array([], np.int64), 2, 8) == []
    assert list(micro_batches(np.array([], np.int64), 8)) == []


@given(lengths_of, st.data())
def test_take_gives_the_records_in_the_asked_order(lengths: np.ndarray, data: st.DataObject) -> None:
    records = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]
    batch = Packed(np.concatenate(records), np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(records) % 2)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1)))
    taken = batch.take(chosen)
    expected = np.concatenate([records[i] for i in chosen])
    np.testing.assert_array_equal(taken.input_ids, expected)
    np.testing.assert_array_equal(taken.token_type_ids, expected % 2)
    np.testing.assert_array_equal(taken.lengths, lengths[chosen])


@given(lengths_of, st.integers(0, 5))
def test_layout_leaves_zero_rows_around_every_record(lengths: np.ndarray, reach: int) -> None:
    rows = layout(lengths, n_taps=2 * reach + 1, max_length=40)
    gapped = np.zeros(rows.n_gapped_rows, int)
    gapped[rows.gapped_rows] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    expected = [0] * reach
    for record, length in enumerate(lengths, start=1):
        expected += [record] * length + [0] * reach
    assert gapped.tolist() == expected
    assert rows.positions.tolist() == [position for length in lengths for position in range(length)]


@given(lengths_of, st.integers(0, 5))
def test_taps_are_inside_where_they_fall_on_the_tokens_own_record(lengths: np.ndarray, reach: int) -> None:
    owners = np.pad(np.repeat(np.arange(len(lengths)), lengths), reach, constant_values=-1)
    n_tokens = int(lengths.sum())
    expected = [owners[token : token + 2 * reach + 1] == owners[token + reach] for token in range(n_tokens)]
    sides = torch.from_numpy(layout(lengths, n_taps=2 * reach + 1, max_length=40).sides)
    np.testing.assert_array_equal(sides_of(sides, 2 * reach + 1, torch.bool, is_fused=False), expected)


@given(lengths_of)
def test_runs_cover_the_rows_in_stretches_of_one_length(lengths: np.ndarray) -> None:
    runs = layout(lengths, n_taps=3, max_length=40).runs
    assert [length for run in runs for length in [run.length] * run.n_records] == lengths.tolist()
    assert [run.first_row for run in runs] == [0, *np.cumsum([run.n_records * run.length for run in runs])[:-1]]
    assert all(a.length != b.length for a, b in itertools.pairwise(runs))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([3, 0], "record 1 of the batch has no tokens"), ([3, 9, 2], "record 1 .* 9 tokens, .*8"), ([], "at least one")],
)
def test_lengths_that_no_encoder_takes_are_named(lengths: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layout(np.array(lengths, np.int64), n_taps=3, max_length=8)


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 3))
def test_sums_count_each_stretch_by_itself_and_nothing_in_an_empty_one(counts: list[int], n_before: int) -> None:
    offsets = n_before + np.cumsum([0, *counts])
    values = np.arange(offsets[-1] + 2) % 3 == 0
    expected = [values[start:stop].sum() for start, stop in itertools.pairwise(offsets)]
    assert sums_of(values, offsets).tolist() == expected
