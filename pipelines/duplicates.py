"""Token sequences of records in, the distinct ones and which of them each record equals out: each is computed once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine import Rows
from convbert.engine.packing import Indices
from pipelines.sequences import Sequences


class Distinct(NamedTuple):
    """Which of R records are equal, D of them being distinct.

    Attributes:
        firsts: (D,) the first record of each kind, in their order.
        kinds: (R,) record r equals ``firsts[kinds[r]]``.
    """

    firsts: Indices
    kinds: Indices

    @property
    def has_copies(self) -> bool:
        """Whether any two are equal."""
        return len(self.firsts) < len(self.kinds)

    @property
    def is_copy(self) -> NDArray[np.bool_]:
        """(R,) whether an equal record comes before it."""
        is_copy = np.ones(len(self.kinds), np.bool_)
        is_copy[self.firsts] = False
        return is_copy

    def spread(self, rows: Rows) -> Rows:
        """Rows of the distinct records -> rows of all."""
        return rows.take(self.kinds) if self.has_copies else rows


def distinct(sequences: Sequences) -> Distinct:
    """Find the distinct records; two are equal if everything that the engine reads of them is equal."""
    packed, records, tokens = sequences.packed, sequences.records, sequences.tokens
    kinds = np.zeros(len(records) - 1, np.int64)
    if len(kinds) == 1:
        return Distinct(kinds, kinds)
    for values, offsets in [
        (packed.lengths, records),
        (packed.input_ids, tokens),
        (packed.token_type_ids, tokens),
        (packed.attended, records),
        (packed.counted, records),
    ]:
        if values is not None:
            kinds = _codes(pa.array(kinds * len(kinds) + _codes(_stretches(values, offsets))))
    return Distinct(np.unique(kinds, return_index=True)[1], kinds)


def _stretches(values: NDArray[np.integer], offsets: Indices) -> pa.Array:
    """The bytes of each stretch of rows."""
    data = np.ascontiguousarray(values)
    places = pa.py_buffer(offsets * data.strides[0])
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, places, pa.py_buffer(data)])


def _codes(values: pa.Array) -> Indices:
    """Equal numbers for equal values, counted from 0 in the order in which they first occur."""
    return values.dictionary_encode().indices.to_numpy().astype(np.int64)
