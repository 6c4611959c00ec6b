"""Which faults pass, how long they are waited out, and what may not stand in a message."""

from __future__ import annotations

import asyncio
import ftplib
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
from botocore.parsers import ResponseParserError
from fsspec.implementations.memory import MemoryFileSystem

from convbert import stores
from convbert.errors import InputError
from convbert.stores import (
    NoRangesError,
    ShortReadError,
    change_mark,
    copy_file,
    file_info,
    may_pass,
    open_store,
    read_range,
    reason,
    redacted,
    retried,
)


def s3_error(status: int, code: str) -> Exception:
    response: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "GetObject")


def caused_by(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def instead_of(hidden: BaseException, error: Exception) -> Exception:
    """As ``raise error from None`` leaves it, which httpcore does."""
    error.__context__, error.__suppress_context__ = hidden, True
    return error


class HttpError(Exception):
    """As gcsfs, azure and huggingface_hub raise them."""

    def __init__(self, **values: object) -> None:
        super().__init__("failed")
        vars(self).update(values)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        ConnectionRefusedError(111, "refused"),
        TimeoutError("late"),
        asyncio.TimeoutError(),
        EOFError(),
        ftplib.error_temp("421 too many users"),
        caused_by(ConnectionRefusedError(111, "refused"), ValueError("Failed to connect")),  # smbprotocol
        ShortReadError("3 bytes came of 4"),
        caused_by(s3_error(503, "SlowDown"), OSError(16, "Please reduce your request rate.")),
        caused_by(s3_error(500, "InternalError"), OSError(121, "internal")),
        caused_by(s3_error(400, "RequestTimeout"), TimeoutError("idle")),
        caused_by(s3_error(404, "NoSuchUpload"), FileNotFoundError("upload")),
        s3_error(429, "TooManyRequests"),
        boto.EndpointConnectionError(endpoint_url="http://x"),
        boto.ReadTimeoutError(endpoint_url="http://x"),
        ResponseParserError("no XML"),
        boto.FlexibleChecksumError(error_msg="Expected checksum a did not match"),
        aiohttp.ClientPayloadError("incomplete"),
        aiohttp.ServerDisconnectedError(),
        HttpError(code=503),
        HttpError(code="429"),
        HttpError(status_code=500),
        caused_by(socket.gaierror(socket.EAI_AGAIN, "try again"), ConnectionError("no name server")),
        instead_of(socket.gaierror(socket.EAI_AGAIN, "try again"), ConnectionError("no name server")),
    ],
    ids=repr,
)
def test_what_passes(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("bucket/key"),
        PermissionError("Forbidden"),
        OSError(28, "No space left on device"),
        OSError("Forbidden: bucket"),
        caused_by(s3_error(403, "InvalidAccessKeyId"), PermissionError("no such key id")),
        caused_by(s3_error(404, "NoSuchBucket"), FileNotFoundError("bucket")),
        caused_by(s3_error(416, "InvalidRange"), OSError(22, "range")),
        s3_error(400, "InvalidRequest"),
        s3_error(501, "NotImplemented"),
        boto.NoCredentialsError(),
        HttpError(code=401),
        ftplib.error_perm("530 Login incorrect"),
        HttpError(status_code=403),
        caused_by(ssl.SSLCertVerificationError("expired"), boto.SSLError(endpoint_url="https://x", error="expired")),
        caused_by(socket.gaierror(socket.EAI_NONAME, "unknown"), boto.EndpointConnectionError(endpoint_url="http://x")),
        instead_of(socket.gaierror(socket.EAI_NONAME, "unknown"), ConnectionError("unknown")),
        TypeError("a mistake of ours"),
        caused_by(ConnectionResetError(104, "reset"), PermissionError("Forbidden")),
    ],
    ids=repr,
)
def test_what_lasts(error: Exception) -> None:
    assert not may_pass(error)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(OSError, match=".") as raised:
        retried(fail)
    assert len(calls) == 1
    assert isinstance(error, OSError) <= (raised.value is error)
    assert raised.value.__cause__ is not raised.value  # who asks for what it came from would never end


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stores, "time", clock)
    return clock


def test_waits_double_with_jitter_until_patience_ends(clock: Clock) -> None:
    def fail() -> None:
        raise ConnectionResetError("reset\nby peer")

    with pytest.raises(OSError, match=r"^reset by peer; given up after \d+ tries in \d+ s$"):
        retried(fail)
    expected = [min(20.0, 0.5 * 2**n) for n in range(len(clock.sleeps))]
    assert all(0.5 * most <= slept <= most for slept, most in zip(clock.sleeps, expected, strict=True))
    assert 100 <= sum(clock.sleeps) <= 120


@pytest.mark.parametrize("value", ["2m", "nan", "-1"])
def test_patience_that_is_no_number_is_told_before_the_first_fault(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", value)
    with pytest.raises(InputError, match=rf"^CONVBERT_STORE_PATIENCE_S \('{value}'\) must be seconds, such as 120$"):
        retried(lambda: pytest.fail("it was called"))


def test_patience_counts_from_the_first_fault(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", "5")
    answers: list[Any] = [TimeoutError("late"), TimeoutError("late"), "whole"]

    def slow() -> str:
        clock.now += 300 if len(answers) == 3 else 0
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert retried(slow) == "whole"


def test_a_first_fault_is_no_warning(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [TimeoutError("first"), TimeoutError("second"), "whole"]

    def fail() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert retried(fail) == "whole"
    assert [message.partition(";")[0] for message in caplog.messages] == ["second"]


def test_s3_is_asked_again_by_botocore_alone() -> None:
    assert open_store("s3://bucket/key")[0].retries == 1


def test_a_version_is_what_the_store_calls_one() -> None:
    assert change_mark({"size": 3, "ETag": '"0fe"', "LastModified": "today"}) == "0fe"
    assert change_mark({"size": 3, "ETag": None, "mtime": 1.5}) == "1.5"
    assert change_mark({"size": 3}) == ""


class Lying(MemoryFileSystem):
    """A store that sends other lengths than it was asked for."""

    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 # apart from the real one's
    lengths: list[int]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end)
        return (data + b"more")[: self.lengths.pop(0)] if self.lengths else data


@pytest.fixture
def lying() -> Lying:
    fs = Lying()
    fs.pipe_file("/a", b"0123456789")
    return fs


def test_a_short_read_is_read_again(lying: Lying, clock: Clock) -> None:
    lying.lengths = [3, 0]
    assert read_range(lying, "/a", 2, 8) == b"234567"
    assert len(clock.sleeps) == 2


def test_a_file_that_shrank_and_a_store_without_ranges_are_told_at_once(lying: Lying, clock: Clock) -> None:
    lying.lengths = [9]
    with pytest.raises(NoRangesError, match="9 bytes came where 6 were asked for"):
        read_range(lying, "/a", 2, 8)
    lying.pipe_file("/a", b"0123")
    with pytest.raises(OSError, match="shorter than 8 bytes"):
        read_range(lying, "/a", 2, 8)
    assert clock.sleeps == []


def test_a_copy_is_made_of_whole_blocks(
    lying: Lying, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "COPY_BLOCK_BYTES", 4)
    lying.lengths = [4, 1, 4]
    copy_file(lying, "/a", 10, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


class WholeFiles(MemoryFileSystem):
    """A web server that serves no ranges."""

    cachable = False
    requests = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.requests += 1
        data: bytes = super().cat_file(path)
        return data


def test_a_copy_takes_the_whole_file_where_there_are_no_ranges(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "COPY_BLOCK_BYTES", 4)
    fs = WholeFiles()
    fs.pipe_file("/whole-files/a", b"0123456789")
    copy_file(fs, "/whole-files/a", 10, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert fs.requests == 1
    with pytest.raises(NoRangesError, match="10 bytes came where 4 were asked for"):
        copy_file(fs, "/whole-files/a", 9, tmp_path / "a")
    assert clock.sleeps == []


class HidingCauses(MemoryFileSystem):
    """As HTTPFileSystem: whatever goes wrong is a file that is not there."""

    cachable = False
    causes: list[Exception]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if self.causes:
            raise FileNotFoundError(path) from self.causes.pop(0)
        return {"name": path, "size": 3, "type": "file"}


@pytest.mark.parametrize(
    ("causes", "kind", "n_waits"),
    [
        ([HttpError(status=503), ConnectionResetError("reset")], None, 2),
        ([HttpError(status=404)], FileNotFoundError, 0),
        ([KeyError("a")], FileNotFoundError, 0),
        ([HttpError(status=403)], PermissionError, 0),
    ],
)
def test_what_a_missing_file_came_from_decides(
    causes: list[Exception], kind: type[Exception] | None, n_waits: int, clock: Clock
) -> None:
    fs = HidingCauses()
    fs.causes = list(causes)
    if kind is None:
        assert file_info(fs, "/a")["size"] == 3
    else:
        with pytest.raises(kind):
            file_info(fs, "/a")
    assert len(clock.sleeps) == n_waits


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("read s3://key:secret@bucket/a and b", "read s3://key:***@bucket/a and b"),
        ("sftp://me:p@ssw0rd@host/in/a@b", "sftp://me:***@host/in/a@b"),
        ("sftp://me@corp.com:pw@host:22/in", "sftp://me@corp.com:***@host:22/in"),
        ("simplecache::ftp://:p:w@host,ftp://me:pw@host", "simplecache::ftp://:***@host,ftp://me:***@host"),
        ("https://me:p@ssw0rd@host/a, HTTP://TOKEN@host", "https://***@host/a, HTTP://***@host"),
        ("abfss://in@me.dfs.core.windows.net/a", "abfss://in@me.dfs.core.windows.net/a"),
        ("sftp://me@host:22/in/a@b", "sftp://me@host:22/in/a@b"),
        ("/home/a@b/c", "/home/a@b/c"),
        (
            "https://h/a?X-Amz-Algorithm=A&X-Amz-Credential=AK%2Fus&X-Amz-Signature=0fe#x",
            "https://h/a?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("url='https://a.blob/c/b?sv=2&sig=a%2Fb%3D&se=3'", "url='https://a.blob/c/b?sv=2&sig=***&se=3'"),
        ("AccountName=me;AccountKey=Eby8==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("https://h/a?X-Goog-Signature=12ab", "https://h/a?X-Goog-Signature=***"),
        ("https://h/a?access_token=ya29.x", "https://h/a?access_token=***"),
        ("https://h/a?api-key=x&file=a.jsonl", "https://h/a?api-key=***&file=a.jsonl"),
        ("https://h/a?x-api-key=x&subscription-key=y", "https://h/a?x-api-key=***&subscription-key=***"),
        ("https://h/a?sas=x&pass=y&jwt=z", "https://h/a?sas=***&pass=***&jwt=***"),
        ("https://h/a?passage=2&design=3", "https://h/a?passage=2&design=3"),
        ("Authorization: Bearer ya29.a0-x_y", "Authorization: Bearer ***"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key *** is unknown"),
        ("'aws_secret_access_key=wJalrXU/x'", "'aws_secret_access_key=***'"),
        ("AccountName=me;AccountKey=Eby8/vdM+0==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("s3://b/token=a/sig=b/mon.jsonl", "s3://b/token=***/sig=***/mon.jsonl"),
        ("s3://bucket/design=2/part?partition=sig", "s3://bucket/design=2/part?partition=sig"),
    ],
)
def test_secrets_do_not_stand_in_texts(text: str, shown: str) -> None:
    assert redacted(text) == redacted(shown) == shown


@pytest.mark.timeout(60)
def test_a_text_of_a_million_letters_is_looked_through_once() -> None:
    """By a pattern that starts anew at each letter it would take hours."""
    assert redacted("s3://me:secret@host/" + "long" * 250_000) == "s3://me:***@host/" + "long" * 250_000


def test_a_reason_is_one_line() -> None:
    assert reason(OSError("400, message:\n  s3://a:b@c")) == "400, message: s3://a:***@c"
    assert reason(asyncio.TimeoutError()) == "TimeoutError"


def test_what_an_error_arose_from_tells_too() -> None:
    """Also where the client says nothing of it."""
    with pytest.raises(RuntimeError) as told:
        try:
            raise ConnectionResetError(104, "reset")
        finally:
            raise RuntimeError("cannot get it")
    assert may_pass(told.value)
