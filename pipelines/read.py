"""A task in, one Arrow block a unit out; a record that cannot be read becomes a row with an error.

The block: ``id``, the kept columns, one column a text or list of texts that the heads read, and ``error`` (null where
all is well).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from itertools import count
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from convbert.stores import change_mark, file_info, reason
from pipelines.envelope import Envelope
from pipelines.errors import SourceError, StoreError
from pipelines.inspect import is_damage, is_id, open_parquet
from pipelines.jsonl import LineError, compression_of, is_unicode, json_kind, lines, parse
from pipelines.units import Shard, Stream, Task, Unit

MOST_SMALL_ROWS = 1 << 20  # of a small shard, whose footer nobody has checked
_BATCH_ROWS = 8192
_BATCH_BYTES = 1 << 24
_UUID_BYTES = 16

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


def read(task: Task, columns: Columns) -> Iterator[Envelope]:
    """The units of a task, each with all of its records in their order."""
    if isinstance(task, Stream):
        yield from _checked(_stream(task, columns), task.shard)
    elif len(task) > 1:
        yield from _checked(_neighbours(task, columns), task[0].shards[0])
    else:
        (unit,) = task
        blocks: list[pa.Table] = []
        for shard in unit.shards:
            with unchanged(shard):
                blocks += _blocks(shard, unit.start, unit.stop, columns)
        yield _envelope(unit.name, blocks, columns)


def read_unit(unit: Unit, columns: Columns) -> pa.Table:
    """All records of a unit, in their order."""
    return next(read((unit,), columns)).block


def ids_of(shard: Shard, id_column: str) -> Iterator[str]:
    """The ids of all records of a shard in their order, with a bounded number of records in memory."""
    columns = Columns(texts=(), id=id_column, kept=pa.schema([]))
    if shard.is_parquet:
        with open_parquet(shard) as file:
            n_rows = file.metadata.num_rows
        blocks = _parquet_blocks(shard, 0, n_rows, columns)
    else:
        lines = _lines(shard, 0, None)
        blocks = (
            block
            for piece in iter(lambda: _take(lines, _BATCH_BYTES), [])
            for block in _jsonl_blocks(piece, shard, columns)
        )
    with unchanged(shard):
        for block in blocks:
            yield from block["id"].to_pylist()


def _envelope(name: str, blocks: list[pa.Table], columns: Columns, *, is_last: bool = True) -> Envelope:
    block = pa.concat_tables(blocks) if blocks else _failed([], [], columns)
    return Envelope(name, len(block), is_last, block)


def _blocks(shard: Shard, start: int, stop: int | None, columns: Columns) -> Iterator[pa.Table]:
    if shard.is_parquet:
        return _parquet_blocks(shard, start, stop, columns)
    return _jsonl_blocks(_lines(shard, start, stop), shard, columns)


def _checked(envelopes: Iterator[Envelope], shard: Shard) -> Iterator[Envelope]:
    """Each, if it was read from the planned version of the shard."""
    while True:
        with unchanged(shard):
            envelope = next(envelopes, None)
        if envelope is None:
            return
        yield envelope


def _neighbours(units: Sequence[Unit], columns: Columns) -> Iterator[Envelope]:
    """Units of one stretch of a shard."""
    rows = _blocks(units[0].shards[0], units[0].start, units[-1].stop, columns)
    for unit, its in zip(units, _cut_up(rows, units), strict=True):
        yield _envelope(unit.name, its, columns)


def _cut_up(blocks: Iterator[pa.Table], units: Sequence[Unit]) -> Iterator[list[pa.Table]]:
    """The rows of neighbouring units, which arrive in pieces of any length, by unit."""
    rest = pa.table({})
    for unit in units:
        wanted, its = unit.n_rows or 0, []
        while wanted:
            rest = rest if len(rest) else next(blocks)
            its.append(rest.slice(0, wanted))
            rest = rest.slice(len(its[-1]))
            wanted -= len(its[-1])
        yield its


@contextmanager
def unchanged(shard: Shard) -> Iterator[None]:
    """Refuse what was read of a shard that is not in the planned version any more: it may be of two.

    Raises:
        SourceError: it has changed or gone.
        StoreError: its store does not answer, or the disk on which it lies.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        _check_version(shard)  # on NFS a file that was replaced is a stale handle
        raise StoreError(f"{shard.name} cannot be read ({reason(error)}): start the same command again") from error
    except Exception:  # a shard cut off while it is read looks damaged
        _check_version(shard)
        raise
    _check_version(shard)


def _check_version(shard: Shard) -> None:
    place = shard.location
    try:
        found = file_info(place.fs, place.path)
        is_same = (int(found["size"]), change_mark(found)) == (shard.size, shard.mark)
    except FileNotFoundError:
        is_same = False
    except OSError as error:
        raise StoreError(f"{shard.name} cannot be looked up ({reason(error)}): check the rights") from error
    if not is_same:
        raise SourceError(f"{shard.name} has changed since the job was planned: start the same command again")


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


_Line = tuple[int, "bytes | str"]  # its offset, and what stands in it or why nothing can be read there


def _jsonl_blocks(lines: Iterable[_Line], shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    base = shard.name
    ids: list[str] = []
    records: list[dict[str, Any]] = []
    broken: Reasons = []
    for offset, line in lines:
        record, reason = _record(line)
        ids.append(_id(record.get(columns.id or ""), f"{base}@{offset}"))
        records.append(record)
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


def _record(line: bytes | str) -> tuple[dict[str, Any], str | None]:
    if isinstance(line, str):
        return {}, line
    try:
        return parse(line), None
    except LineError as error:
        return {}, str(error)


def _lines(shard: Shard, start: int, stop: int | None) -> Iterator[_Line]:
    end = start
    try:
        for offset, line in lines(shard.location, start, stop):
            end = offset + len(line)
            yield offset, line
    except OSError as error:
        if compression_of(shard.url) is None or not is_damage(error):
            raise
        yield end, f"the rest of the shard cannot be decompressed: {error}"


def _stream(stream: Stream, columns: Columns) -> Iterator[Envelope]:
    """The units of a compressed shard that have no part yet."""
    lines = _lines(stream.shard, 0, None)
    following = _take(lines, stream.unit_bytes)
    for number in count():
        unit, following = following, _take(lines, stream.unit_bytes)
        if number not in stream.present:
            blocks = list(_jsonl_blocks(unit, stream.shard, columns))
            yield _envelope(stream.name(number), blocks, columns, is_last=not following)
        if not following:
            return


def _take(lines: Iterator[_Line], n_bytes: int) -> list[_Line]:
    """The next lines, until they hold so many bytes."""
    taken: list[_Line] = []
    for line in lines:
        taken.append(line)
        n_bytes -= len(line[1]) + 1
        if n_bytes <= 0:
            break
    return taken


# --- Parquet ------------------------------------------------------------------------------------------


def _parquet_blocks(shard: Shard, start: int, stop: int | None, columns: Columns) -> Iterator[pa.Table]:
    """Rows [start, stop); where a row group is damaged, an error for each of its rows that is left."""
    base = shard.name
    with open_parquet(shard) as file:
        if stop is None:
            stop = file.metadata.num_rows
            if stop > MOST_SMALL_ROWS:
                raise SourceError(
                    f"{base} has {shard.size:,} bytes and claims {stop:,} rows: it is damaged, leave it out of --input"
                )
        group_start = 0
        for group in range(file.metadata.num_row_groups):
            group_stop = group_start + file.metadata.row_group(group).num_rows
            row, last = max(group_start, start), min(group_stop, stop)
            for batch in _slices(file, group, columns, row - group_start, last - group_start):
                if isinstance(batch, str):
                    for ids in _ids_alone(file, group, columns.id, row - group_start, last - group_start):
                        ids = [_id(value, f"{base}#{row + i}") for i, value in enumerate(ids)]
                        yield _failed(ids, [batch] * len(ids), columns)
                        row += len(ids)
                else:
                    yield _parquet_block(batch, [f"{base}#{row + i}" for i in range(len(batch))], columns)
                    row += len(batch)
            group_start = group_stop


def _slices(
    file: pq.ParquetFile, group: int, columns: Columns, start: int, stop: int
) -> Iterator[pa.RecordBatch | str]:
    """Rows [start, stop) of a row group, a few at a time; where not all can be read, at last why."""
    if start >= stop:
        return
    present = [name for name in columns.names if name in file.schema_arrow.names]
    position = 0
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=present):
            first, last = max(start - position, 0), min(stop - position, len(batch))
            if first < last:
                yield batch.slice(first, last - first)
            position += len(batch)
            if position >= stop:
                return
        yield f"row group {group} of the shard ends before this row, which its footer counts"
    except (OSError, pa.ArrowException) as error:
        if not is_damage(error):
            raise
        yield f"row group {group} of the shard cannot be read: {error}"


def _ids_alone(file: pq.ParquetFile, group: int, column: str | None, start: int, stop: int) -> Iterator[list[Any]]:
    """Ids of rows [start, stop) that cannot be read as a whole; None where the ids cannot be, either."""
    if column is not None:
        for batch in _slices(file, group, Columns(texts=(), id=column, kept=pa.schema([])), start, stop):
            if not isinstance(batch, str):
                yield _id_values(batch, column)
                start += len(batch)
    for first in range(start, stop, _BATCH_ROWS):
        yield [None] * min(_BATCH_ROWS, stop - first)


def _parquet_block(batch: pa.RecordBatch, places: list[str], columns: Columns) -> pa.Table:
    def values(name: str | None, default: Any = None) -> list[Any]:
        column = _only(batch, name)
        return [default] * len(batch) if column is None else _as_bytes(column).to_pylist()

    texts: dict[str, list[Any]] = {}
    reasons: list[Reasons] = [[None] * len(batch)]
    for name, checked in columns.checks():
        texts[name], why = checked(values(name, _MISSING), name)
        reasons.append(why)
    kept = []
    for f in columns.kept:
        column = _only(batch, f.name)
        if column is None:
            array, why = pa.nulls(len(batch), f.type), [None] * len(batch)
        else:
            array, why = _kept_column(_as_bytes(column), f)
        kept.append(array)
        reasons.append(why)
    ids = [_id(value, place) for value, place in zip(_id_values(batch, columns.id), places, strict=True)]
    return _block(ids, texts, kept, reasons, columns)


def _only(batch: pa.RecordBatch, name: str | None) -> pa.Array | None:
    """The column with this name; None where there is none, or more than one."""
    place = batch.schema.get_field_index(name or "")
    return batch.column(place) if place >= 0 else None


def _kept_column(column: pa.Array, f: pa.Field) -> tuple[pa.Array, Reasons]:
    """The column in the kept type, and for each value that does not fit the reason why."""
    try:
        return _cast(column, f.type), [None] * len(column)
    except _MISFITS:
        values, unshown = _shown(column, f.name)
    array, misfits = kept_array(values, f)
    return array, [first or second for first, second in zip(unshown, misfits, strict=True)]


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """The column in another type, or an error of Arrow's, which drops fields and takes numbers for times in silence."""
    if column.type == type_:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), type_)
    array = column.cast(type_)
    means_another = not _is_string(type_) and any(is_(type_) != is_(column.type) for is_ in _MEANINGS)
    if means_another or (pa.types.is_nested(type_) and not array.cast(column.type).equals(column)):
        raise pa.ArrowInvalid(f"{column.type} does not fit into {type_}")
    return array


_MEANINGS = (pa.types.is_boolean, pa.types.is_temporal)


def _shown(column: pa.Array, name: str) -> tuple[list[Any], Reasons]:
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


def _id_values(batch: pa.RecordBatch, name: str | None) -> list[Any]:
    """UUIDs in hex; decimals, dates, timestamps as Arrow writes them; bytes and numbers as they are; else nothing."""
    column = _only(batch, name)
    if column is None or not is_id(column.type):
        return [None] * len(batch)
    column = _as_bytes(column.storage if isinstance(column, pa.ExtensionArray) else column)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit))  # in UTC, without the name of a zone, which may be none
    if any(is_(column.type) for is_ in (pa.types.is_decimal, pa.types.is_date, pa.types.is_timestamp)):
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    if column.type == pa.binary(_UUID_BYTES):  # some of them happen to be UTF-8
        return [None if value is None else value.hex() for value in values]
    return values


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


def kept_array(values: Sequence[Any], f: pa.Field) -> tuple[pa.Array, Reasons]:
    """Kept values as the column's type, and for each that does not fit the reason why; objects become JSON."""
    if is_text := pa.types.is_string(f.type):
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
    return (
        value
        if value is None or isinstance(value, (str, bytes))
        else json.dumps(value, ensure_ascii=False, default=_as_text)
    )


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
