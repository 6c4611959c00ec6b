"""A JSONL file in, its lines with their byte offsets out: plain, .gz or .zst, whole or a byte range."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pipelines.storage import Location, open_input

SAMPLE_BYTES = 1 << 18
LONGEST_LINE_BYTES = 256 << 20
_LONGEST_SAMPLE_BYTES = 16 << 20  # of a line, and of what is passed over: many shards are sampled at a time
_BUFFER_BYTES = 1 << 20
_UNPACKED_BUFFER_BYTES = 1 << 14  # what is lost before the place where a compressed stream is damaged
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class LineError(ValueError):
    """A line that holds no record; the message says why."""


def compression_of(url: str) -> str | None:
    """Name of the compression that a file name tells, or None."""
    return next((name for suffix, name in _COMPRESSIONS.items() if url.endswith(suffix)), None)


def lines(
    source: Location, start: int, stop: int | None, *, longest: int = LONGEST_LINE_BYTES
) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines that begin in the bytes [start, stop), each with its offset in the plain stream.

    A line is everything up to a line feed; a carriage return before it and a leading byte-order mark
    are taken away. Of a line of more than ``longest`` bytes only so many and one more are given, for which
    ``parse`` says why: a small compressed shard can hold a line that no memory does.

    Raises:
        OSError: the file cannot be read, or its compressed stream is damaged.
        StoreError: its store stopped answering.
    """
    with open_input(source) as raw, _plain(raw, compression_of(source.path)) as stream:
        offset = start
        if start > 0:  # the line that holds byte start - 1 belongs to the unit before, unless it ends there
            stream.seek(start - 1)
            offset += _skip_line(stream) - 1
        while (stop is None or offset < stop) and (line := stream.readline(longest + 1)):
            is_whole = len(line) <= longest or line.endswith(b"\n")
            content = line.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else line
            if not is_whole:
                yield offset, line
            elif (content := content.rstrip(b"\r\n")) and not content.isspace():
                yield offset, content
            offset += len(line) + (0 if is_whole else _skip_line(stream))


def parse(line: bytes) -> dict[str, Any]:
    """The record that a line holds.

    Raises:
        LineError: no UTF-8, no JSON, no object, or more than ``LONGEST_LINE_BYTES``.
    """
    if len(line) > LONGEST_LINE_BYTES:
        raise LineError(f"the line is longer than {LONGEST_LINE_BYTES:,} bytes: split the record")
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineError(f"the line is not UTF-8: byte 0x{line[error.start]:02x} at {error.start}") from error
    except json.JSONDecodeError as error:
        raise LineError(f"the line is no JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise LineError(f"the line is no JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise LineError(f"the line holds {json_kind(record)}, not an object")
    return record


def json_kind(value: object) -> str:
    """What JSON calls a value, and Python where JSON has none of its kind: a column of times may stand for texts."""
    kinds: dict[type, str] = {type(None): "null", bool: "a truth value", int: "a number", float: "a number"}
    kinds |= {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def sample_lines(source: Location, n_bytes: int = SAMPLE_BYTES) -> tuple[list[bytes], list[bytes]]:
    """The lines that begin in the first ``n_bytes`` of the plain stream, and those in about as many bytes behind them.

    A stream that is damaged further on ends there.

    Raises:
        OSError: the file cannot be read, or not one line of its compressed stream.
    """
    first: list[bytes] = []
    later: list[bytes] = []
    end = None  # of those later
    try:
        for offset, line in lines(source, 0, n_bytes + _LONGEST_SAMPLE_BYTES, longest=_LONGEST_SAMPLE_BYTES):
            if offset < n_bytes:
                first.append(line)
                continue
            end = end or offset + n_bytes
            if offset >= end:
                break
            later.append(line)
    except OSError as error:
        if not first or error.errno is not None:  # a disk that fails, not the data
            raise
    return first, later


def unpacked_head(head: bytes, compression: str | None) -> bytes:
    """The plain bytes that the first bytes of a file hold, at most ``LONGEST_LINE_BYTES``."""
    if compression is None:
        return head
    stream = pa.CompressedInputStream(pa.BufferReader(head), compression)
    plain = bytearray()
    with suppress(OSError):  # it ends in the middle of the stream, or is damaged there
        while len(plain) < LONGEST_LINE_BYTES and (piece := stream.read(_UNPACKED_BUFFER_BYTES)):
            plain += piece
    return bytes(plain)


def is_unicode(text: str) -> bool:
    """JSON can escape half of a surrogate pair, which UTF-8 cannot write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _skip_line(stream: io.BufferedReader) -> int:
    """Go on to the next line; how many bytes lie before it."""
    n_bytes = 0
    while piece := stream.readline(_BUFFER_BYTES):
        n_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return n_bytes


def _plain(raw: Any, compression: str | None) -> io.BufferedReader:
    if compression is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)
    return io.BufferedReader(
        pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression), _UNPACKED_BUFFER_BYTES
    )
