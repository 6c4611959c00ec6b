"""The columns that tokenising adds to a block, and the flat arrays that the model and its heads read from them.

A record is one sequence of tokens, or several: windows of a long text, or the choices of a question.
Shapes: R records, S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine import Packed
from convbert.engine.packing import gather, offsets_of

_KINDS = _IDS, _TYPES, _ATTENDED, _COUNTED, _SPANS = "__ids_", "__types_", "__attended_", "__counted_", "__spans_"


@dataclass(frozen=True)
class Sequences:
    """The sequences of some records.

    Attributes:
        records: (R + 1,): record r has the sequences ``records[r]`` to ``records[r + 1]``.
        packed: the sequences, ready for the engine.
        spans: (T, 3) first and last + 1 character of each token in its text, and the number of its word, or
            -1 where it is no token of that text; None where no head asks for them.
    """

    records: NDArray[np.int64]
    packed: Packed
    spans: NDArray[np.int32] | None = None

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(R + 1,): record r has the tokens ``tokens[r]`` to ``tokens[r + 1]``."""
        return np.asarray(self.packed.offsets, np.int64)[self.records]

    def take(self, records: NDArray[np.int64]) -> Sequences:
        """The sequences of some of the records."""
        sequences, offsets = gather(self.records[records], np.diff(self.records)[records])
        spans = self.spans
        if spans is not None:
            tokens = self.tokens
            spans = spans[gather(tokens[records], np.diff(tokens)[records])[0]]
        return Sequences(offsets, self.packed.take(sequences), spans)


def concatenated(parts: Sequence[Sequences]) -> Sequences:
    """The sequences of the records of all parts, one part after the other, without spans."""
    if len(parts) == 1:
        return replace(parts[0], spans=None)
    packed = [part.packed for part in parts]

    def joined(values: Callable[[Packed], Any], usual: Callable[[Packed], Any]) -> NDArray[Any] | None:
        """One attribute of all, None where it is None in all."""
        if all(values(one) is None for one in packed):
            return None
        return np.concatenate([usual(one) if (own := values(one)) is None else own for one in packed])

    return Sequences(
        offsets_of(np.concatenate([np.diff(part.records) for part in parts])),
        Packed(
            np.concatenate([one.input_ids for one in packed]),
            offsets_of(np.concatenate([one.lengths for one in packed])),
            joined(attrgetter("token_type_ids"), lambda one: np.zeros(len(one.input_ids), np.int8)),
            joined(attrgetter("attended"), attrgetter("lengths")),
            joined(attrgetter("counted"), lambda one: np.stack([0 * one.lengths, one.lengths], axis=1)),
        ),
    )


def add_sequences(block: pa.Table, name: str, sequences: Sequences, rows: NDArray[np.int64]) -> pa.Table:
    """The block with columns for one encoder pass: sequences of these rows, null elsewhere."""
    packed, n_sequences = sequences.packed, np.diff(sequences.records)
    columns = {_IDS: _lists(packed.offsets, pa.array(packed.input_ids, pa.int32()))}
    if packed.token_type_ids is not None:
        columns[_TYPES] = _lists(packed.offsets, pa.array(packed.token_type_ids, pa.int8()))
    if packed.attended is not None:
        columns[_ATTENDED] = pa.array(packed.attended, pa.int32())
    if packed.counted is not None:
        columns[_COUNTED] = _fixed_lists(packed.counted)
    if sequences.spans is not None:
        columns[_SPANS] = _lists(packed.offsets, _fixed_lists(sequences.spans))
    for kind, values in columns.items():
        block = block.append_column(kind + name, list_column(values, n_sequences, rows, len(block)))
    return block


def sequences_of(block: pa.Table, name: str, rows: pa.Array) -> Sequences:
    """What ``add_sequences`` wrote for these ascending rows, none of which has failed."""

    def column(kind: str) -> pa.ListArray | None:
        return at_rows(block[kind + name], rows) if kind + name in block.column_names else None

    ids, types, attended, counted, spans = map(column, _KINDS)
    assert ids is not None  # every pass has ids
    sequences = ids.flatten()
    return Sequences(
        records=list_offsets(ids),
        packed=Packed(
            sequences.flatten().to_numpy(),
            list_offsets(sequences),
            None if types is None else types.flatten().flatten().to_numpy(),
            None if attended is None else attended.flatten().to_numpy(),
            None if counted is None else counted.flatten().flatten().to_numpy().reshape(-1, 2),
        ),
        spans=None if spans is None else spans.flatten().flatten().flatten().to_numpy().reshape(-1, 3),
    )


def at_rows(column: pa.ChunkedArray, rows: pa.Array) -> pa.Array:
    """A column's values at these ascending rows; a column in one piece is not copied where these are all of them."""
    picked = column if len(rows) == len(column) else column.take(rows)
    return picked.chunk(0) if picked.num_chunks == 1 else picked.combine_chunks()


def list_column(values: pa.Array, counts: NDArray[np.int64], rows: NDArray[np.int64], n_rows: int) -> pa.LargeListArray:
    """A list column with so many of the values at each of these rows, null elsewhere."""
    lengths = np.zeros(n_rows, np.int64)
    lengths[rows] = counts
    is_null = np.ones(n_rows + 1, np.bool_)
    is_null[rows] = False
    is_null[-1] = False
    return pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths), pa.int64(), mask=is_null), values)


def _lists(offsets: NDArray[np.integer], values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _fixed_lists(rows: NDArray[np.integer]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.int32()), rows.shape[1])


def list_offsets(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each of the lists begins, none of which is null."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]
