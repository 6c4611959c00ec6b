from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options
from hypothesis import given
from hypothesis import strategies as st

from pipelines import units
from pipelines.errors import SourceError, SpecError
from pipelines.storage import locate, put
from pipelines.units import (
    Shard,
    byte_ranges,
    fingerprint_of,
    groups_of,
    is_small,
    list_shards,
    number_of,
    part_name,
    part_stem,
    row_ranges,
    shard_at,
    stretches,
    units_of,
)


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


def test_the_report_of_a_job_is_no_shard_for_the_next(tmp_path: Path) -> None:
    for name in ("out/part-a-0-0.parquet", "out/report.html", "out/report.json", "in/report.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    found = [Path(shard.url).relative_to(tmp_path).as_posix() for shard in list_shards([str(tmp_path)])]
    assert found == ["in/report.json", "out/part-a-0-0.parquet"]


def test_hidden_names_above_an_input_hide_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "_staging/.today"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b"{}")
    assert [shard.url for shard in list_shards([str(folder)])] == [str(folder / "a.jsonl")]


@pytest.mark.parametrize("pattern", ["", "/*/*.jsonl", "/**/*.jsonl"])
def test_links_are_followed_and_are_named_by_themselves(pattern: str, tmp_path: Path) -> None:
    """As in snapshots of the Hugging Face hub, checkouts of DVC and Kubernetes' volumes, which hold only links."""
    for name in ("blobs/1234", "far/deep/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"{}\n")
    os.utime(tmp_path / "blobs/1234", (5, 5))
    (tmp_path / "in/x").mkdir(parents=True)
    (tmp_path / "in/x/a.jsonl").symlink_to("../../blobs/1234")
    (tmp_path / "in/y").symlink_to(tmp_path / "far/deep")
    found = list_shards([f"{tmp_path}/in{pattern}"])
    assert [Path(shard.url).relative_to(tmp_path).as_posix() for shard in found] == ["in/x/a.jsonl", "in/y/b.jsonl"]
    assert (found[0].size, found[0].mark) == (3, "5.0")
    assert [shard_at(shard.url) for shard in found] == found


@pytest.mark.parametrize("pattern", ["", "/*/*"])
@pytest.mark.parametrize("target", ["none.jsonl", ".", "..", "../..", "a.jsonl"])
def test_a_link_that_cannot_be_followed_is_named(target: str, pattern: str, tmp_path: Path) -> None:
    (tmp_path / "in/x").mkdir(parents=True)
    (tmp_path / "in/b.jsonl").write_bytes(b"{}")
    (tmp_path / "in/x/a.jsonl").symlink_to(target)
    with pytest.raises(SourceError, match=rf"in/x/a.jsonl is a link to {re.escape(target)}, which .*: mend or remove"):
        list_shards([f"{tmp_path}/in{pattern}"])


def test_links_that_lead_back_in_a_roundabout_way_have_an_end(tmp_path: Path) -> None:
    for folder in ("in", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "in/there").symlink_to("../other")
    (tmp_path / "other/back").symlink_to("../in")
    with pytest.raises(SourceError, match="in/there/back is a link to ../in, which .* holds the link itself"):
        list_shards([str(tmp_path / "in")])


def test_links_under_hidden_names_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    (tmp_path / ".#a.jsonl").symlink_to("user@host.1234")  # an editor's lock
    assert [shard.url for shard in list_shards([str(tmp_path)])] == [str(tmp_path / "a.jsonl")]


def test_stores_are_listed_by_url() -> None:
    put(locate("memory://corpus/a.jsonl"), b"{}")
    assert [shard.url for shard in list_shards(["memory://corpus"])] == ["memory:///corpus/a.jsonl"]


class HostStore(MemoryFileSystem):
    """Finds its host in the URL and takes it out of paths, as SFTP, FTP, SMB and HDFS do."""

    protocol = "hosted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, host: str, **options: Any) -> None:
        super().__init__(host=host, **options)
        self.host = host

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(infer_storage_options(path)["path"])

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        options = infer_storage_options(path)
        return {name: options[name] for name in ("host", "username", "port", "url_query") if name in options}


class AccountStore(HostStore):
    """Takes the container in front of the account into paths, as Azure's does."""

    protocol = "accounts"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        options = infer_storage_options(path)
        return MemoryFileSystem._strip_protocol(f"{options.get('username', '')}{options['path']}")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        options = infer_storage_options(path)
        return {"host": options["host"]} if "." in options.get("host", "") else {}


@pytest.fixture
def far_stores() -> None:
    fsspec.register_implementation("hosted", HostStore, clobber=True)
    fsspec.register_implementation("accounts", AccountStore, clobber=True)


@pytest.mark.usefixtures("far_stores")
@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("hosted://host/in", "hosted://host/in/x/a.jsonl"),
        ("hosted://host/in/x/a.jsonl", "hosted://host/in/x/a.jsonl"),
        ("hosted://user:pw@host:22/in/*/*.jsonl", "hosted://user:pw@host:22/in/x/a.jsonl"),
        ("hosted://host", "hosted://host/in/x/a.jsonl"),
        ("accounts://in@me.example.com/x/", "accounts://me.example.com/in/x/a.jsonl"),
        ("accounts://me.example.com/in/x", "accounts://me.example.com/in/x/a.jsonl"),
    ],
)
def test_shards_keep_the_host_and_account_of_their_input(given: str, url: str) -> None:
    fs = fsspec.filesystem(given.partition(":")[0], host="any")
    fs.pipe_file("/in/x/a.jsonl", b"{}")
    (found,) = list_shards([given])
    assert found.url == url
    assert found.location == (locate(given).fs, "/in/x/a.jsonl")
    assert shard_at(found.url) == found


@pytest.mark.usefixtures("far_stores")
def test_a_store_whose_files_no_url_names_is_refused() -> None:
    fsspec.filesystem("hosted", host="any").pipe_file("/in/a.jsonl", b"{}")
    with pytest.raises(SpecError, match=r"hosted://host/in\?part=1: its files have no URLs of their own"):
        list_shards(["hosted://host/in?part=1"])
    with pytest.raises(SpecError, match="hosted:///in cannot be opened: .*'host'"):
        list_shards(["hosted:///in"])


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
    stem = part_stem([shard()], "r")
    assert stem == f"part-a-{shard().fingerprint('r')}"
    tasks = units_of(shard(), stem, [[(0, 5), (5, 10)], [(10, None)]])
    found = [unit for task in tasks for unit in task]
    assert [len(task) for task in tasks] == [2, 1]
    assert [unit.name for unit in found] == [f"{stem}-0000{n}" for n in range(3)]
    assert [(unit.start, unit.stop) for unit in found] == [(0, 5), (5, 10), (10, None)]


@pytest.mark.parametrize("stem", ["a", "a-b.c", "x-0123456789abcdef-00000"])
def test_names_of_parts_are_read_back(stem: str) -> None:
    one = part_stem([shard(f"/data/{stem}.jsonl")], "r")
    for number in (0, 7, 123456):
        for suffix in ("", ".parquet", ".arrow"):
            name = part_name(one, number) + suffix
            assert (fingerprint_of(name), number_of(name)) == (shard(f"/data/{stem}.jsonl").fingerprint("r"), number)
    assert fingerprint_of("part-by-hand.parquet") == ""


def small_shards(n: int) -> list[Shard]:
    return [shard(f"/data/{i:05d}.jsonl", size=1000 + i % 700) for i in range(n)]


def test_small_shards_make_groups_of_about_a_unit() -> None:
    shards = small_shards(5000)
    assert all(is_small(one, 5000) for one in shards)
    assert not is_small(shard(size=400_000), 5000)
    assert not is_small(shard(size=0), 5000)
    groups = groups_of(shards, 5000)
    assert [one for group in groups for one in group] == shards
    n_bytes = [sum(one.size for one in group) for group in groups]
    assert max(n_bytes) < 5 * 256 * 5000
    assert 15 < len(groups) < 60  # 256 shards each, on average


def test_groups_have_hard_limits_where_no_hash_ends_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times a unit's bytes, and four times 256 shards."""
    monkeypatch.setattr(units, "_share", lambda url: 1.0)
    large = [shard(f"/data/{i:05d}.jsonl", size=100_000) for i in range(200)]
    assert [len(group) for group in groups_of(large, 5000)] == [52, 52, 52, 44]  # the 52nd reaches 4 * 256 * 5000 bytes
    tiny = [shard(f"/data/{i:05d}.jsonl", size=1) for i in range(2100)]
    assert [len(group) for group in groups_of(tiny, 5000)] == [1024, 1024, 52]


def test_a_shard_that_is_added_changes_the_group_that_it_falls_into_only() -> None:
    shards = small_shards(5000)
    before = set(groups_of(shards, 5000))
    added = shard("/data/02500a.jsonl", size=900)
    after = set(groups_of(sorted([*shards, added], key=lambda one: one.url), 5000))
    assert 1 <= len(after - before) <= 2
    assert any(added in group for group in after - before)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_row_ranges_cover_the_rows_in_order(groups: list[int], unit_rows: int) -> None:
    ranges = row_ranges(groups, unit_rows)
    rows = [row for start, stop in ranges for row in range(start, stop or 0)]
    assert rows == list(range(sum(groups)))
    assert all(0 < (stop or 0) - start <= unit_rows for start, stop in ranges)


def test_row_ranges_keep_row_groups_whole_where_they_fit() -> None:
    assert row_ranges([4, 4, 4, 25], 10) == [(0, 8), (8, 12), (12, 22), (22, 32), (32, 37)]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_stretches_are_the_ranges_that_begin_in_one_row_group(groups: list[int], unit_rows: int) -> None:
    ranges = row_ranges(groups, unit_rows)
    found = stretches(ranges, groups)
    assert [range_ for stretch in found for range_ in stretch] == ranges
    ends = list(itertools.accumulate(groups))
    of_group = [{next(n for n, end in enumerate(ends) if start < end) for start, _ in stretch} for stretch in found]
    assert [len(groups) for groups in of_group] == [1] * len(found)


@given(st.integers(1, 10_000), st.floats(0.1, 5000))
def test_byte_ranges_cover_the_file(size: int, unit_bytes: float) -> None:
    ranges = byte_ranges(size, unit_bytes)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
