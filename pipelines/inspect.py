"""Shards in, what must be known before work starts out: where to cut each, and which columns it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import SourceError
from pipelines.jsonl import LineError, compression_of, is_unicode, parse, sample_lines
from pipelines.storage import many_at_a_time, redacted
from pipelines.units import Range, Shard, byte_ranges, row_ranges

MOST_UNITS = 100_000  # of a Parquet shard, whose footer may claim any number of rows


@dataclass(frozen=True)
class Inspection:
    """What a shard's footer or first lines tell.

    Attributes:
        shard: the file.
        ranges: where it is cut into units.
        schema: columns of a Parquet file, or those seen in the first lines; None where no record was seen.
    """

    shard: Shard
    ranges: list[Range]
    schema: pa.Schema | None


def inspect(shards: Iterable[Shard], *, unit_rows: int) -> list[Inspection]:
    """Read each Parquet footer and the first lines of each JSONL shard, many at a time.

    Raises:
        SourceError: a shard that cannot be read, named.
    """
    return many_at_a_time(lambda shard: _inspect(shard, unit_rows), shards)


def _inspect(shard: Shard, unit_rows: int) -> Inspection:
    if shard.size == 0:
        return Inspection(shard, [], None)
    return _inspect_parquet(shard, unit_rows) if shard.is_parquet else _inspect_jsonl(shard, unit_rows)


def _inspect_parquet(shard: Shard, unit_rows: int) -> Inspection:
    with open_parquet(shard) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) > MOST_UNITS * unit_rows:
            raise SourceError(
                f"{redacted(shard.url)} claims {sum(groups):,} rows, more than {MOST_UNITS:,} units: "
                "it is damaged, or --unit-rows is too low"
            )
        return Inspection(shard, row_ranges(groups, unit_rows), file.schema_arrow)


def _inspect_jsonl(shard: Shard, unit_rows: int) -> Inspection:
    try:
        sample = sample_lines(shard.location)
    except OSError as error:
        raise SourceError(f"{redacted(shard.url)} cannot be read ({error}): copy it again") from error
    if compression_of(shard.url):
        ranges: list[Range] = [(0, None)]
    else:
        mean_line = sum(len(line) + 1 for line in sample) / max(1, len(sample))
        ranges = byte_ranges(shard.size, unit_rows * mean_line)
    schema = infer_schema(sample)
    return Inspection(shard, ranges, schema if len(schema) else None)


def open_parquet(shard: Shard) -> pq.ParquetFile:
    """The opened shard; it closes its file.

    Raises:
        SourceError: it is not there or is no Parquet file.
    """
    fs, path = shard.location
    try:
        return pq.ParquetFile(fs.open(path, "rb"))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(
            f"{redacted(shard.url)} cannot be read as Parquet ({error}): copy it again or leave it out of --input"
        ) from error


def infer_schema(sample: Iterable[bytes]) -> pa.Schema:
    """Columns of the records in these lines: truth values, whole numbers, numbers, or else strings."""
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
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in column if value is not None):
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def check_columns(
    inspections: Iterable[Inspection],
    *,
    text_columns: Sequence[str],
    list_columns: Sequence[str] = (),
    other_columns: Sequence[str],
) -> None:
    """See that every shard with records has the columns that the job reads, and that texts are texts.

    Raises:
        SourceError: naming the shard, the column and those it has.
    """
    for inspection in inspections:
        schema = inspection.schema
        if schema is None or not inspection.ranges:
            continue
        for name in [*text_columns, *list_columns, *other_columns]:
            if name not in schema.names:
                raise SourceError(
                    f"{redacted(inspection.shard.url)} has no column {name!r}: it has {', '.join(schema.names)}"
                )
        for name in text_columns if inspection.shard.is_parquet else ():
            if not is_text(schema.field(name).type):
                raise SourceError(
                    f"column {name!r} of {redacted(inspection.shard.url)} is {schema.field(name).type}, not text: "
                    "name the column with the text (--help lists the flags for columns)"
                )
        for name in list_columns if inspection.shard.is_parquet else ():
            if not is_list_of_text(schema.field(name).type):
                raise SourceError(
                    f"column {name!r} of {redacted(inspection.shard.url)} is {schema.field(name).type}, not a list of "
                    "strings: name the column with the choices in --choices-column"
                )


def is_list_of_text(type_: pa.DataType) -> bool:
    """Lists of texts, or nothing but nulls."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return pa.types.is_null(type_) or (any(check(type_) for check in checks) and is_text(type_.value_type))


def is_text(type_: pa.DataType) -> bool:
    """Strings, bytes that may be UTF-8, dictionaries of them, or nothing but nulls."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return any(
        check(type_)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
            pa.types.is_null,
        )
    )


def kept_schema(inspections: Iterable[Inspection], names: Sequence[str]) -> pa.Schema:
    """One type for each kept column, wide enough for every shard; strings where shards disagree."""
    seen = [inspection.schema for inspection in inspections if inspection.schema is not None]
    return pa.schema(
        [pa.field(name, _common_type([s.field(name).type for s in seen if name in s.names])) for name in names]
    )


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    plain = [type_.value_type if pa.types.is_dictionary(type_) else type_ for type_ in types]
    schemas = [pa.schema([("column", type_)]) for type_ in dict.fromkeys(plain)]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type if schemas else pa.null()
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()
    return pa.string() if pa.types.is_null(common) else common
