from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import SourceError
from pipelines.storage import locate, put
from pipelines.units import Shard, byte_ranges, list_shards, row_ranges, units_of


def shard(url: str = "/data/a.jsonl", size: int = 10, mark: str = "1") -> Shard:
    return Shard(url, size, mark)


def test_folders_files_and_globs_give_each_shard_once(tmp_path: Path) -> None:
    for name in (
        "b.parquet",
        "sub/a.jsonl.gz",
        "sub/c.json",
        "_hidden.jsonl",
        ".x/d.jsonl",
        "notes.txt",
        "e.jsonl.zst",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = list_shards([str(tmp_path), str(tmp_path / "b.parquet"), str(tmp_path / "sub/*.gz")])
    names = [Path(shard.url).relative_to(tmp_path).as_posix() for shard in found]
    assert names == ["b.parquet", "e.jsonl.zst", "sub/a.jsonl.gz", "sub/c.json"]


def test_stores_are_listed_by_url() -> None:
    put(locate("memory://corpus/a.jsonl"), b"{}")
    assert [shard.url for shard in list_shards(["memory://corpus"])] == ["memory:///corpus/a.jsonl"]


@pytest.mark.parametrize("name", ["none", "*.parquet", "notes.txt", "empty"])
def test_an_input_without_shards_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="give .*\\.parquet, \\.jsonl"):
        list_shards([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("/a/b.parquet", "b"),
        ("/a/b.c.jsonl.gz", "b.c"),
        ("s3://x/ü b/täg 1.json", "t_g_1"),
        (f"/{'a' * 200}.json", "a" * 80),
    ],
)
def test_stems_are_safe_names(url: str, stem: str) -> None:
    assert shard(url).stem == stem


def test_the_fingerprint_tells_versions_places_and_recipes_apart() -> None:
    base = shard().fingerprint("r")
    others = [
        shard(size=11).fingerprint("r"),
        shard(mark="2").fingerprint("r"),
        shard(url="/data/sub/a.jsonl").fingerprint("r"),
        shard().fingerprint("q"),
    ]
    assert len({base, *others}) == 5
    assert shard().fingerprint("r") == base


def test_units_are_named_by_shard_and_number() -> None:
    units = units_of(shard(), [(0, 5), (5, 10)], recipe="r")
    assert [unit.name for unit in units] == [f"part-a-{shard().fingerprint('r')}-0000{n}" for n in (0, 1)]
    assert [(unit.start, unit.stop) for unit in units] == [(0, 5), (5, 10)]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_row_ranges_cover_the_rows_in_order(groups: list[int], unit_rows: int) -> None:
    ranges = row_ranges(groups, unit_rows)
    rows = [row for start, stop in ranges for row in range(start, stop or 0)]
    assert rows == list(range(sum(groups)))
    assert all(0 < (stop or 0) - start <= unit_rows for start, stop in ranges)


def test_row_ranges_keep_row_groups_whole_where_they_fit() -> None:
    assert row_ranges([4, 4, 4, 25], 10) == [(0, 8), (8, 12), (12, 22), (22, 32), (32, 37)]


@given(st.integers(1, 10_000), st.floats(0.1, 5000))
def test_byte_ranges_cover_the_file(size: int, unit_bytes: float) -> None:
    ranges = byte_ranges(size, unit_bytes)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
