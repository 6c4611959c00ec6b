"""A unit in, one Arrow block out; a record that cannot be read becomes a row with an error.

The block: ``id``, the kept columns, one column a text or list of texts that the heads read, ``error`` (null where
all is well), and the waybill that says which part the rows become.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.inspect import open_parquet
from pipelines.jsonl import LineError, is_unicode, json_kind, lines, parse
from pipelines.storage import redacted
from pipelines.units import Unit

WAYBILL = "__unit"
NO_RECORDS = "this unit has no records"
_BATCH_ROWS = 8192

Reasons = list["str | None"]  # why each row failed, None where it did not


@dataclass(frozen=True)
class Columns:
    """What a job takes from each record.

    Attributes:
        texts: columns that hold text.
        lists: columns that hold a list of texts.
        id: column of the record's id, or None.
        kept: columns to copy, with their types.
    """

    texts: tuple[str, ...]
    id: str | None
    kept: pa.Schema
    lists: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys([*self.texts, *self.lists, *([self.id] if self.id else []), *self.kept.names]))

    def checks(self) -> Iterator[tuple[str, Callable[[Sequence[Any], str], tuple[list[Any], Reasons]]]]:
        """Every column that a head reads, and what makes its values out of what the shard holds."""
        yield from ((name, checked_texts) for name in self.texts)
        yield from ((name, checked_lists) for name in self.lists)


def text_name(column: str) -> str:
    """What a column with texts is called in the block."""
    return f"__text_{column}"


def read_unit(unit: Unit, columns: Columns) -> pa.Table:
    """All records of a unit, in their order; a unit without records is one marked row."""
    blocks = list(_parquet_blocks(unit, columns) if unit.shard.is_parquet else _jsonl_blocks(unit, columns))
    block = pa.concat_tables(blocks) if blocks else _failed([""], [NO_RECORDS], columns)
    waybill = json.dumps({"part": unit.name, "rows": len(block) if blocks else 0})
    sent = pa.DictionaryArray.from_arrays(pa.array([0] * len(block), pa.int32()), pa.array([waybill]))
    return block.append_column(WAYBILL, sent)


def _block(
    ids: list[str], texts: dict[str, list[Any]], kept: Sequence[pa.Array], reasons: Sequence[Reasons], columns: Columns
) -> pa.Table:
    arrays = {
        "id": pa.array(ids, pa.string()),
        **dict(zip(columns.kept.names, kept, strict=True)),
        **{
            text_name(name): pa.array(
                values, pa.large_list(pa.large_string()) if name in columns.lists else pa.large_string()
            )
            for name, values in texts.items()
        },
        "error": pa.array([_joined(row) for row in zip(*reasons, strict=True)], pa.string()),
    }
    return pa.table(arrays)


def _joined(reasons: Sequence[str | None]) -> str | None:
    return "; ".join(reason for reason in reasons if reason) or None


def _failed(ids: list[str], reasons: Reasons, columns: Columns) -> pa.Table:
    """Rows that are nothing but an error."""
    empty = [None] * len(ids)
    kept = [pa.nulls(len(ids), f.type) for f in columns.kept]
    return _block(ids, dict.fromkeys([*columns.texts, *columns.lists], empty), kept, [reasons], columns)


# --- JSON lines ---------------------------------------------------------------------------------------


def _jsonl_blocks(unit: Unit, columns: Columns) -> Iterator[pa.Table]:
    ids: list[str] = []
    records: list[dict[str, Any]] = []
    broken: Reasons = []
    for place, record in _jsonl_records(unit):
        reason = record if isinstance(record, str) else None
        values = {} if isinstance(record, str) else record
        ids.append(_id(values.get(columns.id or ""), place))
        records.append(values)
        broken.append(reason)
    if not ids:
        return
    texts, reasons = {}, [broken]
    for name, checked in columns.checks():
        texts[name], why = checked([record.get(name, _MISSING) for record in records], name)
        reasons.append([None if first else second for first, second in zip(broken, why, strict=True)])
    kept = []
    for f in columns.kept:
        array, why = kept_array([record.get(f.name) for record in records], f)
        kept.append(array)
        reasons.append(why)
    yield _block(ids, texts, kept, reasons, columns)


def _jsonl_records(unit: Unit) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each line's place, and its record or the reason why it has none."""
    base = redacted(unit.shard.url)
    end = unit.start
    try:
        for offset, line in lines(unit.shard.location, unit.start, unit.stop):
            end = offset + len(line)
            try:
                yield f"{base}@{offset}", parse(line)
            except LineError as error:
                yield f"{base}@{offset}", str(error)
    except OSError as error:
        if unit.stop is not None:  # not a compressed stream: the store failed, not the data
            raise
        yield f"{base}@{end}", f"the rest of the shard cannot be decompressed: {error}"


# --- Parquet ------------------------------------------------------------------------------------------


def _parquet_blocks(unit: Unit, columns: Columns) -> Iterator[pa.Table]:
    """The unit's rows; where a row group is damaged, an error for each of its rows that is left."""
    base = redacted(unit.shard.url)
    assert unit.stop is not None  # a Parquet unit is a range of rows
    with open_parquet(unit.shard) as file:
        group_start = 0
        for group in range(file.metadata.num_row_groups):
            group_stop = group_start + file.metadata.row_group(group).num_rows
            row, last = max(group_start, unit.start), min(group_stop, unit.stop)
            try:
                for batch in _slices(file, group, columns, row - group_start, last - group_start):
                    yield _parquet_block(batch, [f"{base}#{row + i}" for i in range(len(batch))], columns)
                    row += len(batch)
                reason = f"row group {group} of the shard ends before this row, which its footer counts"
            except (OSError, pa.ArrowException) as error:
                reason = f"row group {group} of the shard cannot be read: {error}"
            if row < last:
                yield _failed([f"{base}#{i}" for i in range(row, last)], [reason] * (last - row), columns)
            group_start = group_stop


def _slices(file: pq.ParquetFile, group: int, columns: Columns, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a row group, a few at a time."""
    if start >= stop:
        return
    present = [name for name in columns.names if name in file.schema_arrow.names]
    position = 0
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=present):
        first, last = max(start - position, 0), min(stop - position, len(batch))
        if first < last:
            yield batch.slice(first, last - first)
        position += len(batch)
        if position >= stop:
            return


def _parquet_block(batch: pa.RecordBatch, places: list[str], columns: Columns) -> pa.Table:
    def values(name: str | None) -> list[Any]:
        return _as_bytes(batch.column(name)).to_pylist() if name in batch.schema.names else [None] * len(batch)

    texts: dict[str, list[Any]] = {}
    reasons: list[Reasons] = [[None] * len(batch)]
    for name, checked in columns.checks():
        texts[name], why = checked(values(name), name)
        reasons.append(why)
    kept = []
    for f in columns.kept:
        try:
            array, why = _as_bytes(batch.column(f.name)).cast(f.type), [None] * len(batch)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):
            array, why = kept_array(values(f.name), f)
        kept.append(array)
        reasons.append(why)
    ids = [_id(value, place) for value, place in zip(values(columns.id), places, strict=True)]
    return _block(ids, texts, kept, reasons, columns)


def _as_bytes(column: pa.Array) -> pa.Array:
    """Dictionaries decoded, and strings as the bytes they are: nobody has checked that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_string(column.type):
        return column.cast(pa.large_binary())
    if _is_list(column.type) and _is_string(column.type.value_type):
        return column.cast(pa.large_list(pa.large_binary()))
    return column


def _is_string(type_: pa.DataType) -> bool:
    return any(is_(type_) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_list(type_: pa.DataType) -> bool:
    return any(is_(type_) for is_ in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


# --- values -------------------------------------------------------------------------------------------

_MISSING = object()


def checked_texts(values: Sequence[Any], name: str) -> tuple[list[str | None], Reasons]:
    """Texts, and for each value that is none the reason why."""
    pairs = [_checked_text(value, name) for value in values]
    return [text for text, _ in pairs], [reason for _, reason in pairs]


def checked_lists(values: Sequence[Any], name: str) -> tuple[list[list[str] | None], Reasons]:
    """Lists of texts, at least one in each, and for each value that is none the reason why."""
    pairs = [_checked_list(value, name) for value in values]
    return [texts for texts, _ in pairs], [reason for _, reason in pairs]


def _checked_list(value: Any, name: str) -> tuple[list[str] | None, str | None]:
    if value is _MISSING:
        return None, f"{name} is missing"
    if not isinstance(value, list):
        return None, f"{name} is null" if value is None else f"{name} is {json_kind(value)}, not a list of strings"
    if not value:
        return None, f"{name} is empty"
    texts, reasons = checked_texts(value, name)
    reason = next((f"item {place} of {reason}" for place, reason in enumerate(reasons) if reason), None)
    return (None, reason) if reason else (cast("list[str]", texts), None)


def _checked_text(value: Any, name: str) -> tuple[str | None, str | None]:
    if value is _MISSING:
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


def _id(value: Any, place: str) -> str:
    """A string or whole number as an id; anything else is told by its place."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and is_unicode(value) else place


def kept_array(values: Sequence[Any], f: pa.Field) -> tuple[pa.Array, Reasons]:
    """Kept values as the column's type, and for each that does not fit the reason why; objects become JSON."""
    if pa.types.is_string(f.type):
        values = [_as_json(value) for value in values]
    try:
        return pa.array(values, f.type), [None] * len(values)
    except _MISFITS:
        pairs = [_kept_value(value, f) for value in values]
        return pa.array([value for value, _ in pairs], f.type), [reason for _, reason in pairs]


_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)


def _as_json(value: Any) -> Any:
    return (
        value
        if value is None or isinstance(value, (str, bytes))
        else json.dumps(value, ensure_ascii=False, default=str)
    )


def _kept_value(value: Any, f: pa.Field) -> tuple[Any, str | None]:
    try:
        return pa.scalar(value, f.type).as_py(), None
    except _MISFITS:
        return None, f"{f.name} holds {value!a:.40}, not {f.type}"
