"""Calls to a store in, their results out: faults that pass are waited out, and ranges of bytes come whole."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from convbert.errors import InputError

logger = logging.getLogger(__name__)

PATIENCE_VARIABLE = "CONVBERT_STORE_PATIENCE_S"
DEFAULT_PATIENCE_S = 120.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
S3FS_TRIES = 1  # botocore tries each request 5 times already; with s3fs's own, a silent store was asked 125 times
COPY_BLOCK_BYTES = 32 << 20

FileSystem = Any  # fsspec.AbstractFileSystem, which has no types
_Out = TypeVar("_Out")
_RANDOM = random.SystemRandom()  # workers that share a seed must not come back in step

_MARKS = (  # what the file systems of fsspec call a version, a hash or a modification time
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "blob_id",  # hf
    "xet_hash",  # hf, of a bucket
    "LastModified",
    "last_modified",
    "Last-Modified",  # http
    "mtime",
    "modificationTime",  # webhdfs
    "modify",  # ftp
    "updated",
)
_PASSING_STATUS = {408, 425, 429}  # and all of a server's own errors but those
_LASTING_STATUS = {501, 505}
_PASSING_CODES = {  # S3's codes under a status that else lasts
    "BadDigest",  # a body that was damaged on its way
    "IncompleteBody",
    "NoSuchUpload",  # a completed upload whose answer was lost, completed once more
    "OperationAborted",
    "RequestTimeout",
}
_PASSING_NAMES = {  # errors of the stores' clients, which need not be installed
    "ChecksumError",  # gcsfs
    "ChunkedEncodingError",  # requests
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",  # aiohttp: the body ends too early
    "ConnectionError",  # botocore, requests
    "FlexibleChecksumError",  # botocore: a body that was damaged on its way
    "HTTPClientError",  # botocore: no answer, or none in time
    "IncompleteRead",  # http.client
    "IncompleteReadError",  # azure
    "NoValidConnectionsError",  # paramiko: refused
    "ResponseParserError",  # botocore: an answer that is no XML, or half of it
    "SMBConnectionClosed",  # smbprotocol
    "ServiceRequestError",  # azure
    "ServiceResponseError",  # azure
    "Timeout",  # requests
    "TransportError",  # google.auth, httpx
    "error_temp",  # ftplib: too many users
}
_LASTING_ERRORS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)


class ShorterError(OSError):
    """A file has become shorter than it was."""


class ShortReadError(OSError):
    """Fewer bytes than were asked for and are there."""


class NoRangesError(OSError):
    """More bytes than were asked for: a web server that serves whole files only."""


def open_store(url: str) -> tuple[FileSystem, str]:
    """The file system of a local path or fsspec URL, and the path in it.

    Raises:
        ValueError: a protocol that is unknown or whose package is not installed, or a URL without what it needs.
        OSError: as ``retried``, from a store that is connected to here, such as SFTP, FTP and SMB.
    """
    try:
        fs, path = retried(lambda: url_to_fs(url))
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, (ImportError, ValueError, TypeError)) and not may_pass(cause):
            raise ValueError(reason(cause)) from cause
        raise
    if "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        fs.retries = S3FS_TRIES
    return fs, path


def retried(call: Callable[[], _Out]) -> _Out:
    """The result of a call, which is made again while it fails with what may pass: throttling, resets, time-outs.

    The waits between calls double from half a second to 20, with jitter. From the first fault on, no call begins
    after ``$CONVBERT_STORE_PATIENCE_S`` (120) seconds.

    Raises:
        OSError: what does not pass, such as FileNotFoundError and PermissionError, at once; the rest when patience
            is at an end.
        InputError: the variable is no number.
    """
    patience = patience_s()
    first_fault = None
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            attempt += 1
            now = time.monotonic()
            first_fault = now if first_fault is None else first_fault
            wait = _RANDOM.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))
            if not may_pass(error):
                if _holds_secrets(error):  # else they would stand in the traceback of whatever is raised from it
                    raise _as_os_error(error) from None
                if isinstance(error, OSError):
                    raise  # from itself, its chain would have no end
                raise _as_os_error(error) from error
            if now + wait > first_fault + patience:
                raise OSError(f"{reason(error)}; given up after {attempt} tries in {now - first_fault:.0f} s") from (
                    None if _holds_secrets(error) else error
                )
            logger.log(logging.WARNING if attempt > 1 else logging.DEBUG, "%s; again in %.1f s", reason(error), wait)
        time.sleep(wait)


def patience_s() -> float:
    """Seconds after a first fault in which a call is tried again.

    Raises:
        InputError: the variable is no number.
    """
    value = os.environ.get(PATIENCE_VARIABLE) or DEFAULT_PATIENCE_S
    with suppress(ValueError):
        if (seconds := float(value)) >= 0:
            return seconds
    raise InputError(f"{PATIENCE_VARIABLE} ({value!r}) must be seconds, such as {DEFAULT_PATIENCE_S:g}")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    links = list(_chain(error))
    if any(_code(link) in _PASSING_CODES for link in links):
        return True
    if isinstance(error, _LASTING_ERRORS) or _is_wrong_host(error):
        return False
    for link in links:  # the outermost that tells
        status = _status(link)
        if status is not None:
            return status in _PASSING_STATUS or (status >= 500 and status not in _LASTING_STATUS)
        if isinstance(link, (ConnectionError, TimeoutError, asyncio.TimeoutError, EOFError, ShortReadError)):
            return True
        if {kind.__name__ for kind in type(link).__mro__} & _PASSING_NAMES:
            return True
    return False


def reason(error: BaseException) -> str:
    """An error in one line without secrets."""
    return redacted(" ".join(str(error).split())) or type(error).__name__


def redacted(text: str) -> str:
    """A text without passwords, signatures and keys: what may stand in logs, errors and manifests."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


_SECRET_NAMES = (
    r"X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig|AWSAccessKeyId|GoogleAccessId|(?:\w+_)?token"
    r"|(?:aws_)?(?:access_key_id|secret_access_key|session_token)|AccountKey|SharedAccessSignature|account_key|secret"
)
_OF_QUERIES = (
    r"[\w-]*(?:signature|credential|token|secret|password|passwd|(?:api|access|secret|subscription|auth)[_-]?key)"
    r"|key|auth|code|pwd|pass|sas|sign|jwt"
)
_SECRETS = (
    (re.compile(r"(?i)(https?://)[^/\s]+@"), r"\1***@"),  # over the web a user alone may be a token
    (re.compile(r"(\b\w+://[^/:\s]*:)[^/\s]+@"), r"\1***@"),  # CONTAINER@ACCOUNT and USER@HOST are no secrets
    (re.compile(r"(\b\w+://[^/:\s]*:)(?!\d*/|:|\*\*\*@)\S+@"), r"\1***@"),  # S3's keys have slashes; a port is none
    (re.compile(rf"(?i)([?&](?:{_OF_QUERIES}))=[^&\s;,'\"()<>]+"), r"\1=***"),
    (re.compile(rf"(?i)(?<=/)({_SECRET_NAMES})=[^/&\s;,'\"()<>]+"), r"\1=***"),  # a folder's name, and no more
    (re.compile(rf"(?i)(?<![\w/-])({_SECRET_NAMES})=[^&\s;,'\"()<>]+"), r"\1=***"),  # keys in base64 have slashes
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "***"),
    (re.compile(r"(?i)\b(Bearer) [\w.~+/=-]+"), r"\1 ***"),
)


def file_info(fs: FileSystem, path: str) -> dict[str, Any]:
    """What the store itself says of a file or folder now.

    Raises:
        OSError: as ``retried``; FileNotFoundError where there is nothing.
    """

    def ask() -> dict[str, Any]:
        fs.invalidate_cache()  # a process that runs for days sees what is new
        return info_of(fs, path)

    return retried(ask)


def change_mark(info: dict[str, object]) -> str:
    """What a file system says about a file's version, the same in a listing and alone, else nothing."""
    for key in _MARKS:
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""


def info_of(fs: FileSystem, path: str) -> dict[str, Any]:
    """``fs.info(path)``, asked once; here a FileNotFoundError means that there really is nothing.

    HTTPFileSystem raises it for whatever goes wrong, and has the true error as its cause, which is raised in its place.
    """
    try:
        found: dict[str, Any] = fs.info(path)
        return found
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or (_status(cause) in (None, 404) and not (may_pass(cause) or _is_wrong_host(cause))):
            raise
    raise cause


def read_range(fs: FileSystem, path: str, start: int, stop: int, *, size: int | None = None) -> bytes:
    """The bytes [start, stop) of a file, all of them.

    Args:
        size: of the whole file, given by who can use all of it. A web server without ranges sends the whole file in
            any case, which is then returned if ``start`` is 0.

    Raises:
        NoRangesError: the store sends more than was asked for.
        ShorterError: the file has become shorter.
        OSError: as ``retried``.
    """

    def read() -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=stop)
        if start == 0 and len(data) == size:
            return data
        if len(data) > stop - start:
            raise NoRangesError(
                f"{len(data)} bytes came where {stop - start} were asked for: the store serves no ranges"
            )
        if len(data) < stop - start:
            if int(file_info(fs, path)["size"]) < stop:
                raise ShorterError(f"it has become shorter than {stop} bytes since it was listed")
            raise ShortReadError(f"{len(data)} bytes came of {stop - start}")
        return data

    return retried(read) if stop > start else b""


def copy_file(fs: FileSystem, path: str, size: int, target: Path) -> None:
    """Copy a file of known size to local disk, block by block, or at once where a web server serves no ranges.

    Raises:
        OSError: as ``read_range``, or from the disk.
    """
    with target.open("wb") as file:
        while (start := file.tell()) < size:
            file.write(read_range(fs, path, start, min(size, start + COPY_BLOCK_BYTES), size=size))


def _chain(error: BaseException | None, *, suppressed: bool = False) -> Iterator[BaseException]:
    """An error and what it came from, if wanted what was suppressed, too: clients translate errors and keep the answer
    in the cause."""
    while error is not None:
        yield error
        is_hidden = error.__suppress_context__ and not suppressed
        error = error.__cause__ or (None if is_hidden else error.__context__)


def _status(error: BaseException) -> int | None:
    """HTTP status that a client's error carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        value = getattr(response, "status_code", None)
    own = (getattr(error, name, None) for name in ("status_code", "status", "code"))  # aiohttp warns of the last
    return next((int(found) for found in chain([value], own) if str(found).isdigit()), None)


def _code(error: BaseException) -> str | None:
    """S3's name of an error."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _is_wrong_host(error: BaseException) -> bool:
    """A certificate that does not fit, or a host that no name server knows."""
    return any(
        isinstance(link, ssl.SSLCertVerificationError)
        or (isinstance(link, socket.gaierror) and link.errno == socket.EAI_NONAME)
        for link in _chain(error, suppressed=True)  # httpcore hides it
    )


def _as_os_error(error: Exception) -> OSError:
    """A client's own error as the OSError that callers expect."""
    kinds = {404: FileNotFoundError, 401: PermissionError, 403: PermissionError}
    kind = next((kind for kind in _LASTING_ERRORS if isinstance(error, kind)), kinds.get(_status(error) or 0, OSError))
    return kind(reason(error))


def _holds_secrets(error: BaseException) -> bool:
    """Whether an error, or what it came from, says what may not stand in a log."""
    return any(redacted(text) != text for text in map(str, _chain(error)))
