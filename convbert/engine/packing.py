"""Record lengths in, micro-batches under a token budget out, and where a packed batch's rows lie.

A packed batch is flat: the ids of all records one after the other, and offsets that say where each
begins, which is what an Arrow list array holds. T tokens, R records, K kernel taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbert.errors import InputError

Indices = NDArray[np.int64]
LEAST_SHARE = 128  # tokens of a micro-batch that is cut for one of several threads: fewer take hardly less time
LEAST_EQUAL_SHARE = 64  # tokens, for each thread: all read the same weights, the longer the more they are
MOST_OF_EQUAL_SHARE = 1.12  # of the mean: one that is larger keeps the others waiting
MOST_RECORDS = 65_535  # of a micro-batch: CUDA starts no more blocks side by side, and attention takes one a record


class Packed(NamedTuple):
    """Records without padding.

    Attributes:
        input_ids: (T,) integers, record after record.
        offsets: (R + 1,) integers: record r is ``input_ids[offsets[r]:offsets[r + 1]]``.
        token_type_ids: (T,) integers, or None where all are 0.
        attended: (R,) how many of a record's first tokens are attended to, or None for all of them. The
            others are computed, and seen by the convolutions, as Transformers does with padding.
        counted: (R, 2) first and last + 1 of the tokens that count as the record's own, or None for all:
            windows of one text overlap, and each token counts in one of them.
    """

    input_ids: NDArray[np.integer]
    offsets: NDArray[np.integer]
    token_type_ids: NDArray[np.integer] | None = None
    attended: NDArray[np.integer] | None = None
    counted: NDArray[np.integer] | None = None

    @property
    def lengths(self) -> Indices:
        """(R,) tokens of each record."""
        offsets = np.asarray(self.offsets, np.int64)
        return offsets[1:] - offsets[:-1]

    @property
    def n_counted(self) -> Indices:
        """(R,) tokens that count as each record's own: the weight of a window in its text."""
        return self.lengths if self.counted is None else (self.counted[:, 1] - self.counted[:, 0]).astype(np.int64)

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """(T,) whether a token counts here, and not in another window; the offsets start at 0."""
        if self.counted is None:
            return np.ones(len(self.input_ids), np.bool_)
        lengths = self.lengths
        places = np.arange(len(self.input_ids)) - np.repeat(np.asarray(self.offsets)[:-1], lengths)
        first, last = np.repeat(self.counted, lengths, axis=0).T
        return (first <= places) & (places < last)

    def take(self, records: Indices) -> Packed:
        """The batch of the given records, in the given order, its offsets starting at 0."""
        tokens, offsets = gather(np.asarray(self.offsets)[records], self.lengths[records])
        return Packed(
            self.input_ids[tokens],
            offsets,
            None if self.token_type_ids is None else self.token_type_ids[tokens],
            None if self.attended is None else self.attended[records],
            None if self.counted is None else self.counted[records],
        )

    def trimmed(self) -> Packed:
        """The same records without tokens before the first and behind the last, their offsets starting at 0."""
        offsets = np.asarray(self.offsets, np.int64)
        own = slice(offsets[0], offsets[-1])
        return self._replace(
            input_ids=np.asarray(self.input_ids)[own],
            offsets=offsets - offsets[0],
            token_type_ids=None if self.token_type_ids is None else np.asarray(self.token_type_ids)[own],
            attended=None if self.attended is None else np.asarray(self.attended, np.int64),
            counted=None if self.counted is None else np.asarray(self.counted, np.int64),
        )


class Rows(NamedTuple):
    """A head's results: record r has ``values[offsets[r]:offsets[r + 1]]``.

    Attributes:
        values: (N, …) float32.
        offsets: (R + 1,).
    """

    values: NDArray[np.float32]
    offsets: Indices

    def take(self, records: Indices) -> Rows:
        """The rows of the given records, in the given order."""
        places, offsets = gather(self.offsets[:-1][records], np.diff(self.offsets)[records])
        return Rows(self.values[places], offsets)


def offsets_of(counts: Sequence[int] | NDArray[np.integer | np.bool_]) -> Indices:
    """(R + 1,): where each of R stretches of so many rows begins if they stand one after the other, and the end."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.add.accumulate(counts, dtype=np.int64, out=offsets[1:])
    return offsets


def sums_of(values: NDArray[np.integer | np.bool_], offsets: NDArray[np.integer]) -> Indices:
    """(R,): the sum of each stretch ``values[offsets[r]:offsets[r + 1]]``, which may be empty."""
    return np.diff(offsets_of(values)[offsets])


def gather(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> tuple[Indices, Indices]:
    """Where rows lie that are wanted in stretches: all of them one after the other, and each stretch's offset there.

    Args:
        starts: (R,) first row of each stretch.
        lengths: (R,) its rows.

    Returns:
        (N,) rows, and (R + 1,) offsets.
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets


def micro_batches(lengths: Indices, max_batch_tokens: int, *, n_threads: int = 1) -> Iterator[Indices]:
    """Record numbers of each micro-batch: longest first, each within the budget.

    The same arguments give the same batches. A record longer than the budget stands alone; no batch has more than
    ``MOST_RECORDS``.

    Args:
        lengths: (R,) tokens of each record.
        max_batch_tokens: most tokens of a batch of several records.
        n_threads: that will each take the next batch when they are done with one. For several the batches get smaller
            towards the end, so that none is left with a large one (guided self-scheduling, Polychronopoulos and Kuck
            1987).
    """
    order = np.argsort(-lengths, kind="stable")
    totals = np.cumsum(lengths[order])
    first = n_before = 0
    budget = max_batch_tokens
    while first < len(order):
        if n_threads > 1:
            budget = min(max_batch_tokens, max(LEAST_SHARE, (int(totals[-1]) - n_before) // (2 * n_threads)))
        fitting = int(np.searchsorted(totals, n_before + budget, side="right"))
        last = min(max(fitting, first + 1), first + MOST_RECORDS)
        yield order[first:last]
        first, n_before = last, int(totals[last - 1])


def equal_shares(lengths: Indices, n_threads: int, max_batch_tokens: int) -> list[Indices]:
    """Record numbers of a micro-batch for each thread, all with about as many tokens; none where there are no such.

    The longest first, each to the thread that has least so far (LPT, Graham 1969).

    Args:
        lengths: (R,) tokens of each record.
        n_threads: that compute one each, at the same time.
        max_batch_tokens: most tokens of one.
    """
    shares: list[list[int]] = [[] for _ in range(n_threads)]
    n_tokens = np.zeros(n_threads, np.int64)
    least, most = LEAST_EQUAL_SHARE * n_threads, min(max_batch_tokens, MOST_OF_EQUAL_SHARE * lengths.sum() / n_threads)
    if not least <= most:
        return []
    for record in np.argsort(-lengths, kind="stable").tolist():
        thread = int(n_tokens.argmin())
        n_tokens[thread] += lengths[record]
        if n_tokens[thread] > most:
            return []
        shares[thread].append(record)
    return [np.array(share, np.int64) for share in shares] if n_tokens.min() >= least else []


class Run(NamedTuple):
    """Neighbouring records of one length: their rows are a view of shape (n_records, length, …).

    The first ``n_attended`` tokens of each are attended to.
    """

    first_row: int
    n_records: int
    length: int
    n_attended: int


class Layout(NamedTuple):
    """Where the rows of a packed batch lie, for convolutions of K taps, which reach ``K // 2`` rows.

    Attributes:
        positions: (T,) position of each token in its record.
        gapped_rows: (T,) row of each token in a buffer with ``K // 2`` zero rows before, between and
            after the records, so that a convolution over the buffer never sees a neighbour.
        n_gapped_rows: rows of that buffer.
        sides: (T, 2) how many tokens of its own record stand before each token and behind it.
        runs: neighbours of equal length, attended to in one call without padding.
        offsets: (R + 1,) first row of each record, and T.
        longest: tokens of the longest record.
    """

    positions: Indices
    gapped_rows: Indices
    n_gapped_rows: int
    sides: NDArray[np.int32]
    runs: list[Run]
    offsets: Indices
    longest: int


def layout(lengths: Indices, *, n_taps: int, max_length: int, attended: NDArray[np.integer] | None = None) -> Layout:
    """Lay out the records of one micro-batch.

    Raises:
        InputError: a record without tokens, or with more than ``max_length``.
    """
    check_lengths(lengths, max_length)
    attended = lengths if attended is None else attended
    reach = n_taps // 2
    offsets = offsets_of(lengths)
    starts, n_tokens = offsets[:-1], int(offsets[-1])
    records = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(n_tokens) - starts[records]
    edges = np.flatnonzero(np.diff(lengths) | np.diff(attended)) + 1  # where a run ends
    firsts = np.concatenate([[0], edges])
    counts = np.diff(np.concatenate([firsts, [len(lengths)]]))
    return Layout(
        positions=positions,
        gapped_rows=np.arange(n_tokens) + reach * (records + 1),
        n_gapped_rows=n_tokens + reach * (len(lengths) + 1),
        sides=np.stack([positions, lengths[records] - 1 - positions], 1).astype(np.int32),
        runs=[
            Run(int(starts[f]), int(n), int(lengths[f]), int(attended[f])) for f, n in zip(firsts, counts, strict=True)
        ],
        offsets=offsets,
        longest=int(lengths.max()),
    )


def check_fields(batch: Packed) -> None:
    """See that a batch's fields are of the shapes that ``Packed`` says, and stay within its records.

    Raises:
        InputError: which is not.
    """
    n_records = max(np.asarray(batch.offsets).size - 1, 0)
    if n_records == 0:
        raise InputError("there are no records to run: give at least one")
    n_tokens = np.asarray(batch.input_ids).size
    shapes = ((n_tokens,), (n_records + 1,), (n_tokens,), (n_records,), (n_records, 2))
    for name, values, shape in zip(Packed._fields, batch, shapes, strict=True):
        if values is not None and (np.shape(values) != shape or np.asarray(values).dtype.kind not in "iu"):
            raise InputError(
                f"{name} has the shape {np.shape(values)} and the type {np.asarray(values).dtype}: "
                f"give whole numbers of the shape {shape}"
            )
    offsets, lengths = np.asarray(batch.offsets, np.int64), batch.lengths
    if offsets[0] < 0 or offsets[-1] > n_tokens or lengths.min() < 0:
        raise InputError(f"offsets must rise from at least 0 to at most the number of input_ids ({n_tokens})")
    if batch.attended is not None:
        attended = np.asarray(batch.attended, np.int64)
        if ((attended < 1) | (attended > lengths)).any():
            raise InputError("attended must say at least 1 and at most all of each record's tokens")
    if batch.counted is not None:
        first, last = np.asarray(batch.counted, np.int64).T
        strays = (first < 0) | (first > last) | (last > lengths)
        if strays.any():
            record = int(strays.argmax())
            raise InputError(
                f"counted says {int(first[record])} to {int(last[record])} of the {lengths[record]} tokens of record "
                f"{record}: give the first and last + 1 of its own"
            )


def check_lengths(lengths: Indices, max_length: int) -> None:
    """See that an encoder takes records of these lengths.

    Raises:
        InputError: no records, one without tokens, or one with more than ``max_length``.
    """
    if len(lengths) == 0:
        raise InputError("a batch needs at least one record")
    if lengths.min() < 1:
        raise InputError(f"record {int(lengths.argmin())} of the batch has no tokens: give at least one")
    if lengths.max() > max_length:
        raise InputError(
            f"record {int(lengths.argmax())} of the batch has {int(lengths.max())} tokens, more than "
            f"max_position_embeddings ({max_length}): truncate it or label it in windows"
        )
