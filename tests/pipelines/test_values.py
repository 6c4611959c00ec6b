from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipelines.values import kept_array


@pytest.mark.parametrize(
    ("type_", "fits", "misfits"),
    [
        (pa.int64(), [10, 1.0, None, -1], [10.75, True, Decimal("1.5")]),
        (pa.bool_(), [True, None], [1, 0]),
        (pa.float64(), [0.5, 3, math.nan], [True, 2**53 + 1]),
        (pa.float32(), [0.1, 3], [1e300]),
        (pa.timestamp("us"), [dt.datetime(2026, 11, 27, 1, 2, 3, 4)], [1_700_000_000, 0.5]),
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
