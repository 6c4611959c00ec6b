"""A JSONL file in, its lines with their byte offsets out: plain, .gz or .zst, whole or a byte range."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.storage import Location, open_input

SAMPLE_BYTES = 1 << 18
LONGEST_LINE_BYTES = 256 << 20
_LONGEST_SAMPLE_BYTES = 16 << 20  # of a line, and of what is passed over: many shards are sampled at a time
_BUFFER_BYTES = 1 << 20
_UNPACKED_BUFFER_BYTES = 1 << 14  # what is lost before the place where a compressed stream is damaged
_WINDOW_BYTES = 1 << 20  # what a store gives in one request
_WINDOWS_APART_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 16  # of a window
_EVEN_WINDOWS, _MOST_WINDOWS = 8, 24
_SOME_LINES = 50
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
    with open_input(source) as raw, _plain(raw, compression_of(source.path)) as stream, _unpacking():
        offset = start
        if start > 0:  # the line that holds byte start - 1 belongs to the unit before, unless it ends there
            stream.seek(start - 1)
            offset += _skip_line(stream, stop and stop - start + 1) - 1
        while (stop is None or offset < stop) and (line := stream.readline(longest + 1)):
            is_whole = len(line) <= longest or line.endswith(b"\n")
            content = line.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else line
            if not is_whole:
                yield offset, line
            elif (content := content.rstrip(b"\r\n")) and not content.isspace():
                yield offset, content
            offset += len(line)
            if not is_whole:
                offset += _skip_line(stream, stop and stop - offset)


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
        raise LineError(f"the line is no JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
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
            end = end or (offset + n_bytes if offset >= n_bytes else None)
            if end and offset >= end:
                break
            (later if end else first).append(line)
            if len(line) > _LONGEST_SAMPLE_BYTES:  # the next may begin gigabytes behind it
                break
    except OSError as error:
        if not first or error.errno is not None:  # a disk that fails, not the data
            raise
    return first, later


def survey(source: Location, size: int, unit_rows: int) -> tuple[list[tuple[int, Fraction]], list[bytes]]:
    """How densely the lines of a plain file lie, and some lines from all over it.

    Only windows of 1 MiB are read, spread evenly over the file. What lies between two windows is taken to have the mean
    of their densities. Where one of them is more than twice as dense as the other, and their mean may be wrong by more
    than ``unit_rows`` lines, a further window is read in the middle. A file of any length takes up to 9 windows, one
    that is sorted by the length of its lines about 20, none more than 24.

    Returns:
        The file in pieces, in their order: the bytes of each, and about how many lines it has for each byte, blank ones
        not counted. And the lines.

    Raises:
        OSError: the file cannot be read.
        StoreError: its store stopped answering.
    """
    with open_input(source) as file:
        last, n_gaps = max(0, size - _WINDOW_BYTES), min(_EVEN_WINDOWS, 1 + size // _WINDOWS_APART_BYTES)
        windows: dict[int, list[Fraction]] = {}
        some: list[bytes] = []

        def look(start: int) -> None:
            window = _window(file, start)
            windows[start] = _counted(window)
            some.extend(_whole_lines(window))

        for start in sorted({last * number // n_gaps for number in range(n_gaps + 1)}):
            look(start)
        while len(windows) < _MOST_WINDOWS:
            n_lines, middle = max(_doubts(windows), default=(0, 0))
            if n_lines <= unit_rows:
                break
            look(middle)
    found: dict[int, Fraction] = {}  # by where the piece begins
    for start, stop in pairwise([*sorted(windows), size]):
        begins = range(start, stop, _CHUNK_BYTES)
        found |= dict(zip(begins, windows[start], strict=False))
        if start + _WINDOW_BYTES < stop:
            found[start + _WINDOW_BYTES] = (_mean(windows[start]) + _mean(windows[stop])) / 2
    return [(stop - start, found[start]) for start, stop in pairwise([*sorted(found), size])], some


def _window(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(_WINDOW_BYTES)


def _whole_lines(window: bytes) -> list[bytes]:
    """A few of the lines that begin and end in a window, evenly."""
    places = range(0, len(window), max(1, len(window) // _SOME_LINES))
    starts = dict.fromkeys(window.find(b"\n", place) + 1 for place in places)
    ends = {start: window.find(b"\n", start) for start in starts if start}
    return [line for start, end in ends.items() if end > start and (line := window[start:end]).strip()]


def some_of(lines: Sequence[bytes]) -> Sequence[bytes]:
    """A few of them, evenly: enough to see what kinds of values they hold."""
    return lines[:: max(1, len(lines) // _SOME_LINES)]


def _counted(window: bytes) -> list[Fraction]:
    """How many lines end in each chunk of a window, for each of its bytes."""
    chunks = [window[begin : begin + _CHUNK_BYTES] for begin in range(0, len(window), _CHUNK_BYTES)]
    return [Fraction(sum(map(bool, map(bytes.strip, its.split(b"\n")[:-1]))), len(its)) for its in chunks]


def _doubts(windows: dict[int, list[Fraction]]) -> Iterator[tuple[Fraction, int]]:
    """The gaps between windows of which one is more than twice as dense as the other.

    For each by how many lines the estimate may be wrong, and its middle.
    """
    for (start, one), (stop, other) in pairwise(sorted(windows.items())):
        fewer, more = sorted((_mean(one), _mean(other)))
        if more > 2 * fewer:
            yield (stop - start - _WINDOW_BYTES) * (more - fewer), (start + stop) // 2


def _mean(densities: list[Fraction]) -> Fraction:
    return sum(densities, Fraction()) / max(1, len(densities))


def unpacked_head(head: bytes, compression: str | None) -> bytes:
    """The plain bytes that the first bytes of a file hold, at most ``LONGEST_LINE_BYTES``."""
    if compression is None:
        return head
    plain = bytearray()
    with suppress(OSError), _plain(io.BytesIO(head), compression) as stream, _unpacking():
        while len(plain) < LONGEST_LINE_BYTES and (piece := stream.read1()):  # to where it ends, or is damaged
            plain += piece
    return bytes(plain)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can escape half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _skip_line(stream: io.BufferedReader, most: int | None) -> int:
    """Go on to the next line, or over ``most`` bytes at least if there is none; how many bytes lie before it."""
    n_bytes = 0
    while (most is None or n_bytes < most) and (piece := stream.readline(_BUFFER_BYTES)):
        n_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return n_bytes


def _plain(raw: Any, compression: str | None) -> io.BufferedReader:
    if compression is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)
    if compression == "gzip":  # Arrow's takes zeros behind the stream, which fill up a block, for damage
        return cast("io.BufferedReader", gzip.GzipFile(fileobj=raw))
    return io.BufferedReader(
        pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression), _UNPACKED_BUFFER_BYTES
    )


@contextmanager
def _unpacking() -> Iterator[None]:
    """Damage of a compressed stream is an OSError, whoever unpacks it."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from error
