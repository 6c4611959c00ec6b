from __future__ import annotations

import errno
import gzip
import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convbert.stores import read_range
from pipelines import storage
from pipelines.errors import SourceError, StoreError
from pipelines.inspect import Inspection, check_columns, infer_schema, inspect, kept_schema
from pipelines.storage import locate, put
from pipelines.units import Stream, list_shards
from tests.fuzz.strategies import claim_rows


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)


def inspected(folder: Path, unit_rows: int = 10) -> list[Inspection]:
    return inspect(list_shards([str(folder)]), unit_rows=unit_rows)


def test_each_kind_of_shard_is_cut_its_own_way(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"text": ["x"] * 25}, row_group_size=5)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "abc"}\n' * 40)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 40))
    (tmp_path / "d.jsonl").touch()
    found = inspected(tmp_path)
    assert [inspection.stretches for inspection in found] == [
        [[(0, 10)], [(10, 20)], [(20, 25)]],
        [[(0, 160)], [(160, 320)], [(320, 480)], [(480, 640)]],
        [],
        [],
    ]
    assert [inspection.unit_bytes for inspection in found] == [None, None, 160, None]
    tasks = [inspection.tasks("part-x-0123456789abcdef") for inspection in found]
    assert [len(its) for its in tasks] == [3, 4, 1, 0]
    assert tasks[2] == [Stream(found[2].shard, "part-x-0123456789abcdef", unit_rows=10, unit_bytes=160)]


def test_units_stay_small_however_long_the_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.inspect.MAX_UNIT_BYTES", 10_000)
    parquet(tmp_path / "a.parquet", {"text": [f"{i} " * 500 for i in range(100)]}, use_dictionary=False)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "%s"}\n' % (b"x" * 1000) * 100)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "%s"}\n' % (b"x" * 1000) * 100))
    rows, lines, stream = inspected(tmp_path, unit_rows=1000)
    sizes = [(stop or 0) - start for stretch in rows.stretches for start, stop in stretch]
    assert max(sizes) * 1000 <= 10_000 <= 2 * max(sizes) * 1500  # a row has 1,000 to 1,500 bytes
    assert len(lines.stretches) >= 10
    assert stream.unit_bytes == 10_000


def test_no_row_group_hides_behind_the_mean_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.inspect.MAX_UNIT_BYTES", 10_000)
    texts = ["x", *(f"{i}" for i in range(999)), *(f"{i} " * 500 for i in range(100))]  # sorted by length
    parquet(tmp_path / "a.parquet", {"text": texts}, use_dictionary=False, row_group_size=100)
    (only,) = inspected(tmp_path, unit_rows=1000)
    ranges = [range_ for stretch in only.stretches for range_ in stretch]
    assert ranges[0] == (0, 1000)
    assert max((stop or 0) - start for start, stop in ranges[1:]) * 1000 <= 10_000


def test_numbers_that_become_fractions_further_on_are_seen(tmp_path: Path) -> None:
    """Many writers give 1.0 as 1."""
    whole = b"".join(b'{"text": "x", "score": %d}\n' % number for number in range(100_000))
    (tmp_path / "a.jsonl").write_bytes(whole * 8 + b'{"text": "x", "score": 0.5}\n' * 100_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(whole[:300_000] + b'{"text": "x", "score": 0.5}\n' * 100_000))
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "%s", "score": 1}\n' % (b"x" * 300_000) + b'{"score": 0.5}\n')
    found = inspected(tmp_path)
    assert [its.schema and its.schema.field("score").type for its in found] == [pa.float64()] * 3


SHORT = b'{"text": "free"}\n'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "unit_bytes", "n_rows"),
    [
        (b'{"text": "%s"}\n' % (b"x" * 3_000_000) + SHORT * 50_000, 5000 * len(SHORT), 50_001),
        (b"\n" * 300_000 + SHORT * 50_000, 5000 * len(SHORT), 50_000),
        (b'{"text": "%s"}\n' % (b"x" * 19_989) * 100, 64 * 2**20, 100),  # 5,000 of them would be too much
        (b"\n" * 300_000, 64 * 2**20, 0),
    ],
    ids=["a long line", "blank lines", "long lines", "nothing else"],
)
def test_a_beginning_unlike_the_rest_does_not_decide_the_cuts(
    content: bytes, unit_bytes: int, n_rows: int, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    (tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.gz")).write_bytes(pack(content))
    (found,) = inspected(tmp_path, unit_rows=5000)
    if pack is bytes:
        rows = rows_of_units(found, content)
        assert sum(rows) == n_rows
        assert max(rows) <= 1.3 * 5000
        assert math.ceil(n_rows / 5000) <= max(1, len(rows)) <= 1.5 * max(1, n_rows / 5000)
    else:
        assert found.unit_bytes == unit_bytes


def rows_of_units(found: Inspection, content: bytes) -> list[int]:
    """Lines that are not blank and begin in each unit's bytes, which have to be all of the shard's, each once."""
    ranges = [range_ for (range_,) in found.stretches]
    edges = [0, *(stop for _, stop in ranges)]
    assert ranges == list(itertools.pairwise(edges))
    assert edges[-1] == len(content)
    lines = content.split(b"\n")
    begins = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])[[line != b"" for line in lines]]
    return list(np.diff(np.searchsorted(begins, edges)))


LENGTHS = (20 + np.exp(np.random.default_rng(0).normal(6, 1, 60_000))).astype(int)  # 20 to 30,000 bytes, 700 on average
ORDERS = {
    "at random": LENGTHS,
    "shortest first": np.sort(LENGTHS),
    "longest first": np.sort(LENGTHS)[::-1],
    "long ones, then tiny ones": [50_000] * 40 + [15] * 600_000,
    "tiny ones, then all": [15] * 30_000 + list(LENGTHS),
    "by source": [30] * 200_000 + [3000] * 2000 + [200] * 30_000 + [9000] * 600,
}


@pytest.mark.parametrize("order", ORDERS)
def test_units_have_about_the_rows_asked_for_however_lines_are_ordered(order: str, tmp_path: Path) -> None:
    content = b"".join(b'{"text":"%s"}\n' % (b"x" * (length - 12)) for length in ORDERS[order])
    (tmp_path / "a.jsonl").write_bytes(content)
    (found,) = inspected(tmp_path, unit_rows=1000)
    rows = rows_of_units(found, content)
    assert sum(rows) == len(ORDERS[order])
    assert max(rows) <= 2 * 1000
    assert np.mean(np.array(rows) < 500) <= 0.05  # where lengths jump
    assert len(rows) <= 1.2 * sum(rows) / 1000 + 1


def test_a_head_of_tiny_lines_makes_no_million_units(tmp_path: Path) -> None:
    """Of 20 GB that have no further line, in a file that takes no room."""
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(SHORT * 20_000)
        file.truncate(20 * 2**30)
    (found,) = inspected(tmp_path, unit_rows=1000)
    edges = [0, *(stop or 0 for ((_, stop),) in found.stretches)]
    assert edges[-1] == 20 * 2**30
    assert max(np.diff(edges)) <= 64 * 2**20
    assert 320 <= len(found.stretches) <= 360


def test_more_lines_than_there_can_be_units_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(SHORT * 100_100)
    with pytest.raises(
        SourceError, match=r"a\.jsonl has about 100,[01]\d\d lines, more than 100,000 units: --unit-rows is too low"
    ):
        inspected(tmp_path, unit_rows=1)
    assert len(inspected(tmp_path, unit_rows=2)[0].stretches) in range(50_001, 50_060)


def test_a_shard_in_a_store_is_cut_after_a_few_small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(fs: Any, path: str, start: int, stop: int) -> bytes:
        read.append(stop - start)
        return read_range(fs, path, start, stop)

    monkeypatch.setattr(storage, "read_range", counted)
    for n_lines, n_reads in [(20_000, 2), (100_000, 3), (1_000_000, 4), (9_000_000, 10)]:
        put(locate("memory://reads/a.jsonl"), SHORT * n_lines)
        read.clear()
        inspect(list_shards(["memory://reads/a.jsonl"]), unit_rows=1000)
        assert (len(read), max(read)) == (n_reads, min(2**20, n_lines * len(SHORT)))
    locate("memory://reads").fs.rm("/reads", recursive=True)


def test_a_key_that_some_shards_lack_is_no_reason_to_refuse_them(tmp_path: Path) -> None:
    """Of many small shards only some are looked at: which ones must not decide."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "free"}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "free", "topic": "mail"}\n')
    found = inspected(tmp_path)
    for columns in (["topic"], []):
        check_columns(found, text_columns=["text", *columns], other_columns=["topic"])
    with pytest.raises(SourceError, match=r"a\.jsonl has no column 'topic': it has text"):
        check_columns(found[:1], text_columns=["text"], other_columns=["topic"])
    parquet(tmp_path / "c.parquet", {"text": ["free"]})
    with pytest.raises(SourceError, match=r"c\.parquet has no column 'topic': it has text"):
        check_columns(inspected(tmp_path), text_columns=["text"], other_columns=["topic"])


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"PAR1 nonsense"), ("a.jsonl.gz", b"no gzip at all")])
def test_a_shard_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name} cannot be read .*copy it again"):
        inspected(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.EIO, StoreError, r"cannot be read \(.*Input/output error.*\): check the rights, or start the same"),
        (errno.EACCES, StoreError, r"cannot be read \(.*Permission denied.*\): check the rights"),
        (errno.ENOENT, SourceError, r"cannot be read \(.*No such file.*\): copy it again"),
    ],
)
def test_a_disk_that_fails_when_a_shard_is_opened_is_no_fault_of_the_shard(
    name: str, number: int, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"x")

    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    for module in ("inspect", "jsonl"):
        monkeypatch.setattr(f"pipelines.{module}.open_input", fails)
    with pytest.raises(error, match=rf"{name} {message}"):
        inspected(tmp_path)


def test_missing_and_unfit_columns_are_named_with_their_shard(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"body": ["x"], "n": [1]})
    found = inspected(tmp_path)
    with pytest.raises(SourceError, match=r"a\.parquet has no column 'text': it has body, n"):
        check_columns(found, text_columns=["text"], other_columns=[])
    with pytest.raises(SourceError, match=r"no column 'year'"):
        check_columns(found, text_columns=["body"], other_columns=["year"])
    with pytest.raises(SourceError, match=r"column 'n' of .*a\.parquet is int64, not text"):
        check_columns(found, text_columns=["n"], other_columns=[])


@pytest.mark.parametrize("values", [pa.array([True]), pa.array([{"n": 1}]), pa.array([5], pa.time32("ms"))])
def test_an_id_column_that_holds_no_ids_is_refused(values: pa.Array, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"text": ["x"], "key": values, "id": [1]})
    found = inspected(tmp_path)
    check_columns(found, text_columns=["text"], id_column="id", other_columns=["key"])
    with pytest.raises(
        SourceError, match=rf"column 'key' of .*a\.parquet is {re.escape(str(values.type))}, which is no id: name a"
    ) as raised:
        check_columns(found, text_columns=["text"], id_column="key", other_columns=[])
    assert str(raised.value).endswith("numbers, dates or timestamps in --id-column")


def test_shards_without_records_need_no_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"other": pa.array([], pa.string())})
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    (tmp_path / "c.jsonl").write_bytes(b"{broken\n")
    check_columns(inspected(tmp_path), text_columns=["text"], other_columns=["id"])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x"]),
        pa.array(["x"], pa.large_string()),
        pa.array(["x"]).dictionary_encode(),
        pa.array([b"x"]),
        pa.array([b"x"], pa.binary(1)),
        pa.nulls(1),
    ],
    ids=lambda values: str(values.type),
)
def test_all_kinds_of_text_are_taken(values: pa.Array, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"text": values})
    check_columns(inspected(tmp_path), text_columns=["text"], other_columns=[])


@pytest.mark.parametrize("n_rows", [10**15, 2**62])
def test_a_footer_that_claims_more_rows_than_there_can_be_units_is_refused(n_rows: int, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"text": ["x"] * 1000})
    claim_rows(tmp_path / "a.parquet", 1000, n_rows)
    with pytest.raises(SourceError, match=rf"a.parquet claims {n_rows:,} rows, more than 100,000 units"):
        inspected(tmp_path)


def test_names_that_no_column_can_have_are_passed_over() -> None:
    assert infer_schema([b'{"\\ud800": 1, "a": 1}']).names == ["a"]


def test_json_columns_get_the_narrowest_type_that_holds_them() -> None:
    lines = [
        b'{"i": 1, "f": 1, "s": "x", "b": true, "m": 1, "o": {"a": 1}, "z": null, "big": 99999999999999999999}',
        b'{"i": null, "f": 0.5, "s": null, "b": false, "m": "one", "o": [1], "z": null, "big": 1}',
        b'{"h": 18446744073709551615, "g": 9007199254740993}',
        b'{"h": 1, "g": 0.5}',
        b"{broken",
    ]
    names = {"i": "int64", "f": "double", "s": "string", "b": "bool", "m": "string", "o": "string", "z": "null"}
    names |= {"big": "string", "h": "uint64", "g": "string"}  # no double tells 2**53 + 1
    assert {f.name: str(f.type) for f in infer_schema(lines)} == names


def test_kept_columns_get_one_type_for_all_shards(tmp_path: Path) -> None:
    parquet(
        tmp_path / "a.parquet",
        {"text": ["x"], "n": pa.array([1], pa.int32()), "d": pa.array(["u"]).dictionary_encode()},
    )
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "y", "n": 0.5, "d": 3, "e": null}\n')
    kept = kept_schema(inspected(tmp_path), ["n", "d", "e"])
    assert {f.name: str(f.type) for f in kept} == {"n": "double", "d": "string", "e": "string"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (pa.uint64(), pa.uint64(), pa.uint64()),
        (pa.uint64(), pa.int64(), pa.string()),
        (pa.uint64(), pa.uint8(), pa.uint64()),
        (pa.decimal128(5, 2), pa.int64(), pa.string()),
        (pa.decimal128(21, 2), pa.float64(), pa.string()),
        (pa.decimal128(5, 2), pa.decimal128(21, 3), pa.decimal128(21, 3)),
        (pa.decimal128(5, 2), pa.null(), pa.decimal128(5, 2)),
        (pa.string_view(), pa.string(), pa.string()),
        (pa.binary_view(), pa.binary_view(), pa.binary()),
        (pa.list_(pa.struct([("a", pa.string_view())])), pa.null(), pa.list_(pa.struct([("a", pa.string())]))),
        (pa.map_(pa.string_view(), pa.int8()), pa.null(), pa.map_(pa.string(), pa.int8())),
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.list_(pa.null()), pa.null(), pa.list_(pa.string())),
        (pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (
            pa.struct([("a", pa.null())]),
            pa.struct([("b", pa.int8())]),
            pa.struct([("a", pa.string()), ("b", pa.int8())]),
        ),
    ],
    ids=str,
)
def test_a_kept_type_holds_all_values_and_can_be_parted(
    first: pa.DataType, second: pa.DataType, kept: pa.DataType, tmp_path: Path
) -> None:
    for name, type_ in (("a", first), ("b", second)):
        parquet(tmp_path / f"{name}.parquet", {"text": ["x"], "c": pa.nulls(1, type_)})
    found = kept_schema(inspected(tmp_path), ["c"]).field("c").type
    assert found == kept
    pa.nulls(3, found).take(pa.array([2, 0]))


def test_columns_of_one_name_are_refused_where_the_job_reads_them(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["x"])] * 3, names=["text", "b", "b"])
    pq.write_table(twice, tmp_path / "a.parquet")
    check_columns(inspected(tmp_path), text_columns=["text"], other_columns=[])
    with pytest.raises(SourceError, match=r"a\.parquet has several columns 'b': rename all but one"):
        check_columns(inspected(tmp_path), text_columns=["text"], other_columns=["b"])
