"""Columns that a head has found in, Arrow columns for a job or plain rows for an answer out: the same values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine.packing import Indices


class Names:
    """A few texts, each of which a column may hold many times."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(texts)

    @cached_property
    def array(self) -> pa.StringArray:
        """The texts as Arrow has them."""
        return pa.array(self.texts, pa.string())


@dataclass(frozen=True)
class Named:
    """Texts of which each is one of some names.

    Attributes:
        names: to choose from.
        places: (N,) where each stands among them.
    """

    names: Names
    places: NDArray[np.integer]


@dataclass(frozen=True)
class Lists:
    """Lists of values.

    Attributes:
        values: of all lists, one after the other.
        offsets: (N + 1,): list n has the values ``offsets[n]`` to ``offsets[n + 1]``.
    """

    values: Column
    offsets: Indices


Column: TypeAlias = "NDArray[Any] | Sequence[str] | Named | Lists | Mapping[str, Column]"
"""N values: numbers of the column's own type, null where masked, or (N, W) lists of W numbers; texts; lists; structs of
other columns by name."""


def arrow_of(column: Column, type_: pa.DataType) -> pa.Array:
    """The N values as Arrow has them.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError: they are not of this type.
    """
    if isinstance(column, Mapping):
        return pa.StructArray.from_arrays([arrow_of(column[f.name], f.type) for f in type_], fields=list(type_))
    if isinstance(column, Lists):
        offsets = pa.array(column.offsets, pa.int32())  # which refuses what is beyond
        return pa.ListArray.from_arrays(offsets, arrow_of(column.values, type_.value_type), type=type_)
    if isinstance(column, Named):
        return column.names.array.take(pa.array(column.places))
    if isinstance(column, np.ndarray):
        if column.ndim == 2:
            n, width = column.shape
            return arrow_of(Lists(column.ravel(), np.arange(n + 1) * width), type_)
        return pa.array(column)
    return pa.array(column, type_)


def rows_of(column: Column) -> list[Any]:
    """The N values as Python has them."""
    if isinstance(column, np.ndarray):
        return cast("list[Any]", column.tolist())
    if isinstance(column, Named):
        return [column.names.texts[place] for place in column.places.tolist()]
    if isinstance(column, Lists):
        values = rows_of(column.values)
        return [values[start:stop] for start, stop in pairwise(column.offsets.tolist())]
    if isinstance(column, Mapping):
        names = list(column)
        return [dict(zip(names, row, strict=True)) for row in zip(*map(rows_of, column.values()), strict=True)]
    return list(column)
