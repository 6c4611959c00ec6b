from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipelines import jsonl, storage
from pipelines.errors import OutputError, SourceError, SpecError, StoreError
from pipelines.inspect import open_parquet
from pipelines.storage import (
    Location,
    RemoteFile,
    absolute,
    check_writable,
    exists,
    files_below,
    listed,
    locate,
    many_at_a_time,
    open_input,
    parted,
    put,
    read_bytes,
    remove,
)
from pipelines.units import list_shards
from tests.fault_proxy import FAULTS, FaultProxy


def test_local_places_are_plain_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("a/b").url == str(tmp_path / "a/b")
    assert locate(f"file://{tmp_path}/a").url == str(tmp_path / "a")
    assert locate("memory://x/y").child("z").url == "memory:///x/y/z"


def test_a_relative_path_is_made_absolute_and_a_url_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b") == str(tmp_path / "a/b")
    assert absolute("memory://user:secret@x/y") == "memory://user:secret@x/y"


@pytest.mark.parametrize(
    "url", ["../w/in/*.json", "./in/*.json", "{0}//w//in/./*.json", "/{0}/w/in/*.json", "file://{0}/v/../w/in/*.json"]
)
def test_a_local_path_has_one_spelling(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    assert locate(url.format(tmp_path)).path == f"{tmp_path}/w/in/*.json"


def test_a_file_that_is_replaced_all_the_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(str(tmp_path)).child("a.json")
    put(place, b"{}")
    monkeypatch.setattr(storage, "change_mark", lambda info: uuid.uuid4().hex)
    with pytest.raises(OSError, match="it was replaced 20 times while it was read"):
        read_bytes(place)


def test_folders_above_are_those_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a link leads to has another folder above it than the link; a link itself is not resolved."""
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "far/deep")
    (tmp_path / "far/a.jsonl").write_bytes(b"{}")
    assert read_bytes(locate(f"{tmp_path}/in/link/../a.jsonl")) == b"{}"
    assert locate(f"{tmp_path}/in/./link/b").path == f"{tmp_path}/in/link/b"
    monkeypatch.setenv("HOME", str(tmp_path / "far"))
    assert locate("~/../in/b").path == f"{tmp_path}/in/b"


@pytest.mark.parametrize("url", ["nowhere://x", "oss://bucket/x"], ids=["unknown", "not installed"])
def test_a_protocol_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(SpecError, match=f"{url} cannot be opened"):
        locate(url)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Makes an FTP server that says these lines to those who come, one after the other; gives its URL."""
    monkeypatch.setattr("convbert.stores.FIRST_WAIT_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def greet(said: bytes) -> socket.socket:
            guest, _ = server.accept()
            guest.sendall(said)
            if not said.endswith(b"230 come in\r\n"):
                guest.close()
            return guest

        def says(*lines: bytes) -> str:
            guests.extend(pool.submit(greet, said) for said in lines)
            return f"ftp://me:pw@127.0.0.1:{server.getsockname()[1]}/in"

        guests: list[Future[socket.socket]] = []
        yield says
        for guest in guests:
            guest.result().close()


def test_a_store_that_is_closed_for_a_moment_is_opened(door: Callable[..., str]) -> None:
    place = locate(door(b"421 Too many users\r\n", b"", b"220 hello\r\n230 come in\r\n"))
    assert place.path == "/in"


def test_a_store_that_cannot_be_opened_is_named_without_the_password(
    door: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = r"^ftp://me:\*\*\*@127\.0\.0\.1:\d+/in cannot be opened \(530 Login incorrect\): check"
    with pytest.raises(StoreError, match=refusal):
        locate(door(b"220 hello\r\n530 Login incorrect\r\n"))
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", "0")
    with pytest.raises(StoreError, match="421 Too many users; given up after 1 tries"):
        locate(door(b"421 Too many users\r\n"))


class FolderStore(AbstractFileSystem):
    """Writes in place into folders that must be there, over one connection, as SFTP, SMB and FTP do."""

    protocol = "folders"
    cachable = False
    renames_over: ClassVar[str] = "it"
    asked: ClassVar[threading.Lock] = threading.Lock()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        assert self.asked.acquire(blocking=False), "two at a time"
        try:
            return LocalFileSystem().info(path)
        finally:
            self.asked.release()

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return LocalFileSystem().ls(path, detail=detail)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        os.mkdir(path)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if self.renames_over == "it" or not os.path.exists(path2):
            os.rename(path1, path2)
        elif self.renames_over == "nothing":
            raise OSError(17, "File exists")

    def _rm(self, path: str) -> None:
        os.remove(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return open(path, mode)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setattr(FolderStore, "renames_over", "it")
    fsspec.register_implementation("folders", FolderStore, clobber=True)
    return locate(f"folders://{tmp_path}/out/new")


@pytest.mark.parametrize("over", ["it", "nothing", "nothing, in silence"])
def test_put_makes_folders_and_replaces_files_where_a_store_writes_in_place(
    over: str, folders: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderStore, "renames_over", over)
    for data in (b"first", b"second"):
        put(folders.child("a.bin"), data)
        assert read_bytes(folders.child("a.bin")) == data
    many_at_a_time(lambda name: put(folders.child(f"{name}/x"), b"x"), "abcdefgh")
    assert sorted(listed(folders).folders) == list("abcdefgh")
    assert [*listed(folders).files, *listed(folders.child("a")).files] == ["a.bin", "x"]


def test_what_dies_while_it_writes_in_place_spoils_nothing(folders: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folders.child("a.json"), b"old")
    written = []

    def killed(self: FolderStore, path: str, data: bytes) -> None:
        written.append(path)
        Path(path).write_bytes(data[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "pipe_file", killed)
        with pytest.raises(KeyboardInterrupt):
            put(folders.child("a.json"), b"new")
    assert read_bytes(folders.child("a.json")) == b"old"
    assert set(listed(folders).files) == {"a.json"}
    Path(written[0]).write_bytes(b"n")  # where nothing could be tidied up
    assert [shard.url for shard in list_shards([folders.url])] == [folders.child("a.json").url]


def test_a_refused_rename_is_told_and_leaves_nothing(folders: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: FolderStore, path1: str, path2: str) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(FolderStore, "mv", refused)
    with pytest.raises(OutputError, match=r"a\.json cannot be written \(Forbidden\)"):
        put(folders.child("a.json"), b"new")
    assert listed(folders).files == {}


@pytest.mark.parametrize("n_lost", [1, 2], ids=["comes back", "stays aside"])
def test_a_file_that_no_rename_replaces_is_never_lost(
    n_lost: int, folders: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store goes away between the two renames, and before the old file is back."""
    monkeypatch.setattr(FolderStore, "renames_over", "nothing")
    put(folders.child("a.json"), b"old")
    mv, n_moved = FolderStore.mv, 0

    def lost(self: FolderStore, path1: str, path2: str) -> None:
        nonlocal n_moved
        n_moved += not Path(path2).exists()
        if 2 <= n_moved < 2 + n_lost:
            raise PermissionError("Forbidden")
        mv(self, path1, path2)

    monkeypatch.setattr(FolderStore, "mv", lost)
    with pytest.raises(OutputError, match=r"a\.json cannot be written \(Forbidden\)"):
        put(folders.child("a.json"), b"new")
    there = {name.partition("-")[0]: read_bytes(folders.child(name)) for name in listed(folders).files}
    assert there == ({"a.json": b"old"} if n_lost == 1 else {".partial": b"new", ".replaced": b"old"})


def test_the_old_file_comes_back_where_a_store_refuses_twice_in_silence(
    folders: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folders.child("a.json"), b"old")
    mv = FolderStore.mv

    def refused(self: FolderStore, path1: str, path2: str) -> None:
        if ".partial-" not in path1:
            mv(self, path1, path2)

    monkeypatch.setattr(FolderStore, "mv", refused)
    with pytest.raises(OutputError, match=r"a\.json cannot be written \(the store has not renamed it"):
        put(folders.child("a.json"), b"new")
    assert {name: read_bytes(folders.child(name)) for name in listed(folders).files} == {"a.json": b"old"}


@pytest.mark.parametrize("base", ["local", "memory://put-test"])
def test_put_makes_the_file_and_its_folder(base: str, tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "new") if base == "local" else base)
    put(folder.child("a.bin"), b"first")
    put(folder.child("a.bin"), b"second")
    assert folder.fs.cat_file(folder.child("a.bin").path) == b"second"
    assert set(listed(folder).files) == {"a.bin"}


def test_a_failed_put_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = locate(str(tmp_path)).child("a.bin")
    put(target, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match=r"a\.bin cannot be written .*No space left"):
        put(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_files_get_the_rights_that_the_umask_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.umask", None)  # one for all threads: who asks for it sets it
    put(locate(str(tmp_path)).child("a"), b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert listed(locate(str(tmp_path / "none"))).files == {}


def test_removing_leaves_nothing_and_minds_nothing(tmp_path: Path) -> None:
    place = locate(str(tmp_path)).child("a")
    put(place, b"x")
    assert exists(place)
    remove(place)
    remove(place)
    assert not exists(place)


@given(
    st.binary(max_size=300),
    st.lists(
        st.tuples(st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]), st.integers(-50, 350), st.integers(0, 90))
    ),
)
def test_a_remote_file_reads_like_the_bytes_it_holds(data: bytes, moves: list[tuple[int, int, int]]) -> None:
    place = locate("memory://remote-file/a")
    place.fs.pipe_file(place.path, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_FIRST_BLOCK_BYTES", 7)
        patch.setattr(storage, "_LARGEST_BLOCK_BYTES", 20)
        file, plain = RemoteFile(place, len(data)), io.BytesIO(data)
        assert file.read(5) == plain.read(5)
        for whence, offset, n in moves:
            here = {io.SEEK_SET: 0, io.SEEK_CUR: plain.tell(), io.SEEK_END: len(data)}[whence]
            offset = max(offset, -here)
            assert file.seek(offset, whence) == plain.seek(offset, whence) == file.tell()
            assert file.read(n) == plain.read(n)


def test_blocks_double_as_long_as_they_follow_each_other() -> None:
    place = locate("memory://blocks/a")
    put(place, bytes(100))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_FIRST_BLOCK_BYTES", 4)
        patch.setattr(storage, "_LARGEST_BLOCK_BYTES", 16)
        patch.setattr(
            storage, "read_range", lambda fs, path, start, stop: asked.append((start, stop)) or bytes(stop - start)
        )
        file = RemoteFile(place, 100)
        while file.tell() < 50:
            file.read(1)
        file.seek(90)
        file.read(10)
    assert asked == [(0, 4), (4, 12), (12, 28), (28, 44), (44, 60), (90, 100)]


@pytest.fixture(scope="module", params=["local", "memory", "s3"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Some files in folders, on a disk, in memory and in an S3 store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    base = str(tmp_path_factory.mktemp("tree")) if request.param == "local" else f"{request.param}://bucket/tree"
    folder = locate(base)
    for name in ("a.json", "b.json", "x/a.json", "x/deep/a.json", "y/a.json", "y/b.txt", "z[1]/a.json"):
        put(folder.child(name), name.encode())
    return folder


def below(folder: Location, infos: list[storage.Info]) -> list[str]:
    return sorted(info["name"].removeprefix(folder.path.rstrip("/") + "/") for info in infos)


def test_everything_below_a_folder_is_found(tree: Location) -> None:
    names = ["a.json", "b.json", "x/a.json", "x/deep/a.json", "y/a.json", "y/b.txt", "z[1]/a.json"]
    assert below(tree, files_below(tree)) == names
    assert set(listed(tree).files) == {"a.json", "b.json"}
    assert listed(tree.child("none")).files == {}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.json", ["a.json", "b.json"]),
        ("?.json", ["a.json", "b.json"]),
        ("[b-z].json", ["b.json"]),
        ("*/a.json", ["x/a.json", "y/a.json", "z[1]/a.json"]),
        ("[xy]/?.json", ["x/a.json", "y/a.json"]),
        ("x/*/*", ["x/deep/a.json"]),
        ("**/a.json", ["a.json", "x/a.json", "x/deep/a.json", "y/a.json", "z[1]/a.json"]),
        ("y/**", ["y/a.json", "y/b.txt"]),
        ("none/*", []),
    ],
)
def test_globs_name_what_fsspecs_own_do(pattern: str, expected: list[str], tree: Location) -> None:
    found = files_below(*parted(tree.child(pattern)))
    assert below(tree, found) == expected
    own = tree.fs.glob(tree.child(pattern).path, detail=True)
    assert sorted(info["name"] for info in found) == sorted(n for n, info in own.items() if info["type"] == "file")


@pytest.fixture(scope="module")
def littered(tree: Location) -> Location:
    """A folder such as notebooks, Spark and a Mac leave it."""
    folder = Location(tree.fs, f"{tree.path}/.littered")  # above which names hide nothing
    for name in (
        *("a.json", "._a.json", "_b.json", ".ipynb_checkpoints/a.json", "_temporary/0/x.json"),
        *("d.json/part-0.json", "d.json/deep/part-1.json", "d.json/_SUCCESS", "d.json/_temporary/0/x.json"),
    ):
        put(folder.child(name), name.encode())
    return folder


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.json", "d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("*", ["a.json", "d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("*.json", ["a.json", "d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("**/*.json", ["a.json", "d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("**", ["a.json", "d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("**/d*", ["d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("**/part-?.json", ["d.json/deep/part-1.json", "d.json/part-0.json"]),
        ("[!x]*/part-?.json", ["d.json/part-0.json"]),
        ("?b.json", []),
        ("*/0/x.json", []),
        ("*/*/0/x.json", []),
        ("_*.json", ["_b.json"]),
        ("**/_*.json", ["_b.json"]),
        ("._?.json", ["._a.json"]),
        ("**/.ipynb*/*.json", [".ipynb_checkpoints/a.json"]),
        ("_temporary/*", ["_temporary/0/x.json"]),
        ("**/_temporary", ["_temporary/0/x.json", "d.json/_temporary/0/x.json"]),
        ("**/_temporary/**", ["_temporary/0/x.json", "d.json/_temporary/0/x.json"]),
        ("*/_temporary/*/x.json", ["d.json/_temporary/0/x.json"]),
    ],
)
def test_globs_pass_over_hidden_names_and_search_folders_as_folder_inputs_do(
    pattern: str, expected: list[str], littered: Location
) -> None:
    assert below(littered, files_below(*parted(littered.child(pattern)))) == expected


@pytest.mark.parametrize("pattern", ["**.json", "x**/a.json", "***/a.json"])
def test_stars_for_folders_are_no_part_of_a_name(pattern: str, tree: Location) -> None:
    with pytest.raises(SpecError, match=rf"{re.escape(pattern)}: \*\* stands for whole folders: write corpus/\*\*/\*"):
        parted(tree.child(pattern))


PAGES = {  # as Apache, Caddy and others write them
    "/in": """
        <a href="../">up</a> <A HREF="./">here</A> <a href="?C=N;O=D">by name</a> <a href="/other/z.jsonl">there</a>
        <a href="./a.jsonl">a</a> <a href="a.jsonl">a</a> <a href="./2026:b.jsonl">b</a> <a href="http_1.jsonl">c</a>
        <a class="file" href='/in/d&amp;d.jsonl'>d</a> <a href="https://{host}/in/it's.jsonl">e</a> <a href="./y/">y</a>
        """,
    "/in/y": '<a href="/in/">up</a> <a href="./">here</a> <a href="./http_2.jsonl">f</a>',
}


class PageHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = PAGES["/" + self.path.strip("/")].format(host=self.headers["Host"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_pages_of_all_servers_are_read() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), PageHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            for root in ("/in", "/in/", "//in"):
                folder = locate(f"http://127.0.0.1:{server.server_port}{root}")
                files = [name for name in below(folder, files_below(folder)) if "?" not in name]
                assert files == ["2026:b.jsonl", "a.jsonl", "d&d.jsonl", "http_1.jsonl", "it's.jsonl", "y/http_2.jsonl"]
                assert below(folder, files_below(*parted(folder.child("*/http_*")))) == ["y/http_2.jsonl"]
        finally:
            server.shutdown()


# --- a real S3 server behind a proxy that spoils its answers --------------------------------------------


@pytest.fixture(scope="module")
def store(s3: FaultProxy) -> Iterator[Location]:
    """Two files in a bucket, a client that leaves retrying to us, and waits of moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convbert.stores.FIRST_WAIT_S", 0.02)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        folder = locate("s3://bucket/faults")
        put(folder.child("a.jsonl"), LINES)
        sink = io.BytesIO()
        pq.write_table(pa.table({"n": range(3000)}), sink)
        put(folder.child("b.parquet"), sink.getvalue())
        yield folder
    fsspec.get_filesystem_class("s3").clear_instance_cache()


LINES = b"".join(json.dumps({"n": n, "text": "x" * (n % 50)}).encode() + b"\n" for n in range(3000))


def reads_lines(folder: Location) -> None:
    assert [line + b"\n" for _, line in jsonl.lines(folder.child("a.jsonl"), 0, None)] == LINES.splitlines(
        keepends=True
    )


def reads_parquet(folder: Location) -> None:
    shard = list_shards([folder.child("b.parquet").url])[0]
    with open_parquet(shard) as file:
        assert file.read()["n"].to_pylist() == list(range(3000))


def reads_bytes(folder: Location) -> None:
    assert read_bytes(folder.child("a.jsonl")) == LINES


def lists(folder: Location) -> None:
    assert set(listed(folder).files) == {"a.jsonl", "b.parquet"}


def lists_shards(folder: Location) -> None:
    urls = [folder.child(name).url for name in ("a.jsonl", "b.parquet")]
    assert [shard.url for shard in list_shards([folder.url])] == urls


def lists_a_glob(folder: Location) -> None:
    assert [shard.url for shard in list_shards([f"{folder.url}/*.jsonl"])] == [folder.child("a.jsonl").url]


def puts(folder: Location) -> None:
    put(folder.child("a.jsonl"), LINES)
    assert folder.fs.cat_file(folder.child("a.jsonl").path) == LINES


def removes(folder: Location) -> None:
    put(folder.child("c"), b"x")
    remove(folder.child("c"))
    assert not exists(folder.child("c"))


OPERATIONS = [
    (reads_lines, "GET"),
    (reads_parquet, "GET"),
    (reads_bytes, "HEAD"),
    (lists, "GET"),
    (lists_shards, "GET"),
    (lists_a_glob, "GET"),
    (puts, "PUT"),
    (removes, "DELETE"),
]
each_operation = pytest.mark.parametrize(
    ("operation", "method"), OPERATIONS, ids=[operation.__name__ for operation, _ in OPERATIONS]
)


@each_operation
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives_every_fault(
    operation: Callable[[Location], None], method: str, fault: str, store: Location, s3: FaultProxy
) -> None:
    with s3.next_faults(fault, method=method):
        operation(store)
    assert s3.counts == {fault: 1}


def test_a_stream_goes_on_where_it_was_cut(store: Location, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_BLOCK_BYTES", 1000)
    monkeypatch.setattr(storage, "_LARGEST_BLOCK_BYTES", 5000)
    with s3.faults(0.3, *(set(FAULTS) - {"time_out", "refused"})):
        reads_lines(store)
    assert sum(s3.counts.values()) >= 5


@each_operation
def test_what_the_store_refuses_fails_at_once(
    operation: Callable[[Location], None], method: str, store: Location, s3: FaultProxy
) -> None:
    with s3.next_faults("denied", "denied", method=method):
        with pytest.raises((StoreError, OutputError, SourceError, PermissionError)) as raised:
            operation(store)
        assert s3.counts == {"denied": 1}
    assert "\n" not in str(raised.value)
    assert operation is reads_bytes or store.url in str(raised.value)


def test_what_is_not_there_fails_at_once(store: Location, s3: FaultProxy) -> None:
    with s3.faults(0):
        with pytest.raises(FileNotFoundError):
            open_input(store.child("none"))
        with pytest.raises(OutputError, match="s3://no-bucket/a cannot be written"):
            put(locate("s3://no-bucket/a"), b"x")
        with pytest.raises(SourceError, match="no input at s3://no-bucket/in"):
            list_shards(["s3://no-bucket/in"])
    assert sum(s3.requests.values()) <= 6


def test_a_glob_costs_a_listing_a_level_and_one_for_each_folder_that_it_means(store: Location, s3: FaultProxy) -> None:
    for name in ("days/1/a.jsonl", "days/2/b.jsonl", "days/2/deep/c.jsonl", "days/other/d.jsonl"):
        put(store.child(name), b"{}\n")
    for pattern, n_shards, n_requests in (
        ("*.jsonl", 1, 1),
        ("days/?", 3, 3),
        ("days/**", 4, 1),
        ("days/*/*.jsonl", 3, 4),
        ("days/[12]", 3, 5),  # which is looked up as it stands, as a file and as a folder
    ):
        with s3.faults(0):
            assert len(list_shards([f"{store.url}/{pattern}"])) == n_shards
        assert (pattern, sum(s3.requests.values())) == (pattern, n_requests)
    store.fs.rm(store.child("days").path, recursive=True)  # other tests count what is there


def test_a_job_without_credentials_is_told_so_at_once(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    with pytest.raises(OutputError, match=r"cannot be written \(Unable to locate credentials\)"):
        put(Location(fs, "bucket/a"), b"x")


def test_patience_has_an_end(store: Location, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", "0.3")
    with (
        s3.faults(1, "slow_down"),
        pytest.raises(OutputError, match=r"reduce your request rate.*given up after \d+ tries"),
    ):
        put(store.child("never"), b"x")
    assert not exists(store.child("never"))


@pytest.mark.parametrize(
    ("method", "fault"), [("PUT", "error_500"), ("POST", "error_500"), ("POST", "reset_in_answer")]
)
def test_a_part_in_many_pieces_leaves_none_behind(method: str, fault: str, store: Location, s3: FaultProxy) -> None:
    """s3fs sends what is larger than 100 MB as an upload of several pieces, which is completed or dropped."""
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.retries = 1
    fs.pipe_file = partial(fs.pipe_file, chunksize=5 << 20)
    place, data = Location(fs, store.child(f"{method}-{fault}").path), bytes(range(256)) * (11 << 12)
    with s3.next_faults("", fault, method=method):
        put(place, data)
        assert s3.counts == {fault: 1}
        assert s3.requests["POST"] >= 3
    assert read_bytes(place) == data
    assert fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []
    remove(place)


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize(
    "versions", [[b"{}", b"[1, 2, 3]"], [b"[1, 2, 3]", b"[1]", b"{}"], [b"[1, 2]", b"[]", b"[3, 4]"]]
)
def test_a_file_is_read_in_one_version(
    versions: list[bytes], is_local: bool, store: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver puts longer and shorter manifests while this one reads."""
    place = (locate(str(tmp_path)) if is_local else store).child("replaced.json")
    first, *later = versions
    put(place, first)
    original = storage.read_range

    def replaced(*args: Any) -> bytes:
        if later:
            put(place, later.pop(0))
        return original(*args)

    monkeypatch.setattr(storage, "read_range", replaced)
    assert read_bytes(place) == versions[-1]


def test_looking_whether_an_output_can_be_written_leaves_nothing(tmp_path: Path, s3: FaultProxy) -> None:
    check_writable(locate(str(tmp_path / "new/deep")))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file cannot be written"):
        check_writable(locate(str(tmp_path / "file")))
    remote = locate("s3://bucket/writable")
    check_writable(remote)
    assert remote.fs.find(remote.path) == []
    with pytest.raises(OutputError, match="nobucket/out/.probe-.* cannot be written"):
        check_writable(locate("s3://nobucket/out"))


def test_a_folder_without_rights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**place: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # root writes everywhere

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"out cannot be written .*Permission denied.*: check the address, rights"):
        check_writable(locate(str(tmp_path / "out")))
