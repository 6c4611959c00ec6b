from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


def test_files_that_only_look_like_shards_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "notes.txt", "b.jsonl.bz2", "C.JSONL", "d.ndjson", "e.parq"):
        (tmp_path / name).write_bytes(b"{}")
    assert [shard.stem for shard in list_shards([str(tmp_path)])] == ["a"]
    assert re.search(
        r": 4 files such as .*(bz2|JSONL|ndjson|parq) are passed over, for shards end in \.parquet", caplog.text
    )
    caplog.clear()
    list_shards([f"{tmp_path}/*.jsonl"])
    assert not caplog.text


def test_a_shard_of_no_bytes_is_a_failed_upload_or_lines_of_text(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).touch()
    assert [shard.size for shard in list_shards([str(tmp_path)])] == [0, 0]
    for name in ("c.parquet", "c.jsonl.gz", "c.json.zst"):
        (tmp_path / name).touch()
        with pytest.raises(SourceError, match=rf"{name} has 0 bytes, .*: copy it again or leave it out"):
            list_shards([str(tmp_path)])
        (tmp_path / name).unlink()


def test_a_name_that_means_a_chain_of_stores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a::b.jsonl").write_bytes(b"{}")
    with pytest.raises(SourceError, match=r"a::b\.jsonl has '::' in its name, .*: rename it"):
        list_shards([str(tmp_path)])


def test_a_file_that_is_named_in_several_ways_is_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "w").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path / "w")
    found = list_shards(["../in", f"{tmp_path}//in", f"{tmp_path}/w/../in/**", "../in/*.jsonl", "../in/./a.jsonl"])
    assert [shard.url for shard in found] == [f"{tmp_path}/in/a.jsonl"]


@pytest.mark.parametrize("pattern", ["", "/*/*", "/**", "/*/caf?.jsonl"])
def test_a_name_that_is_no_text_is_refused(pattern: str, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in/x")
    os.makedirs(folder)
    for name in (b"caf\xe9.txt", b"caf\xe9.jsonl"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"{}")
    with pytest.raises(SourceError, match=r"in/x/caf\\udce9\.jsonl has a name that is not UTF-8: rename it"):
        list_shards([f"{tmp_path}/in{pattern}"])


def test_the_report_of_a_job_is_no_shard_for_the_next(tmp_path: Path) -> None:
    outputs, inputs = ("out/part-a-0-0.parquet", "out/report.html", "out/report.json"), ("in/report.json", "in/a.json")
    for name in (*outputs, *inputs, "in/a.html"):  # a page beside an input makes no report of it
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    for pattern in ("", "*", "**", "[io]*"):
        found = [Path(shard.url).relative_to(tmp_path).as_posix() for shard in list_shards([f"{tmp_path}/{pattern}"])]
        assert found == ["in/a.json", "in/report.json", "out/part-a-0-0.parquet"]


def test_hidden_names_above_an_input_hide_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "_staging/.today"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b"{}")
    assert [shard.url for shard in list_shards([str(folder)])] == [str(folder / "a.jsonl")]


@pytest.mark.parametrize("store", ["local", "memory", "s3"])
def test_a_name_with_brackets_is_what_is_there_before_it_is_a_glob(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if store == "s3":
        request.getfixturevalue("s3")
    root = locate(str(tmp_path) if store == "local" else f"{store}://bucket/brackets").url
    for name in ("day[1]/a.jsonl", "day1/b.jsonl", "day2/x[1].jsonl", "day2/x1.jsonl", "day2/[.json"):
        put(locate(f"{root}/{name}"), b"{}")
    for address, names in {
        "day[1]": ["day[1]/a.jsonl"],
        "day[12]": ["day1/b.jsonl", "day2/[.json", "day2/x1.jsonl", "day2/x[1].jsonl"],
        "day[[]1]": ["day[1]/a.jsonl"],
        "day[[]*/*": ["day[1]/a.jsonl"],
        "day2/x[1].jsonl": ["day2/x[1].jsonl"],
        "day2/x[0-9].jsonl": ["day2/x1.jsonl"],
        "day2/[.json": ["day2/[.json"],
        "*/[.json": ["day2/[.json"],
    }.items():
        found = [shard.url.removeprefix(f"{root}/") for shard in list_shards([f"{root}/{address}"])]
        assert (address, found) == (address, names)


def test_a_store_that_looks_nothing_up_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As S3 is, where a role may list a folder and no more."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    put(locate("memory://listed/a1.jsonl"), b"{}")
    monkeypatch.setattr(MemoryFileSystem, "info", refused)
    assert [shard.url for shard in list_shards(["memory://listed/a[1].jsonl"])] == ["memory:///listed/a1.jsonl"]


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


@pytest.mark.parametrize("pattern", ["*/x.jsonl", "*/sub/*.jsonl", "**/x.jsonl", "[bn]*/**"])
@pytest.mark.parametrize("link", ["night", "b/sub"])
def test_a_lost_link_that_hides_files_of_a_glob_is_named(link: str, pattern: str, tmp_path: Path) -> None:
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/b/x.jsonl").write_bytes(b"{}")
    (tmp_path / "in" / link).symlink_to("/nowhere/else")
    if (link, pattern) == ("b/sub", "*/x.jsonl"):  # which names nothing beyond it
        assert len(list_shards([f"{tmp_path}/in/{pattern}"])) == 1
        return
    with pytest.raises(SourceError, match=rf"in/{link} is a link to /nowhere/else, which .*: mend or remove"):
        list_shards([f"{tmp_path}/in/{pattern}"])


@pytest.mark.parametrize("pattern", ["*/x.jsonl", "**/x.jsonl"])
def test_hidden_links_hide_nothing_from_a_glob(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.jsonl").write_bytes(b"{}")
    (tmp_path / "_old/sub").mkdir(parents=True)
    for link in (".#x.jsonl", "_night", "_old/x.jsonl", "_old/sub/night"):
        (tmp_path / link).symlink_to("user@host.1234")
    assert [shard.url for shard in list_shards([f"{tmp_path}/{pattern}"])] == [str(tmp_path / "b/x.jsonl")]


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


@pytest.mark.usefixtures("far_stores")
@pytest.mark.parametrize(
    ("given", "output", "lies"),
    [
        ("hosted://host/own", "hosted://host/own/x", True),
        ("hosted://me:pw@host/own", "hosted://you@host/own/./x/", True),
        ("hosted://host/own", "hosted://host/", True),
        ("hosted://host/own", "hosted://other/own/x", False),
        ("hosted://host/own", "hosted://host/own/x/a", False),
        ("hosted://host/own", "memory://own/x", False),
        ("accounts://own@me.example.com/", "accounts://own@me.example.com/x", True),
        ("accounts://me.example.com/own", "accounts://own@me.example.com/x", True),
        ("accounts://own@me.example.com/", "accounts://own@you.example.com/x", False),
    ],
)
def test_a_shard_in_an_output_is_known_by_its_store_and_path(given: str, output: str, lies: bool) -> None:
    fsspec.filesystem(given.partition(":")[0], host="any").pipe_file("/own/x/a.jsonl", b"{}")
    (found,) = list_shards([given])
    assert found.location.lies_in(locate(output)) is lies


class _Page(SimpleHTTPRequestHandler):
    """A folder as web servers show it; of some files it tells no size."""

    def send_header(self, keyword: str, value: str) -> None:
        if not (keyword == "Content-Length" and self.path.endswith("unknown.jsonl")):
            super().send_header(keyword, value)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a server of files in a folder and one below it."""
    for name in ("in/a.jsonl", "in/x/b.parquet", "in/notes.txt", "odd/unknown.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/c.jsonl").symlink_to("nowhere")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Page, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("", ["a.jsonl", "x/b.parquet"]), ("/", ["a.jsonl", "x/b.parquet"]), ("/*.jsonl", ["a.jsonl"])],
)
def test_the_folder_of_a_web_server_has_the_files_that_it_links_to(pattern: str, names: list[str], web: str) -> None:
    found = list_shards([f"{web}/in{pattern}"])
    assert found == [Shard(f"{web}/in/{name}", 3, "Thu, 01 Jan 1970 00:00:00 GMT") for name in names]
    assert [shard_at(shard.url) for shard in found] == found


def test_what_a_web_server_does_not_tell_is_said(web: str) -> None:
    with pytest.raises(SourceError, match=f"the server of {web}/odd/unknown.jsonl does not tell its size"):
        list_shards([f"{web}/odd"])
    with pytest.raises(SourceError, match=r"gone cannot be listed \(.*/gone/c.jsonl is listed, but not there\)"):
        list_shards([f"{web}/gone"])
    with pytest.raises(SourceError, match="notes.txt is no kind of file that can be read"):
        list_shards([f"{web}/in/notes.txt"])


@pytest.mark.parametrize("name", ["a.jsonl", "", "*.jsonl"])
def test_a_host_that_no_name_server_knows_is_no_empty_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(SourceError, match=r"cannot be listed \(.*Name or service not known.*\): check the address"):
        list_shards([f"https://nowhere.example/in/{name}"])


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


def test_a_secret_is_no_part_of_a_shard() -> None:
    old, new = (shard(f"sftp://me:{password}@host/in/a.jsonl") for password in ("old", "new"))
    assert old.fingerprint("r") == new.fingerprint("r") != shard("sftp://host/in/a.jsonl").fingerprint("r")
    assert old.fingerprint("r") != shard("sftp://you@host/in/a.jsonl").fingerprint("r")
    containers = {shard(f"abfss://{name}@me.dfs.core.windows.net/a.jsonl").name for name in ("one", "two")}
    assert len(containers | {shard(f"s3://b/token=a/{day}.jsonl").name for day in ("mon", "tue")}) == 4
    public = hashlib.sha256(json.dumps(["/data/a.jsonl", 10, "1", "r"]).encode()).hexdigest()
    assert shard().fingerprint("r") == public[:16]


def test_a_secret_changes_no_group() -> None:
    def names(password: str) -> list[list[str]]:
        shards = [shard(f"sftp://me:{password}@host/{i:05d}.jsonl", size=1000) for i in range(3000)]
        return [[one.url.rpartition("/")[2] for one in group] for group in groups_of(shards, 5000)]

    assert names("old") == names("new")


@pytest.mark.usefixtures("far_stores")
@pytest.mark.parametrize("password", ["a", "zzz"])
def test_a_secret_changes_no_order(password: str) -> None:
    fsspec.filesystem("hosted", host="any").pipe({"/one/a.jsonl": b"{}", "/two/b.jsonl": b"{}"})
    found = list_shards(["hosted://me:pw@host/two", f"hosted://me:{password}@host/one"])
    assert [shard.url.rpartition("/")[2] for shard in found] == ["a.jsonl", "b.jsonl"]


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
    mebibytes = [shard(f"/data/{i:05d}.jsonl", size=2**20) for i in range(200)]
    assert [len(group) for group in groups_of(mebibytes, 10**6)] == [64, 64, 64, 8]  # no unit has more, as elsewhere
    assert is_small(mebibytes[0], 10**6)
    assert not is_small(shard(size=2**22), 10**6)


def test_a_shard_that_is_added_changes_the_group_that_it_falls_into_only() -> None:
    shards = small_shards(5000)
    before = set(groups_of(shards, 5000))
    added = shard("/data/02500a.jsonl", size=900)
    after = set(groups_of(sorted([*shards, added], key=lambda one: one.url), 5000))
    assert 1 <= len(after - before) <= 2
    assert any(added in group for group in after - before)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_row_ranges_cover_the_rows_in_order(groups: list[int], unit_rows: int) -> None:
    ranges = row_ranges(groups, [unit_rows] * len(groups))
    rows = [row for start, stop in ranges for row in range(start, stop or 0)]
    assert rows == list(range(sum(groups)))
    assert all(0 < (stop or 0) - start <= unit_rows for start, stop in ranges)


def test_row_ranges_keep_row_groups_whole_where_they_fit() -> None:
    assert row_ranges([4, 4, 4, 25], [10] * 4) == [(0, 8), (8, 12), (12, 22), (22, 32), (32, 37)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=30))
def test_a_row_range_has_no_more_rows_than_any_of_its_groups_allows(groups: list[tuple[int, int]]) -> None:
    ranges = row_ranges([n for n, _ in groups], [most for _, most in groups])
    allowed = [most for n, most in groups for _ in range(n)]  # of each row
    assert [row for start, stop in ranges for row in range(start, stop or 0)] == list(range(len(allowed)))
    assert all((stop or 0) - start <= min(allowed[start:stop]) for start, stop in ranges)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_stretches_are_the_ranges_that_begin_in_one_row_group(groups: list[int], unit_rows: int) -> None:
    ranges = row_ranges(groups, [unit_rows] * len(groups))
    found = stretches(ranges, groups)
    assert [range_ for stretch in found for range_ in stretch] == ranges
    ends = list(itertools.accumulate(groups))
    of_group = [{next(n for n, end in enumerate(ends) if start < end) for start, _ in stretch} for stretch in found]
    assert [len(groups) for groups in of_group] == [1] * len(found)


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.fractions(0, 1, max_denominator=50)), min_size=1, max_size=8),
    st.integers(1, 2000),
)
def test_byte_ranges_cover_the_file_with_equally_many_rows(pieces: list[tuple[int, Fraction]], unit_rows: int) -> None:
    ranges = byte_ranges(pieces, unit_rows)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == sum(n_bytes for n_bytes, _ in pieces)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    n_rows = sum(n_bytes * density for n_bytes, density in pieces)
    assert len(ranges) == max(1, math.ceil(n_rows / unit_rows))
    before = [0.0, *itertools.accumulate(float(density) for n_bytes, density in pieces for _ in range(n_bytes))]
    rows = [before[stop or 0] - before[start] for start, stop in ranges]
    assert rows == pytest.approx([float(n_rows / len(ranges))] * len(ranges), abs=1.001)  # a byte may have 1


def test_byte_ranges_of_like_rows_are_equal() -> None:
    assert byte_ranges([(640, Fraction(1, 16))], 10) == [(0, 160), (160, 320), (320, 480), (480, 640)]
    pieces = [(100, Fraction(1, 100)), (100, Fraction(1, 10)), (200, Fraction(1, 200))]
    assert byte_ranges(pieces, 6) == [(0, 150), (150, 400)]
