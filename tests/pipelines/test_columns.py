"""Whatever heads find is the same in a table and in an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbert.engine.packing import offsets_of
from pipelines.columns import Column, Lists, Named, Names, arrow_of, rows_of

NUMBERS = [np.float16, np.float32, np.int32, np.int64]


@st.composite
def columns(draw: st.DrawFn, n: int, depth: int = 2) -> tuple[Column, pa.DataType, list[Any]]:
    """N values, their type, and the same as Python has them."""
    kind = draw(
        st.sampled_from(["numbers", "masked", "vectors", "names", "texts", *(["lists", "structs"] * (depth > 0))])
    )
    if kind in ("numbers", "masked", "vectors"):
        dtype = draw(st.sampled_from(NUMBERS))
        type_ = pa.from_numpy_dtype(dtype)
        if kind == "vectors":
            width = draw(st.integers(1, 3))
            values = [[draw(st.integers(-9, 9)) for _ in range(width)] for _ in range(n)]
            return np.array(values, dtype).reshape(n, width), pa.list_(type_), values
        values = [draw(st.integers(-9, 9)) for _ in range(n)]
        if kind == "numbers":
            return np.array(values, dtype), type_, values
        mask = [draw(st.booleans()) for _ in range(n)]
        shown = [None if hidden else value for value, hidden in zip(values, mask, strict=True)]
        return np.ma.array(np.array(values, dtype), mask=mask), type_, shown
    if kind == "names":
        names = draw(st.lists(st.text(max_size=3), min_size=1, max_size=4))
        places = [draw(st.integers(0, len(names) - 1)) for _ in range(n)]
        return Named(Names(names), np.array(places, np.int64)), pa.string(), [names[place] for place in places]
    if kind == "texts":
        texts = [draw(st.text(max_size=3)) for _ in range(n)]
        return texts, pa.string(), texts
    if kind == "lists":
        counts = [draw(st.integers(0, 3)) for _ in range(n)]
        values_of, type_, shown = draw(columns(sum(counts), depth - 1))
        offsets = offsets_of(counts)
        rows = [shown[offsets[i] : offsets[i + 1]] for i in range(n)]
        return Lists(values_of, offsets), pa.list_(type_), rows
    fields = {name: draw(columns(n, depth - 1)) for name in draw(st.sampled_from(["a", "ab", "abc"]))}
    rows = [{name: its[2][i] for name, its in fields.items()} for i in range(n)]
    return (
        {name: its[0] for name, its in fields.items()},
        pa.struct([(name, its[1]) for name, its in fields.items()]),
        rows,
    )


@given(st.integers(0, 4).flatmap(columns))
def test_tables_and_answers_hold_the_same(case: tuple[Column, pa.DataType, list[Any]]) -> None:
    column, type_, rows = case
    array = arrow_of(column, type_)
    array.validate(full=True)
    assert array.type == type_
    assert array.to_pylist() == rows_of(column) == rows
    shown = repr(rows_of(column))  # equal, but of another kind: True is 1, and NumPy's numbers are no JSON
    assert "np." not in shown
    assert "True" not in shown


def test_single_precision_is_the_same_number_in_both() -> None:
    column = {"score": np.array([0.1, 1 / 3], np.float32)}
    rows = rows_of(column)
    assert rows == arrow_of(column, pa.struct([("score", pa.float32())])).to_pylist()
    assert rows != [{"score": 0.1}, {"score": 1 / 3}]


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (np.zeros(1), pa.float32()),
        (Lists(np.zeros(1, np.float32), np.array([0, 1])), pa.list_(pa.int32())),
        (np.zeros((1, 2), np.float32), pa.list_(pa.float16(), 2)),
        (Named(Names(["x"]), np.array([0])), pa.int32()),
    ],
)
def test_values_of_another_type_are_no_column(column: Column, type_: pa.DataType) -> None:
    """Converted in silence, a table's would differ from an answer's."""
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        arrow_of({"a": column}, pa.struct([("a", type_)]))
