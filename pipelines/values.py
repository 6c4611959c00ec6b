"""A record's values in, what a block holds of them out, and for each that does not fit the reason why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timezone
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.jsonl import is_unicode, json_kind

Reasons = list["str | None"]  # why each value or row failed, None where it did not

MISSING = object()
"""Stands for the value of a record that has no such field."""


def checked_texts(values: Sequence[Any], name: str) -> tuple[list[str | None], Reasons]:
    """Texts, and for each value that is none the reason why."""
    pairs = [_checked_text(value, name) for value in values]
    return [text for text, _ in pairs], [reason for _, reason in pairs]


def checked_lists(values: Sequence[Any], name: str) -> tuple[list[list[str] | None], Reasons]:
    """Lists of texts, at least one in each, and for each value that is none the reason why."""
    pairs = [_checked_list(value, name) for value in values]
    return [texts for texts, _ in pairs], [reason for _, reason in pairs]


def joined(reasons: Sequence[Reasons]) -> Reasons:
    """All reasons of each row, which several checks have found, as one."""
    return ["; ".join(filter(None, row)) or None for row in zip(*reasons, strict=True)]


def first_of(reasons: Reasons, others: Reasons) -> Reasons:
    """For each value the reason that one check has found, else that of another."""
    return [one or other for one, other in zip(reasons, others, strict=True)]


def _checked_list(value: Any, name: str) -> tuple[list[str] | None, str | None]:
    if value is MISSING:
        return None, f"{name} is missing"
    if not isinstance(value, list):
        return None, f"{name} is null" if value is None else f"{name} is {json_kind(value)}, not a list of strings"
    if not value:
        return None, f"{name} is empty"
    texts, reasons = checked_texts(value, name)
    reason = next((f"item {place} of {reason}" for place, reason in enumerate(reasons) if reason), None)
    return (None, reason) if reason else (cast("list[str]", texts), None)


def _checked_text(value: Any, name: str) -> tuple[str | None, str | None]:
    if value is MISSING:
        return None, f"{name} is missing"
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8"), None
        except UnicodeDecodeError as error:
            return None, f"{name} is not UTF-8: byte 0x{value[error.start]:02x} at {error.start}"
    if not isinstance(value, str):
        return None, f"{name} is null" if value is None else f"{name} is {json_kind(value)}, not a string"
    if not is_unicode(value):
        return None, f"{name} holds half of a surrogate pair, which is no character"
    return value, None


def record_id(value: Any, place: str) -> str:
    """A text or whole number as an id, and bytes that are no text in hex; anything else is told by its place."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, float) and value.is_integer():  # whole numbers with nulls between them, as pandas writes them
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and is_unicode(value) else place


def is_string(type_: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return any(is_(type_) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


# --- kept values --------------------------------------------------------------------------------------


def kept_type(type_: pa.DataType) -> pa.DataType:
    """The type of a kept column for that in a shard: a field that is required there is null in a record that failed.

    Strings and bytes are as Arrow's kernels take them, which know few views yet, and dictionaries are decoded: those of
    several shards may have no index in common.
    """
    types = pa.types
    if types.is_dictionary(type_):
        return kept_type(type_.value_type)
    if types.is_string_view(type_) or types.is_binary_view(type_):
        return pa.string() if types.is_string_view(type_) else pa.binary()
    return _with_inner(type_, kept_type)


def told_type(type_: pa.DataType) -> pa.DataType:
    """The type with strings in place of nulls alone, which say nothing of what later shards hold there."""
    return pa.string() if pa.types.is_null(type_) else _with_inner(type_, told_type)


def _with_inner(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with changed types within it, if it is nested; all of its fields may be null."""

    def changed(f: pa.Field) -> pa.Field:
        return f.with_type(change(f.type)).with_nullable(True)

    types = pa.types
    if types.is_struct(type_):
        return pa.struct([changed(f) for f in type_])
    if types.is_map(type_):
        return pa.map_(change(type_.key_type), change(type_.item_type))
    if types.is_list(type_) or types.is_large_list(type_):
        make = pa.list_ if types.is_list(type_) else pa.large_list
        return make(changed(type_.value_field))
    if types.is_fixed_size_list(type_):
        return pa.list_(changed(type_.value_field), type_.list_size)
    return type_


def kept_column(column: pa.Array, f: pa.Field) -> tuple[pa.Array, Reasons]:
    """The column in the kept type, and for each value that does not fit the reason why."""
    try:
        return _cast(column, f.type), [None] * len(column)
    except _MISFITS:
        values, unshown = shown(column, f.name)
    array, misfits = kept_array(values, f)
    return array, first_of(unshown, misfits)


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """The column in another type, or an error of Arrow's, which drops fields and takes numbers for times in silence."""
    if pa.types.is_nested(column.type):
        column.validate(full=True)  # texts in it may be none
    if column.type != type_:
        column = column.cast(kept_type(column.type))
    if column.type == type_:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), type_)
    array = column.cast(type_)
    means_another = _mean_others(column.type, type_)
    are_floats = pa.types.is_floating(type_) and pa.types.is_floating(column.type)
    overflows = are_floats and not pc.is_finite(array).equals(pc.is_finite(column))
    if means_another or overflows or (pa.types.is_nested(type_) and not array.cast(column.type).equals(column)):
        raise pa.ArrowInvalid(f"{column.type} does not fit into {type_}")
    return array


def _mean_others(type_: pa.DataType, other: pa.DataType) -> bool:
    """Whether one is of truth values or times where the other is neither that nor texts, in lists and structs too."""
    if is_string(other):
        return False
    pairs = zip(_inner(type_), _inner(other), strict=False)  # of other fields the way back tells
    return any(is_(type_) != is_(other) for is_ in _MEANINGS) or any(_mean_others(*pair) for pair in pairs)


def _inner(type_: pa.DataType) -> list[pa.DataType]:
    return [type_.field(i).type for i in range(type_.num_fields)] if pa.types.is_nested(type_) else []


_MEANINGS = (pa.types.is_boolean, pa.types.is_temporal)


def shown(column: pa.Array, name: str) -> tuple[list[Any], Reasons]:
    """Its values, and for each that Python has none for the reason why: a date after 9999, an unknown time zone."""
    try:
        return column.to_pylist(), [None] * len(column)
    except _MISFITS:
        pass
    pairs = [_shown_value(value, name) for value in column]
    return [value for value, _ in pairs], [reason for _, reason in pairs]


def _shown_value(value: pa.Scalar, name: str) -> tuple[Any, str | None]:
    try:
        return value.as_py(), None
    except _MISFITS:
        return None, f"{name} holds a value that Python cannot show"


def kept_array(values: Sequence[Any], f: pa.Field) -> tuple[pa.Array, Reasons]:
    """Kept values as the column's type, and for each that does not fit the reason why; objects become JSON."""
    if is_text := is_string(f.type):
        values = [_as_json(value) for value in values]
    try:
        array = _array_of(values, f.type)
        if is_text or all(map(_is_kept, values, array.to_pylist())):  # texts come whole or not at all
            return array, [None] * len(values)
    except _MISFITS:
        pass
    pairs = [_kept_value(value, f) for value in values]
    return _array_of([value for value, _ in pairs], f.type), [reason for _, reason in pairs]


def _array_of(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    if all(value is None for value in values):  # of lists of UUIDs, for one, Arrow makes no array in another way
        return pa.nulls(len(values), type_)
    return pa.array(values, type_)


_MISFITS = (ValueError, OverflowError, pa.ArrowTypeError, pa.ArrowNotImplementedError)  # ArrowInvalid is a ValueError


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, (str, bytes)):
        return value
    is_json = isinstance(value, (bool, int, float, list, tuple, dict))
    return json.dumps(value, ensure_ascii=False, default=_as_text) if is_json else _as_text(value)


def _as_text(value: Any) -> str:
    """What JSON has no type for."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _kept_value(value: Any, f: pa.Field) -> tuple[Any, str | None]:
    if value is None:
        return None, None
    try:
        found = pa.scalar(value, f.type).as_py()
        if _is_kept(value, found):
            return found, None
    except _MISFITS:
        pass
    return None, f"{f.name} holds {value!a:.40}, not {f.type}"


def _is_kept(value: Any, found: Any) -> bool:
    """Whether what the column holds is the value: Arrow cuts numbers and times in silence, and drops fields of structs.

    Floats may be rounded, as a column of shorter ones does.
    """
    if isinstance(value, dict) and isinstance(found, dict):
        return all(its is None or (name in found and _is_kept(its, found[name])) for name, its in value.items())
    if isinstance(found, list):
        its = list(value.items() if isinstance(value, dict) else value)  # an object may become a map
        return len(its) == len(found) and all(map(_is_kept, its, found))
    if isinstance(found, tuple):
        return all(map(_is_kept, value, found))
    if isinstance(value, bool) or isinstance(found, bool):
        return value is found
    if isinstance(found, float) and isinstance(value, float):
        return math.isclose(found, value, rel_tol=1e-3) or value != value
    return bool(_plain(value) == _plain(found))


def _plain(value: Any) -> Any:
    """The value as others of its meaning are, too: texts as their bytes, days as their midnights, times in UTC."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value
    return datetime.combine(value, time()) if isinstance(value, date) else value
