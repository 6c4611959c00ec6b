"""Shards in, what must be known before work starts out: where to cut each, and which columns it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from convbert.stores import reason
from pipelines.errors import SourceError, StoreError
from pipelines.jsonl import LineError, compression_of, is_unicode, parse, sample_lines, some_of, survey
from pipelines.storage import many_at_a_time, open_input
from pipelines.units import MAX_UNIT_BYTES, Range, Shard, Stream, Task, byte_ranges, row_ranges, stretches, units_of
from pipelines.values import is_string, kept_type, told_type

_COLUMN_BYTES = 8 << 20  # of a column that are read at a time
MOST_UNITS = 100_000  # of a shard: a footer may claim any number of rows


@dataclass(frozen=True)
class Inspection:
    """What a shard's footer or first lines tell.

    Attributes:
        shard: the file.
        stretches: where it is cut into units, by what is read in one go; none for an empty shard.
        schema: columns of a Parquet file, or those seen in the first lines; None where no record was seen.
        unit_rows, unit_bytes: of a shard that can only be streamed: rows of a unit, and its plain bytes, about.
    """

    shard: Shard
    stretches: list[list[Range]]
    schema: pa.Schema | None
    unit_rows: int = 0
    unit_bytes: int | None = None

    def tasks(self, stem: str) -> list[Task]:
        """What reads the shard, for parts whose names begin with the stem."""
        if self.unit_bytes:
            return [Stream(self.shard, stem, self.unit_rows, self.unit_bytes)]
        return units_of(self.shard, stem, self.stretches)


def inspect(shards: Iterable[Shard], *, unit_rows: int) -> list[Inspection]:
    """Read each Parquet footer and the first lines of each JSONL shard, many at a time.

    Raises:
        SourceError: a shard that cannot be read, named.
        StoreError: its store does not answer, or the disk on which it lies.
    """
    return many_at_a_time(lambda shard: _inspect(shard, unit_rows), shards)


def _inspect(shard: Shard, unit_rows: int) -> Inspection:
    if shard.size == 0:
        return Inspection(shard, [], None)
    return _inspect_parquet(shard, unit_rows) if shard.is_parquet else _inspect_jsonl(shard, unit_rows)


def _inspect_parquet(shard: Shard, unit_rows: int) -> Inspection:
    with open_parquet(shard) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        mean_rows = (group.total_byte_size / max(1, group.num_rows) for group in groups)
        most = [max(1, min(unit_rows, int(MAX_UNIT_BYTES / max(mean_row, 1)))) for mean_row in mean_rows]
        if min(rows, default=0) < 0 or sum(n / each for n, each in zip(rows, most, strict=True)) > MOST_UNITS:
            raise SourceError(
                f"{shard.name} claims {sum(rows):,} rows, more than {MOST_UNITS:,} units: "
                "it is damaged, or --unit-rows is too low"
            )
        return Inspection(shard, stretches(row_ranges(rows, most), rows), file.schema_arrow)


def _inspect_jsonl(shard: Shard, unit_rows: int) -> Inspection:
    with _readable(shard):
        first, later = sample_lines(shard.location)
    if compression_of(shard.url) is None:
        ranges, some = _line_ranges(shard, unit_rows)
        return Inspection(shard, [[range_] for range_ in ranges], _schema_of([*first, *some_of(later), *some]))
    # Where a long line or none is at the beginning, those behind it tell how long lines are.
    wanted = [unit_rows * sum(len(line) + 1 for line in sample) / len(sample) for sample in (first, later) if sample]
    unit_bytes = next((n_bytes for n_bytes in wanted if n_bytes < MAX_UNIT_BYTES), MAX_UNIT_BYTES)
    return Inspection(shard, [], _schema_of([*first, *some_of(later)]), unit_rows, int(unit_bytes))


def _schema_of(sample: list[bytes]) -> pa.Schema | None:
    """None where no record was seen."""
    seen = infer_schema(sample)
    return seen if len(seen) else None


def _line_ranges(shard: Shard, unit_rows: int) -> tuple[list[Range], list[bytes]]:
    """Where to cut, and some lines from all over the shard."""
    with _readable(shard):
        densities, some = survey(shard.location, shard.size, unit_rows)
    fewest = Fraction(unit_rows, MAX_UNIT_BYTES)  # lines for each byte, or a unit would be too large
    pieces = [(n_bytes, max(density, fewest)) for n_bytes, density in densities]
    if (n_rows := sum(n_bytes * density for n_bytes, density in pieces)) > MOST_UNITS * unit_rows:
        raise SourceError(
            f"{shard.name} has about {int(n_rows):,} lines, more than {MOST_UNITS:,} units: --unit-rows is too low"
        )
    return byte_ranges(pieces, unit_rows), some


def open_parquet(shard: Shard) -> pq.ParquetFile:
    """The opened shard; it closes its file.

    Raises:
        SourceError: it is not there or is no Parquet file.
        StoreError: its store does not answer, or the disk on which it lies.
    """
    with _readable(shard):
        # Without these, reading a unit holds its whole row groups.
        return pq.ParquetFile(open_input(shard.location), pre_buffer=False, buffer_size=_COLUMN_BYTES)


@contextmanager
def _readable(shard: Shard) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if is_damage(error) or isinstance(error, FileNotFoundError):
            raise SourceError(
                f"{shard.name} cannot be read ({reason(error)}): copy it again or leave it out of --input"
            ) from error
        raise StoreError(
            f"{shard.name} cannot be read ({reason(error)}): check the rights, or start the same command again"
        ) from error


def is_damage(error: Exception) -> bool:
    """What a decoder says of the data: where a disk or a mounted store fails, the system's error has a number."""
    return getattr(error, "errno", None) is None


def infer_schema(sample: Iterable[bytes]) -> pa.Schema:
    """Columns of the records in these lines: truth values, whole numbers, numbers, or what no number takes, strings."""
    values: dict[str, list[Any]] = {}
    for line in sample:
        try:
            record = parse(line)
        except LineError:
            continue
        for name, value in record.items():
            if is_unicode(name):  # a column has no other names
                values.setdefault(name, []).append(value)
    return pa.schema([pa.field(name, _scalar_type(column)) for name, column in values.items()])


def _scalar_type(column: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in column if value is not None}
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if not kinds <= {int, float}:
        return pa.string()
    integers = [value for value in column if type(value) is int]
    least, greatest = min(integers, default=0), max(integers, default=0)
    if float in kinds:
        return pa.float64() if least >= -(2**53) and greatest <= 2**53 else pa.string()  # beyond, it rounds integers
    if least >= -(2**63) and greatest < 2**63:
        return pa.int64()
    return pa.uint64() if least >= 0 and greatest < 2**64 else pa.string()


def check_columns(
    inspections: Iterable[Inspection],
    *,
    text_columns: Sequence[str],
    list_columns: Sequence[str] = (),
    id_column: str | None = None,
    other_columns: Sequence[str],
    known: Collection[str] = (),
) -> None:
    """See that the shards with records have the columns that the job reads, that texts are texts and ids can be ids.

    A key that some JSONL records lack is an optional one: one shard has to show it. Of the other columns those that are
    known from earlier shards need not be shown again.

    Raises:
        SourceError: naming the shard, the column and those it has.
    """
    with_records = [
        (its.shard, its.schema) for its in inspections if its.schema is not None and (its.stretches or its.unit_bytes)
    ]
    id_columns = [id_column] if id_column else []
    needed = [*text_columns, *list_columns, *id_columns]
    seen = {name for _, schema in with_records for name in schema.names} | set(known).difference(needed)
    kinds = (
        (text_columns, is_text, "not text: name the column with the text (--help lists the flags for columns)"),
        (list_columns, is_list_of_text, "not a list of strings: name the column with the choices in --choices-column"),
        (id_columns, is_id, "which is no id: name a column of texts, numbers, dates or timestamps in --id-column"),
    )
    for shard, schema in with_records:
        for name in [*needed, *other_columns]:
            if name not in schema.names and (shard.is_parquet or name not in seen):
                raise SourceError(f"{shard.name} has no column {name!r}: it has {', '.join(schema.names)}")
            if schema.names.count(name) > 1:
                raise SourceError(f"{shard.name} has several columns {name!r}: rename all but one")
        for names, fits, remedy in kinds if shard.is_parquet else ():
            for name in names:
                if not fits(type_ := schema.field(name).type):
                    raise SourceError(f"column {name!r} of {shard.name} is {type_}, {remedy}")


def is_id(type_: pa.DataType) -> bool:
    """Texts, and what is one value that can be written as a text: numbers, dates, timestamps, UUIDs."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    types = pa.types
    checks = (types.is_integer, types.is_floating, types.is_decimal, types.is_date, types.is_timestamp)
    return is_text(type_) or any(check(type_) for check in checks)


def is_list_of_text(type_: pa.DataType) -> bool:
    """Lists of texts, or nothing but nulls."""
    return pa.types.is_null(type_) or (is_list(type_) and is_text(type_.value_type))


def is_list(type_: pa.DataType) -> bool:
    """Lists of any kind, of anything."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(type_) for check in checks)


def is_text(type_: pa.DataType) -> bool:
    """Strings, bytes that may be UTF-8, dictionaries of them, or nothing but nulls."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    types = pa.types
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view, types.is_null)
    return is_string(type_) or any(check(type_) for check in checks)


def kept_schema(inspections: Iterable[Inspection], names: Sequence[str]) -> pa.Schema:
    """One type for each kept column, wide enough for every shard; strings where shards disagree."""
    seen = [inspection.schema for inspection in inspections if inspection.schema is not None]
    return pa.schema(
        [pa.field(name, _common_type([s.field(name).type for s in seen if name in s.names])) for name in names]
    )


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    plain = [kept_type(type_) for type_ in types]
    if pa.uint64() in plain and any(map(pa.types.is_signed_integer, plain)):
        return pa.string()  # no integer is as wide
    numbers = [type_ for type_ in plain if not pa.types.is_null(type_)]
    if len(set(map(pa.types.is_decimal, numbers))) > 1:
        return pa.string()  # a float rounds decimals, and a decimal that Arrow finds may be too short for integers
    schemas = [pa.schema([("column", type_)]) for type_ in dict.fromkeys(plain)]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type if schemas else pa.null()
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()
    return told_type(common)
