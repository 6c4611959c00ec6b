"""A task in, one Arrow block a unit out; a record that cannot be read becomes a row with an error.

The block: ``id``, the kept columns, one column a text or list of texts that the heads read, and ``error`` (null where
all is well).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from convbert.stores import change_mark, file_info, reason
from pipelines.envelope import Envelope
from pipelines.errors import LOST_REST, SourceError, StoreError
from pipelines.inspect import is_damage, is_id, is_list, open_parquet
from pipelines.jsonl import LineError, compression_of, lines, parse
from pipelines.units import MAX_UNIT_BYTES, Shard, Stream, Task, Unit
from pipelines.values import (
    MISSING,
    Reasons,
    checked_lists,
    checked_texts,
    first_of,
    is_string,
    joined,
    kept_array,
    kept_column,
    record_id,
    shown,
)

MOST_SMALL_ROWS = 1 << 20  # of a small shard, whose footer nobody has checked
MOST_SMALL_BYTES = 4 * MAX_UNIT_BYTES  # of a unit of small shards, whose sizes do not say what they unpack to
_BATCH_ROWS = 8192
_BATCH_BYTES = 1 << 24
_UUID_BYTES = 16


@dataclass(frozen=True)
class Columns:
    """What a job takes from each record.

    Attributes:
        texts: columns that hold text.
        lists: columns that hold a list of texts.
        id: column of the record's id, which need not be there.
        kept: columns to copy, with their types.
    """

    texts: tuple[str, ...]
    id: str
    kept: pa.Schema
    lists: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys([*self.texts, *self.lists, self.id, *self.kept.names]))

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
        n_bytes = 0
        for shard in unit.shards:
            with unchanged(shard):
                for block in _blocks(shard, unit.start, unit.stop, columns):
                    blocks.append(block)
                    n_bytes += block.nbytes - block["id"].nbytes - block["error"].nbytes  # which no shard need hold
                    if unit.stop is None and n_bytes > MOST_SMALL_BYTES:
                        raise SourceError(
                            f"{shard.name} has {shard.size:,} bytes, but its unit of small shards more than "
                            f"{MOST_SMALL_BYTES:,} once it is read: unpack it, or lower --unit-rows, so that it is cut"
                        )
        yield _envelope(unit.name, blocks, columns)


def read_unit(unit: Unit, columns: Columns) -> pa.Table:
    """All records of a unit, in their order."""
    return next(read((unit,), columns)).block


def ids_of(shard: Shard, id_column: str) -> Iterator[str]:
    """The ids of all records of a shard in their order, with a bounded number of records in memory."""
    stop = None
    if shard.is_parquet:  # without its number of rows it would be taken for a small shard, whose rows are limited
        with open_parquet(shard) as file:
            stop = file.metadata.num_rows
    with unchanged(shard):
        for block in _blocks(shard, 0, stop, Columns(texts=(), id=id_column, kept=pa.schema([]))):
            yield from block["id"].to_pylist()


def _envelope(name: str, blocks: list[pa.Table], columns: Columns, *, is_last: bool = True) -> Envelope:
    block = pa.concat_tables(blocks) if blocks else _failed([], [], columns)
    return Envelope(name, len(block), is_last, block)


def _blocks(shard: Shard, start: int, stop: int | None, columns: Columns) -> Iterator[pa.Table]:
    if shard.is_parquet:
        return _parquet_blocks(shard, start, stop, columns)
    return _jsonl_blocks(_lines(shard, start, stop), shard, columns)


def _checked(envelopes: Iterator[Envelope], shard: Shard) -> Iterator[Envelope]:
    """The envelopes, each handed on only if the shard is still in the version that was planned with."""
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
        "error": pa.array(joined(reasons), pa.string()),
    }
    return pa.table(arrays)


def _failed(ids: list[str], reasons: Reasons, columns: Columns) -> pa.Table:
    """Rows that are nothing but an error."""
    empty = [None] * len(ids)
    kept = [pa.nulls(len(ids), f.type) for f in columns.kept]
    return _block(ids, dict.fromkeys([*columns.texts, *columns.lists], empty), kept, [reasons], columns)


# --- JSON lines ---------------------------------------------------------------------------------------


_Line = tuple[int, "bytes | str"]  # its offset, and its bytes, or a text that says why nothing can be read there


def _jsonl_blocks(lines: Iterator[_Line], shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    """What the lines hold, a few at a time: as objects of Python they take many times the memory."""
    while piece := _take(lines, _BATCH_ROWS, _BATCH_BYTES):
        yield _jsonl_block(piece, shard, columns)


def _jsonl_block(lines: Iterable[_Line], shard: Shard, columns: Columns) -> pa.Table:
    base = shard.name
    ids: list[str] = []
    records: list[dict[str, Any]] = []
    broken: Reasons = []
    for offset, line in lines:
        record, reason = _record(line)
        ids.append(record_id(record.get(columns.id), f"{base}@{offset}"))
        records.append(record)
        broken.append(reason)
    texts, reasons = {}, [broken]
    for name, checked in columns.checks():
        texts[name], why = checked([record.get(name, MISSING) for record in records], name)
        reasons.append([None if first else second for first, second in zip(broken, why, strict=True)])
    kept = []
    for f in columns.kept:
        array, why = kept_array([record.get(f.name) for record in records], f)
        kept.append(array)
        reasons.append(why)
    return _block(ids, texts, kept, reasons, columns)


def _record(line: bytes | str) -> tuple[dict[str, Any], str | None]:
    if isinstance(line, str):
        return {}, line
    try:
        return parse(line), None
    except LineError as error:
        return {}, str(error)


def _lines(shard: Shard, start: int, stop: int | None) -> Iterator[_Line]:
    """The lines of a range of bytes; where a compressed shard is damaged, one text stands for all that follow."""
    end = start
    try:
        for offset, line in lines(shard.location, start, stop):
            end = offset + len(line)
            yield offset, line
    except OSError as error:
        if compression_of(shard.url) is None or not is_damage(error):
            raise
        yield end, f"{LOST_REST}: {error}"


def _stream(stream: Stream, columns: Columns) -> Iterator[Envelope]:
    """The units of a compressed shard that have no part yet."""
    lines = _lines(stream.shard, 0, None)
    following = _take(lines, stream.unit_rows, stream.most_bytes)
    for number in count():
        unit, following = following, _take(lines, stream.unit_rows, stream.most_bytes)
        if number not in stream.present:
            blocks = list(_jsonl_blocks(iter(unit), stream.shard, columns))
            yield _envelope(stream.name(number), blocks, columns, is_last=not following)
        if not following:
            return


def _take(lines: Iterator[_Line], n_rows: int, n_bytes: int) -> list[_Line]:
    """The next lines, at most so many, until they hold so many bytes."""
    taken: list[_Line] = []
    for line in islice(lines, n_rows):
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
                        ids = [record_id(value, f"{base}#{row + i}") for i, value in enumerate(ids)]
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
        for batch in file.iter_batches(_batch_rows(file, group), row_groups=[group], columns=present):
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


def _batch_rows(file: pq.ParquetFile, group: int) -> int:
    """Rows of a row group to read at a time: the same for whatever columns, so that damage ends at the same row."""
    rows = file.metadata.row_group(group)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows.num_rows // max(1, rows.total_byte_size)))


def _ids_alone(file: pq.ParquetFile, group: int, column: str, start: int, stop: int) -> Iterator[list[Any]]:
    """Ids of rows [start, stop) that cannot be read as a whole; None where the ids cannot be, either."""
    for batch in _slices(file, group, Columns(texts=(), id=column, kept=pa.schema([])), start, stop):
        if not isinstance(batch, str):
            yield _id_values(batch, column)
            start += len(batch)
    for first in range(start, stop, _BATCH_ROWS):
        yield [None] * min(_BATCH_ROWS, stop - first)


def _parquet_block(batch: pa.RecordBatch, places: list[str], columns: Columns) -> pa.Table:
    texts: dict[str, list[Any]] = {}
    reasons: list[Reasons] = [[None] * len(batch)]
    for name, checked in columns.checks():
        column = _only(batch, name)
        values, unshown = ([MISSING] * len(batch), reasons[0]) if column is None else shown(_as_bytes(column), name)
        texts[name], why = checked(values, name)
        reasons.append(first_of(unshown, why))
    kept = []
    for f in columns.kept:
        column = _only(batch, f.name)
        if column is None:  # as texts; a shard that was looked at is refused for it
            array, why = pa.nulls(len(batch), f.type), [f"{f.name} is missing"] * len(batch)
        else:
            array, why = kept_column(_as_bytes(column), f)
        kept.append(array)
        reasons.append(why)
    ids = [record_id(value, place) for value, place in zip(_id_values(batch, columns.id), places, strict=True)]
    return _block(ids, texts, kept, reasons, columns)


def _only(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """The column with this name; None where there is none, or more than one."""
    place = batch.schema.get_field_index(name)
    return batch.column(place) if place >= 0 else None


def _id_values(batch: pa.RecordBatch, name: str) -> list[Any]:
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
    if is_string(column.type):
        return column.cast(pa.large_binary())
    if is_list(column.type) and is_string(column.type.value_type):
        return column.cast(pa.large_list(pa.large_binary()))
    return column
