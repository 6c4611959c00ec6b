from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipelines.values import checked_texts, kept_array, kept_column, kept_type

NOON_IN_DELHI = dt.datetime(2026, 11, 27, 12, tzinfo=dt.timezone(dt.timedelta(hours=5.5)))


@pytest.mark.parametrize(
    ("type_", "fits", "misfits"),
    [
        (pa.int64(), [10, 1.0, None, -1], [10.75, True, Decimal("1.5")]),
        (pa.bool_(), [True, None], [1, 0]),
        (pa.float64(), [0.5, 3, math.nan], [True, 2**53 + 1]),
        (pa.float32(), [0.1, 3], [1e300]),
        (pa.timestamp("us"), [dt.datetime(2026, 11, 27, 1, 2, 3, 4), NOON_IN_DELHI], [1_700_000_000, 0.5]),
        (
            pa.timestamp("s", "UTC"),
            [dt.datetime(2026, 11, 27, tzinfo=dt.timezone.utc)],
            [dt.datetime(2026, 11, 27, 1, 2, 3, 4)],
        ),
        (pa.date32(), [dt.date(2026, 11, 27), dt.datetime(2026, 11, 27)], [dt.datetime(2026, 11, 27, 1)]),
        (pa.list_(pa.list_(pa.int64())), [[[1], None, []]], [[[1.5]]]),
        (pa.struct([("a", pa.int64())]), [{"a": 1}, {}, {"a": None}], [{"a": 1.5}, {"a": 1, "b": 2}]),
        (pa.map_(pa.string(), pa.int64()), [{"a": 1}, [("b", 2)]], [{"a": 1.5}]),
        (pa.binary(), [b"\xff", "text"], [1]),
        (pa.string(), [b"text", "text", 1.5, {"a": [1]}], [b"\xff"]),
    ],
    ids=str,
)
def test_a_kept_value_is_kept_whole_or_is_its_records_error(
    type_: pa.DataType, fits: list[Any], misfits: list[Any]
) -> None:
    array, reasons = kept_array(fits, pa.field("c", type_))
    assert reasons == [None] * len(fits)
    assert [value is None for value in array.to_pylist()] == [value is None for value in fits]
    for value in misfits:
        array, reasons = kept_array([*fits, value], pa.field("c", type_))
        assert reasons == [None] * len(fits) + [f"c holds {value!a:.40}, not {type_}"]
        assert array[-1].as_py() is None


@pytest.mark.parametrize(
    "of",
    [
        pa.list_,
        pa.large_list,
        lambda type_: pa.list_(type_, 2),
        lambda type_: pa.map_(pa.string(), type_),
        lambda type_: pa.struct([("x", type_)]),
    ],
    ids=["list", "large list", "list of fixed size", "map", "struct"],
)
def test_every_field_of_a_kept_type_may_be_null(of: Callable[[pa.DataType], pa.DataType]) -> None:
    required = pa.struct([pa.field("a", pa.list_(pa.field("b", pa.int8(), nullable=False)), nullable=False)])
    assert kept_type(of(required)) == of(pa.struct([("a", pa.list_(pa.field("b", pa.int8())))])) != of(required)


def test_a_text_column_of_another_type_fails_record_by_record() -> None:
    values = [dt.datetime(2026, 11, 27), dt.date(2026, 11, 27), Decimal("1.5"), 5]
    kinds = ["a datetime", "a date", "a Decimal", "a number"]
    assert checked_texts(values, "text")[1] == [f"text is {kind}, not a string" for kind in kinds]


def test_texts_within_a_kept_column_are_looked_at() -> None:
    broken = pa.StructArray.from_arrays([pa.array([b"fine", b"\xff"]).view(pa.string())], names=["x"])
    array, reasons = kept_column(broken, pa.field("c", broken.type))
    assert array.to_pylist() == [{"x": "fine"}, None]
    assert reasons == [None, "c holds a value that Python cannot show"]


def test_a_number_beyond_the_kept_type_is_an_error() -> None:
    array, reasons = kept_column(pa.array([1.5, 1e300, math.inf, None]), pa.field("c", pa.float32()))
    assert array.to_pylist() == [1.5, None, math.inf, None]
    assert reasons == [None, "c holds 1e+300, not float", None, None]


@pytest.mark.parametrize("values", [["1.5", None], [Decimal("1.5"), None], [1, None]], ids=str)
def test_what_arrow_takes_for_numbers_is_kept_as_numbers(values: list[Any]) -> None:
    array, reasons = kept_column(pa.array(values), pa.field("c", pa.float64()))
    assert array.to_pylist() == [float(values[0]), None]
    assert reasons == [None, None]


@pytest.mark.parametrize(
    ("column", "kept", "fits"),
    [
        (pa.array([[1, 2]]), pa.list_(pa.timestamp("s")), False),
        (pa.array([{"a": True}]), pa.struct([("a", pa.int64())]), False),
        (pa.array([[("k", True)]], pa.map_(pa.string(), pa.bool_())), pa.map_(pa.string(), pa.int8()), False),
        (pa.array([[1, 2]]), pa.list_(pa.int8()), True),
        (pa.array([{"a": dt.date(2026, 11, 29)}]), pa.struct([("a", pa.string())]), True),
        (pa.array([{"b": 1, "a": True}]), pa.struct([("a", pa.bool_()), ("b", pa.int64())]), True),
    ],
    ids=str,
)
def test_numbers_within_a_value_are_no_times_and_no_truth(column: pa.Array, kept: pa.DataType, fits: bool) -> None:
    array, reasons = kept_column(column, pa.field("c", kept))
    assert [reason is None for reason in reasons] == [array.null_count == 0] == [fits]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()], ids=str)
def test_values_of_all_kinds_become_texts(type_: pa.DataType) -> None:
    array, reasons = kept_array([5, True, [1, "a"], {"x": None}, "text", None], pa.field("c", type_))
    assert array.to_pylist() == ["5", "true", '[1, "a"]', '{"x": null}', "text", None]
    assert reasons == [None] * 6


def test_what_json_has_no_type_for_is_kept_as_its_text() -> None:
    name = uuid.UUID(int=5)
    array, reasons = kept_array([name, "text", {"id": name}], pa.field("c", pa.string()))
    assert array.to_pylist() == [str(name), "text", f'{{"id": "{name}"}}']
    assert reasons == [None] * 3
