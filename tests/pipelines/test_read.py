from __future__ import annotations

import datetime as dt
import errno
import gzip
import io
import json
import os
import random
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.envelope import Envelope
from pipelines.errors import SourceError, StoreError
from pipelines.inspect import inspect, kept_schema
from pipelines.read import Columns, ids_of, read, read_unit, text_name
from pipelines.storage import locate, put
from pipelines.units import Stream, Unit, list_shards
from pipelines.write import serialised
from tests.fault_proxy import FaultProxy
from tests.fuzz.strategies import claim_rows


def columns(*kept: tuple[str, pa.DataType], id: str = "id", texts: tuple[str, ...] = ("text",)) -> Columns:
    return Columns(texts=texts, id=id, kept=pa.schema([pa.field(*pair) for pair in kept]))


def unit(path: Path | str, start: int = 0, stop: int | None = None) -> Unit:
    return Unit("part-a-0123456789abcdef-00000", tuple(list_shards([str(path)])), start, stop)


def jsonl(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    body = b"".join(line + b"\n" for line in encoded)
    packers = {".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}
    path.write_bytes(packers.get(path.suffix, bytes)(body))
    return path


def rows(block: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(block[name].to_pylist() for name in names), strict=True))


def test_good_and_bad_lines_each_become_one_row(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"id": "one", "text": "fine"},
        b"{broken",
        {"id": 7, "text": None},
        {"id": "two", "text": 3},
        {"text": "no id"},
        {"id": ["odd"], "other": 1},
        b'{"id": "three", "text": "\\ud83d"}',
        b'{"id": "four", "text": "\xff"}',
    )
    block = read_unit(unit(path, 0, path.stat().st_size), columns())
    ids = block["id"].to_pylist()
    assert [ids[i] for i in (0, 2, 3, 6)] == ["one", "7", "two", "three"]
    body = path.read_bytes()
    assert ids[1] == f"{path}@{body.index(b'{broken')}"
    assert ids[4] == f"{path}@{body.index(b'no id') - 10}"
    assert ids[5] == f"{path}@{body.index(b'odd') - 9}"
    assert block[text_name("text")].to_pylist() == ["fine", None, None, None, "no id", None, None, None]
    assert block["error"].to_pylist() == [
        None,
        "the line is no JSON: Expecting property name enclosed in double quotes at column 2",
        "text is null",
        "text is a number, not a string",
        None,
        "text is missing",
        "text holds half of a surrogate pair, which is no character",
        "the line is not UTF-8: byte 0xff at 24",
    ]


def test_a_text_without_an_end_is_told_by_where_it_begins(tmp_path: Path) -> None:
    block = read_unit(unit(jsonl(tmp_path / "a.jsonl", b'{"text": "x')), columns())
    assert block["error"].to_pylist() == ["the line is no JSON: Unterminated string starting at column 10"]


def test_the_envelope_names_the_part_and_counts_the_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y"})
    (envelope,) = read((unit(path),), columns())
    assert envelope[:3] == ("part-a-0123456789abcdef-00000", 2, True)


@pytest.mark.parametrize("body", [b"", b"\n \r\n"])
def test_a_unit_without_records_is_an_empty_block_of_the_same_columns(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(body)
    kept = columns(("n", pa.int64()))
    block = read_unit(unit(tmp_path / "a.jsonl"), kept)
    assert len(block) == 0
    assert block.schema == read_unit(unit(jsonl(tmp_path / "b.jsonl", {"text": "x", "n": 1})), kept).schema


def test_small_shards_of_every_kind_make_one_unit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p0", "p1"]}), tmp_path / "a.parquet")
    jsonl(tmp_path / "b.jsonl", {"text": "j0"}, b"{broken")
    jsonl(tmp_path / "c.jsonl.gz", {"text": "z0"})
    pq.write_table(pa.table({"other": ["p2"]}), tmp_path / "d.parquet")
    block = read_unit(Unit("part-a-0123456789abcdef-00000", tuple(list_shards([str(tmp_path)]))), columns())
    assert block[text_name("text")].to_pylist() == ["p0", "p1", "j0", None, "z0", None]
    assert block["id"].to_pylist() == [
        *(f"{tmp_path}/a.parquet#{row}" for row in (0, 1)),
        *(f"{tmp_path}/b.jsonl@{offset}" for offset in (0, 15)),
        f"{tmp_path}/c.jsonl.gz@0",
        f"{tmp_path}/d.parquet#0",
    ]
    assert block["error"][-1].as_py() == "text is missing"


def test_a_small_shard_that_claims_many_rows_is_refused_but_a_large_one_is_recounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.read.MOST_SMALL_ROWS", 5)
    pq.write_table(pa.table({"id": [str(i) for i in range(9)], "text": ["x"] * 9}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet has [\d,]+ bytes and claims 9 rows: .* leave it out of --input"):
        read_unit(unit(tmp_path / "a.parquet"), columns())
    assert list(ids_of(list_shards([str(tmp_path)])[0], "id")) == [str(i) for i in range(9)]
    assert len(read_unit(unit(tmp_path / "a.parquet", 0, 9), columns())) == 9


def test_neighbouring_units_are_read_in_one_go(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(100)), "text": [f"t{i}" for i in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    cuts = [(3, 17), (17, 18), (18, 64), (64, 95)]
    task = tuple(unit(tmp_path / "a.parquet", *cut) for cut in cuts)
    blocks = [envelope.block for envelope in read(task, columns())]
    assert [block["id"].to_pylist() for block in blocks] == [[str(i) for i in range(*cut)] for cut in cuts]
    assert all(block.equals(read_unit(one, columns())) for block, one in zip(blocks, task, strict=True))


def stream(path: Path, unit_rows: int, *present: int, **changes: int) -> list[Envelope]:
    (shard,) = list_shards([str(path)])
    whole = Stream(shard, "part-a-0123456789abcdef", unit_rows, 500, frozenset(present), **changes)
    return list(read(whole, columns()))


def test_a_compressed_shard_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.gz", *({"text": "x" * (i % 37)} for i in range(200)))
    whole = read_unit(unit(path), columns())
    units = stream(path, 17)
    assert [envelope.part for envelope in units] == [f"part-a-0123456789abcdef-{n:05d}" for n in range(len(units))]
    assert [envelope.is_last for envelope in units] == [False] * (len(units) - 1) + [True]
    assert [envelope.n_rows for envelope in units] == [17] * 11 + [13]
    assert pa.concat_tables([envelope.block for envelope in units]).equals(whole)
    missing = [0, 3, len(units) - 1]
    again = stream(path, 17, *(set(range(len(units))) - set(missing)))
    assert [envelope.part for envelope in again] == [units[n].part for n in missing]
    assert all(envelope.block.equals(units[n].block) for envelope, n in zip(again, missing, strict=True))
    assert again[-1].is_last


def test_units_of_a_compressed_shard_end_where_they_are_large_enough(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.zst", *({"text": "x" * length} for length in [0] * 30 + [230] * 5 + [2000] * 2))
    assert [envelope.n_rows for envelope in stream(path, 20, most_bytes=500)] == [20, 12, 3, 1, 1]
    assert Stream(*list_shards([str(path)]), "part", 20, 500).most_bytes == 64 * 2**20


def test_small_shards_that_unpack_to_more_than_a_unit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.read.MOST_SMALL_BYTES", 10_000_000)
    for name, n_rows in (("a.jsonl", 1), ("b.jsonl.zst", 9000), ("c.jsonl.zst", 200_000), ("d.jsonl", 1)):
        jsonl(tmp_path / name, *[b'{"text": "%s"}' % (b"x" * 500)] * n_rows)
    small = tuple(list_shards([str(tmp_path)]))
    assert small[2].size < 100_000  # 100 MB once it is unpacked
    with pytest.raises(
        SourceError,
        match=r"c\.jsonl\.zst has [\d,]+ bytes, but .* more than 10,000,000 .*: unpack it, or lower --unit-rows",
    ):
        read_unit(Unit("part-a-0123456789abcdef-00000", small), columns())
    rest = tuple(shard for shard in small if "c.jsonl" not in shard.url)
    assert len(read_unit(Unit("part-a-0123456789abcdef-00000", rest), columns())) == 9002
    (envelope, *_) = stream(tmp_path / "c.jsonl.zst", 50_000)  # as a shard that is not small it is no matter
    assert envelope.n_rows == 50_000


def test_what_a_job_writes_of_a_line_is_not_what_a_shard_unpacks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that name file and place, and errors, are longer than short lines."""
    monkeypatch.setattr("pipelines.read.MOST_SMALL_BYTES", 50_000)
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    jsonl(folder / "a.jsonl", *[b'{"text": "ok"}', b"1"] * 1000)
    (shard,) = list_shards([str(folder)])
    block = read_unit(Unit("part-a-0123456789abcdef-00000", (shard,)), columns())
    assert len(block) == 2000
    assert block.nbytes > 200_000
    assert block["error"].null_count == 1000


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(7, 10_000), (8192, 100), (1, 1)])
def test_lines_become_the_same_block_however_few_are_held_at_a_time(
    n_rows: int, n_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"text": "x" * (i % 37), "n": i if i % 5 else "five"} for i in range(100)]
    path = jsonl(tmp_path / "a.jsonl", *lines, b"{broken", {"n": 1})
    planned = unit(path, 0, path.stat().st_size)
    whole = read_unit(planned, columns(("n", pa.int64())))
    assert whole["id"].num_chunks == 1
    monkeypatch.setattr("pipelines.read._BATCH_ROWS", n_rows)
    monkeypatch.setattr("pipelines.read._BATCH_BYTES", n_bytes)
    pieces = read_unit(planned, columns(("n", pa.int64())))
    assert pieces["id"].num_chunks > 10
    assert pieces.equals(whole)


def test_long_rows_of_parquet_become_the_same_block_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i} " * 200 for i in range(100)], "n": range(100)}), path)
    planned = unit(path, 3, 98)
    whole = read_unit(planned, columns(("n", pa.int64())))
    assert whole["id"].num_chunks == 1
    monkeypatch.setattr("pipelines.read._BATCH_BYTES", 10_000)
    pieces = read_unit(planned, columns(("n", pa.int64())))
    assert max(map(len, pieces["id"].chunks)) < 20
    assert pieces.equals(whole)


def test_a_compressed_shard_without_lines_is_one_empty_unit(tmp_path: Path) -> None:
    (only,) = stream(jsonl(tmp_path / "a.jsonl.gz", b"", b" "), 100)
    assert (only.n_rows, only.is_last) == (0, True)


def test_units_of_a_file_together_hold_every_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": "x" * (i % 17)} for i in range(100)))
    size = path.stat().st_size
    whole = read_unit(unit(path, 0, size), columns())
    pieces = [read_unit(unit(path, a, min(a + 111, size)), columns()) for a in range(0, size, 111)]
    assert pa.concat_tables(pieces)["id"].to_pylist() == whole["id"].to_pylist()


def test_a_damaged_compressed_shard_keeps_what_can_be_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.gz", *({"text": f"line {i}"} for i in range(200_000)))
    path.write_bytes(path.read_bytes()[:-2000])
    block = read_unit(unit(path), columns())
    assert block["error"].null_count == len(block) - 1 > 1000
    assert block["error"][-1].as_py().startswith("the rest of the shard cannot be decompressed")
    assert block[text_name("text")].to_pylist()[:2] == ["line 0", "line 1"]


TEXTS = ["plain", None, "ünïcode"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array([None if text is None else text.encode() for text in TEXTS]),
        pa.array([None if text is None else text.encode() for text in TEXTS]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_every_kind_of_text_column_reads_alike(values: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 3), columns())
    assert block[text_name("text")].to_pylist() == TEXTS
    assert block["error"].to_pylist() == [None, "text is null", None]
    assert block["id"].to_pylist() == [f"{tmp_path}/a.parquet#{row}" for row in range(3)]


UUIDS = [uuid.UUID(int=255), uuid.UUID(bytes=b"happens to be it")]
NOON = dt.datetime(2026, 11, 26, 12, 0, 0, 500, dt.UTC)
IDS: list[tuple[pa.Array, list[str | None]]] = [
    (pa.array([Decimal(10**37 + 1), None], pa.decimal128(38, 0)), ["1" + "0" * 36 + "1", None]),  # Snowflake, Oracle
    (pa.array([Decimal("7.50")], pa.decimal128(9, 2)), ["7.50"]),
    (pa.array([2.0**53, 3.0, -0.0, 1e20, None]), ["9007199254740992", "3", "0", "1" + "0" * 20, None]),  # pandas
    (pa.array([1.5, float("nan"), float("inf")]), [None, None, None]),
    (pa.array([NOON.date()]), ["2026-11-26"]),
    (pa.array([NOON], pa.timestamp("us", tz="Pacific/Auckland")), ["2026-11-26 12:00:00.000500"]),
    (pa.array([10**18], pa.timestamp("us")), ["<value out of range: 1000000000000000000>"]),
    (pa.array([key.bytes for key in UUIDS], pa.binary(16)), [key.hex for key in UUIDS]),
    (pa.array([key.bytes for key in UUIDS], pa.binary(16)).cast(pa.uuid()), [key.hex for key in UUIDS]),
    (pa.array([UUIDS[1].bytes, None], pa.binary(16)).dictionary_encode(), [UUIDS[1].hex, None]),
    (pa.array([b"code-1"], pa.binary(6)), ["code-1"]),
    (pa.array([b"code-1", b"\xff", b"\xfe"]), ["code-1", "ff", "fe"]),
    (pa.array([5, 6], pa.uint64()).dictionary_encode(), ["5", "6"]),
    (pa.array([True]), [None]),
    (pa.array([[1]]), [None]),
]


@pytest.mark.parametrize(("values", "expected"), IDS, ids=[str(values.type) for values, _ in IDS])
def test_ids_of_every_type_become_texts_that_tell_them_apart(
    values: pa.Array, expected: list[str | None], tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * len(values), "id": values}), path)
    wanted = [f"{path}#{row}" if text is None else text for row, text in enumerate(expected)]
    planned = unit(path, 0, len(values))
    assert read_unit(planned, columns())["id"].to_pylist() == wanted
    assert list(ids_of(planned.shards[0], "id")) == wanted


def test_whole_numbers_of_json_are_ids_however_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7}\n{"id": 7.0}\n{"id": 7.5}\n{"id": true}\n{"id": Infinity}\n')
    assert list(ids_of(unit(path).shards[0], "id")) == ["7", "7", *(f"{path}@{offset}" for offset in (22, 34, 47))]


def test_bytes_that_are_no_utf8_fail_alone_even_in_a_string_column(tmp_path: Path) -> None:
    lying = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"a\xffb"]).buffers())
    pq.write_table(pa.table({"text": lying, "copy": lying}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 2), columns(("copy", pa.string())))
    assert block[text_name("text")].to_pylist() == ["ok", None]
    assert block["copy"].to_pylist() == ["ok", None]
    assert block["error"][0].as_py() is None
    assert "text is not UTF-8: byte 0xff at 1" in block["error"][1].as_py()
    block.validate(full=True)


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (3, 17), (30, 60), (29, 31), (99, 100)])
def test_row_ranges_cross_row_groups(start: int, stop: int, tmp_path: Path) -> None:
    table = pa.table(
        {"id": list(range(100)), "text": [f"t{i}" for i in range(100)], "n": pa.array(range(100), pa.int8())}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    block = read_unit(unit(tmp_path / "a.parquet", start, stop), columns(("n", pa.int64())))
    assert rows(block, "id", text_name("text"), "n") == [(str(i), f"t{i}", i) for i in range(start, stop)]
    assert block.schema.field("n").type == pa.int64()


def damage(path: Path, group: int) -> None:
    """Spoil the middle of a row group's first column."""
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 40] = b"\0" * 40
    path.write_bytes(data)


def test_a_damaged_row_group_fails_its_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text number {i} of a hundred" for i in range(100)]})
    pq.write_table(table, path, row_group_size=50, compression="zstd", use_dictionary=False)
    damage(path, 1)
    block = read_unit(unit(path, 0, 100), columns())
    assert block["error"].to_pylist()[:50] == [None] * 50
    assert all(error.startswith("row group 1 of the shard cannot be read") for error in block["error"].to_pylist()[50:])
    assert block["id"].to_pylist() == [f"{path}#{row}" for row in range(100)]


def test_rows_whose_text_is_damaged_keep_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text number {i} of many" for i in range(400)], "id": [f"r{i}" for i in range(400)]})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, write_page_checksum=True)
    damage(path, 1)
    block = read_unit(unit(path, 50, 350), columns())
    failed = [place for place, error in enumerate(block["error"].to_pylist()) if error]
    assert failed == list(range(50, 150))
    assert block["id"].to_pylist() == [f"r{i}" for i in range(50, 350)]
    shard = list_shards([str(path)])[0]
    assert list(ids_of(shard, "id")) == table["id"].to_pylist()


def test_rows_whose_ids_are_damaged_too_are_told_by_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [f"r{i}" for i in range(400)], "text": ["x"] * 400})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, write_page_checksum=True)
    damage(path, 1)
    block = read_unit(unit(path, 50, 350), columns())
    wanted = [f"{path}#{row}" if 100 <= row < 200 else f"r{row}" for row in range(50, 350)]
    assert block["id"].to_pylist() == wanted
    assert [error is None for error in block["error"].to_pylist()] == [not 100 <= row < 200 for row in range(50, 350)]


def test_rows_that_only_the_footer_counts_are_failures(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 1000}), path)
    claim_rows(path, 1000, 1003)
    block = read_unit(unit(path, 998, 1003), columns())
    reason = "row group 0 of the shard ends before this row, which its footer counts"
    assert block["error"].to_pylist() == [None, None, reason, reason, reason]
    assert block["id"].to_pylist() == [f"{path}#{row}" for row in range(998, 1003)]


def test_kept_columns_get_their_planned_type_and_misfits_say_so(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": "x", "n": 1, "s": {"deep": [1]}},
        {"text": "y", "n": "one", "s": 5},
        {"text": "z", "s": None},
    )
    block = read_unit(unit(path), columns(("n", pa.int64()), ("s", pa.string())))
    assert rows(block, "n", "s") == [(1, '{"deep": [1]}'), (None, "5"), (None, None)]
    assert block["error"].to_pylist() == [None, "n holds 'one', not int64", None]


def test_a_kept_list_is_json_where_another_shard_makes_its_column_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "tags": [["NOUN", "ünï"]]}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 1), columns(("tags", pa.string())))
    assert block["tags"].to_pylist() == ['["NOUN", "ünï"]']


NARROW, WIDE = pa.struct([("x", pa.int64())]), pa.struct([("x", pa.int32()), ("y", pa.int64())])


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (lambda type_: type_, lambda value: value),
        (pa.list_, lambda value: [None, value]),
        (lambda type_: pa.struct([("x", type_)]), lambda value: {"x": value}),
        (lambda type_: pa.map_(pa.string(), type_), lambda value: [("key", value)]),
    ],
    ids=["struct", "list", "struct in a struct", "map"],
)
def test_fields_that_a_kept_struct_lacks_are_not_dropped_in_silence(
    of: Callable[[pa.DataType], pa.DataType], value: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    values = [value(its) for its in ({"x": 1, "y": 2}, {"x": 3, "y": None}, {"x": None, "y": 0}, None)]
    pq.write_table(pa.table({"text": ["x"] * 4, "meta": pa.array(values, of(WIDE))}), path)
    block = read_unit(unit(path, 0, 4), columns(("meta", of(NARROW))))
    assert block["meta"].to_pylist() == [None, value({"x": 3}), None, value(None)]
    assert block["error"].to_pylist() == [
        f"meta holds {values[0]!r:.40}, not {of(NARROW)}",
        None,
        f"meta holds {values[2]!r:.40}, not {of(NARROW)}",
        None,
    ]


def test_a_kept_type_that_arrow_cannot_cast_fails_records_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    grown = pa.struct([pa.field("x", pa.int64()), pa.field("y", pa.int64(), nullable=False)])
    columns_of = {
        "text": ["fine"] * 3,
        "meta": pa.array([None, {"x": 1, "y": 2}, None], grown),
        "vector": pa.array([[0.0] * 4, None, [1.0] * 4], pa.list_(pa.float32(), 4)),
    }
    pq.write_table(pa.table(columns_of), path)
    shorter = pa.list_(pa.float32(), 2)
    block = read_unit(unit(path, 0, 3), columns(("meta", pa.struct([("x", pa.int64())]))))
    assert block[text_name("text")].to_pylist() == ["fine"] * 3
    assert block["error"].to_pylist() == [None, "meta holds {'x': 1, 'y': 2}, not struct<x: int64>", None]
    block = read_unit(unit(path, 0, 3), columns(("vector", shorter)))
    assert block["error"].to_pylist() == [
        f"vector holds [0.0, 0.0, 0.0, 0.0], not {shorter}",
        None,
        f"vector holds [1.0, 1.0, 1.0, 1.0], not {shorter}",
    ]


def test_dictionaries_within_a_kept_column_need_no_index_in_common(tmp_path: Path) -> None:
    names = [[f"{shard}{n}" for n in range(100)] for shard in "ab"]
    for its in names:
        codes = pa.array(its).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
        structs = pa.StructArray.from_arrays([codes], names=["name"])
        pq.write_table(pa.table({"text": its, "meta": structs}), tmp_path / f"{its[0]}.parquet")
    shards = tuple(list_shards([str(tmp_path)]))
    kept = kept_schema(inspect(shards, unit_rows=200), ["meta"]).field("meta").type
    block = read_unit(Unit("part-a-0123456789abcdef-00000", shards), columns(("meta", kept)))
    assert block["meta"].combine_chunks().field("name").to_pylist() == [*names[0], *names[1]]


def test_a_field_that_a_shard_requires_is_null_where_its_record_failed(tmp_path: Path) -> None:
    required = pa.struct([pa.field("x", pa.timestamp("ns"), nullable=False)])
    nanosecond = pa.scalar(1, pa.timestamp("ns"))  # which Python's times do not have
    pq.write_table(
        pa.table({"text": ["fine"], "meta": pa.array([{"x": nanosecond}], required)}), tmp_path / "a.parquet"
    )
    jsonl(tmp_path / "b.jsonl", b"{broken")
    shards = list_shards([str(tmp_path)])
    kept = kept_schema(inspect(shards, unit_rows=9), ["meta"])
    block = read_unit(Unit("part-a-0123456789abcdef-00000", tuple(shards)), Columns(("text",), "id", kept))
    part = pq.read_table(io.BytesIO(serialised(block, "parquet")))
    assert part["meta"].combine_chunks().field("x").cast(pa.int64()).to_pylist() == [1, None]
    assert [error is None for error in part["error"].to_pylist()] == [True, False]


INFINITY = 9223371331200000000  # PostgreSQL's, as Spark writes it


@pytest.mark.parametrize(
    ("column", "planned", "kept", "errors"),
    [
        (pa.array([INFINITY, 0], pa.timestamp("us")), pa.timestamp("ns"), [None, "1970-01-01 00:00:00"], [True, False]),
        (pa.array([0, None], pa.timestamp("us", "US/Nowhere")), pa.string(), [None, None], [True, False]),
        (
            pa.array([{"t": INFINITY}, {"t": None}], pa.struct([("t", pa.timestamp("us"))])),
            pa.string(),
            [None, '{"t": null}'],
            [True, False],
        ),
    ],
    ids=["beyond Python's years", "unknown time zone", "in a struct"],
)
def test_a_kept_value_that_python_cannot_show_fails_its_record_only(
    column: pa.Array, planned: pa.DataType, kept: list[str | None], errors: list[bool], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["x", "y"], "c": column}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 2), columns(("c", planned)))
    assert [None if value is None else str(value) for value in block["c"].to_pylist()] == kept
    assert block["error"].to_pylist() == [
        "c holds a value that Python cannot show" if is_error else None for is_error in errors
    ]


@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.date32(), pa.time64("us"), pa.duration("us")], ids=str)
def test_a_number_of_json_that_is_none_does_not_fit_into_a_time(type_: pa.DataType, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", b'{"text": "x", "c": NaN}', b'{"text": "y", "c": null}')
    block = read_unit(unit(path), columns(("c", type_)))
    assert rows(block, "c", "error") == [(None, f"c holds nan, not {type_}"), (None, None)]


@pytest.mark.parametrize("type_", [pa.list_(pa.uuid()), pa.list_(pa.null(), 2)], ids=str)
def test_nulls_of_a_kept_type_that_arrow_cannot_build_are_no_errors(type_: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["fine"], "meta": pa.nulls(1, type_)}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 1), columns(("meta", type_), ("other", type_)))
    block.validate(full=True)
    assert rows(block, "meta", "other", "error") == [(None, None, "other is missing")]


def test_a_fault_of_ours_is_no_damage_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["fine"]}), tmp_path / "a.parquet")

    def fails(*_: Any) -> None:
        raise pa.ArrowInvalid("ours")

    monkeypatch.setattr("pipelines.read._parquet_block", fails)
    with pytest.raises(pa.ArrowInvalid, match="ours"):
        read_unit(unit(tmp_path / "a.parquet", 0, 1), columns())


@pytest.mark.parametrize(
    ("column", "planned", "fits"),
    [
        (pa.array([1, 0]), pa.bool_(), False),
        (pa.array([True, False]), pa.int64(), False),
        (pa.array([1_700_000_000, 0]), pa.timestamp("us"), False),
        (pa.array([3.99, 0.5]), pa.int64(), False),
        (pa.array([3.0, 5.0]), pa.int64(), True),
        (pa.array([dt.date(2026, 11, 27)] * 2), pa.timestamp("us"), True),
        (pa.array([Decimal("1.50")] * 2), pa.float64(), True),
        (pa.array([True, False]), pa.string(), True),
        (pa.nulls(2), pa.bool_(), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else str(value),
)
def test_a_column_of_parquet_takes_no_other_meaning(
    column: pa.Array, planned: pa.DataType, fits: bool, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["x"] * 2, "c": column}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 2), columns(("c", planned)))
    assert [error is None for error in block["error"].to_pylist()] == [fits, fits]
    assert block["c"].null_count == (2 if not fits or pa.types.is_null(column.type) else 0)


def test_a_kept_column_that_a_parquet_shard_lacks_is_no_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 2}), tmp_path / "a.parquet")
    block = read_unit(unit(tmp_path / "a.parquet", 0, 2), columns(("c", pa.int64())))
    assert block["error"].to_pylist() == ["c is missing"] * 2


def test_objects_of_json_have_no_other_fields_than_a_struct_that_is_kept(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", *({"text": "x", "meta": its} for its in ({"x": 1}, {"x": 2, "y": 3}, {"y": None}))
    )
    block = read_unit(unit(path), columns(("meta", NARROW)))
    assert block["meta"].to_pylist() == [{"x": 1}, None, {"x": None}]
    assert block["error"].to_pylist() == [None, f"meta holds {{'x': 2, 'y': 3}}, not {NARROW}", None]


def test_pairs_need_both_texts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"a": "x", "b": "y"}, {"a": "x"}, {"a": None, "b": 2})
    block = read_unit(unit(path), columns(texts=("a", "b")))
    assert block["error"].to_pylist() == [None, "b is missing", "a is null; b is a number, not a string"]


@pytest.mark.parametrize("change", ["later", "longer", "gone"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_shard_that_is_not_the_planned_one_any_more_is_refused(name: str, change: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": ["fine"]}), path)
    else:
        jsonl(path, {"text": "fine"})
    planned = unit(path, 0, 1)
    assert read_unit(planned, columns())["error"].to_pylist() == [None]
    if change == "later":
        os.utime(path, (1, 1))
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"more")
        os.utime(path, (float(planned.shards[0].mark), float(planned.shards[0].mark)))
    else:
        path.unlink()
    with pytest.raises(SourceError, match=rf"{name} has changed since the job was planned: start the same command"):
        read_unit(planned, columns())


class StaleFile(io.FileIO):
    """A file on a mount that can be lost: the byte in its middle is not to be had then."""

    is_lost = False

    def __del__(self) -> None:
        self.close()

    def read(self, size: int | None = -1, /) -> bytes:
        return self._unless_lost(super().read(size))

    def readinto(self, buffer: Any, /) -> int:
        return len(self._unless_lost(bytes(memoryview(buffer)[: super().readinto(buffer)])))

    def _unless_lost(self, data: bytes) -> bytes:
        middle = os.fstat(self.fileno()).st_size // 2
        if self.is_lost and self.tell() - len(data) <= middle < self.tell():
            raise OSError(errno.ESTALE, "Stale file handle")
        return data


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_disk_that_fails_is_no_damage_of_the_shard(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit of which only a part was read would never be read again."""
    path, rng = tmp_path / f"a{suffix}", random.Random(0)
    texts = [f"{rng.getrandbits(200):x}" for _ in range(60_000)]
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=20_000, use_dictionary=False)
    else:
        jsonl(path, *({"text": text} for text in texts))
    wanted = columns(id="text")
    planned = unit(path, 0, len(texts) if suffix == ".parquet" else None)
    for module in ("inspect", "jsonl"):
        monkeypatch.setattr(f"pipelines.{module}.open_input", lambda place: StaleFile(place.path))
    assert set(read_unit(planned, wanted)["error"].to_pylist()) == {None}
    monkeypatch.setattr(StaleFile, "is_lost", True)
    message = rf"a{suffix} cannot be read \(.*Stale file handle\): start the same command again"
    for read_it in (lambda: read_unit(planned, wanted), lambda: list(ids_of(planned.shards[0], "text"))):
        with pytest.raises(StoreError, match=message):
            read_it()
    os.utime(path, (1, 1))  # replaced, which is what loses a file on NFS
    with pytest.raises(SourceError, match="has changed since the job was planned"):
        read_unit(planned, wanted)


@pytest.mark.parametrize(("method", "message"), [("HEAD", "cannot be read"), ("GET", "cannot be read at byte 0")])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_store_that_fails_is_no_damage_of_the_shard(
    name: str, method: str, message: str, tmp_path: Path, s3: FaultProxy
) -> None:
    """Damaged data becomes rows with an error; a store that refuses must not."""
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": ["fine"] * 10}), tmp_path / name)
    else:
        jsonl(tmp_path / name, {"text": "fine"})
    put(locate(f"s3://bucket/refused/{name}"), (tmp_path / name).read_bytes())
    planned = unit(f"s3://bucket/refused/{name}", 0, None if name.endswith("gz") else 10)
    assert set(read_unit(planned, columns())["error"].to_pylist()) == {None}
    with s3.next_faults("denied", method=method), pytest.raises(StoreError, match=message):
        read_unit(planned, columns())
