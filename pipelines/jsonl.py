"""A JSONL file in, its lines with their byte offsets out: plain, .gz or .zst, whole or a byte range."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.storage import Location, open_input

SAMPLE_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class LineError(ValueError):
    """A line that holds no record; the message says why."""


def compression_of(url: str) -> str | None:
    """Name of the compression that a file name tells, or None."""
    return next((name for suffix, name in _COMPRESSIONS.items() if url.endswith(suffix)), None)


def lines(source: Location, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines that begin in the bytes [start, stop), each with its offset in the plain stream.

    A line is everything up to a line feed; a carriage return before it and a leading byte-order mark
    are taken away.

    Raises:
        OSError: the file cannot be read, or its compressed stream is damaged.
        StoreError: its store stopped answering.
    """
    with open_input(source) as raw, _plain(raw, compression_of(source.path)) as stream:
        offset = start
        if start > 0:  # the line that holds byte start - 1 belongs to the unit before, unless it ends there
            stream.seek(start - 1)
            offset += len(stream.readline()) - 1
        for line in stream if stop is None or offset < stop else ():
            content = line.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else line
            if (content := content.rstrip(b"\r\n")) and not content.isspace():
                yield offset, content
            offset += len(line)
            if stop is not None and offset >= stop:
                break


def parse(line: bytes) -> dict[str, Any]:
    """The record that a line holds.

    Raises:
        LineError: no UTF-8, no JSON, or no object.
    """
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
    """What JSON calls a value."""
    kinds: dict[type, str] = {type(None): "null", bool: "a truth value", int: "a number", float: "a number"}
    kinds |= {str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]


def sample_lines(source: Location, n_bytes: int = SAMPLE_BYTES) -> list[bytes]:
    """The lines at the beginning of a file, about ``n_bytes`` of the plain stream.

    A stream that is damaged further on ends there.

    Raises:
        OSError: the file cannot be read, or not one line of its compressed stream.
    """
    sample: list[bytes] = []
    try:
        sample.extend(line for _, line in lines(source, 0, n_bytes))
    except OSError:
        if not sample:
            raise
    return sample


def _plain(raw: Any, compression: str | None) -> io.BufferedReader:
    if compression is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression), _BUFFER_BYTES)
