from __future__ import annotations

import gzip
import io
import itertools
import random
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import jsonl
from pipelines.jsonl import LineError, lines, parse, sample_lines, survey
from pipelines.storage import locate, put


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def whole(path: Path) -> list[tuple[int, bytes]]:
    return list(lines(locate(str(path)), 0, None))


PACKERS = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_lines_come_with_their_offsets_in_the_plain_stream(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKERS[suffix](b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}\n{"c"'))
    assert whole(path) == [(0, b'{"a": 1}'), (17, b'{"b": 2}'), (26, b'{"c"')]


@pytest.mark.parametrize(("error", "passes"), [(OSError("damaged"), True), (OSError(116, "Stale file handle"), False)])
def test_a_sample_ends_at_damage_but_not_where_a_disk_fails(
    error: OSError, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the shard would be cut by another sample than the next time."""

    def failing(*_: object, **__: object) -> Iterator[tuple[int, bytes]]:
        yield 0, b"{}"
        raise error

    monkeypatch.setattr(jsonl, "lines", failing)
    source = locate(str(tmp_path / "a.jsonl.gz"))
    if passes:
        assert sample_lines(source) == ([b"{}"], [])
    else:
        with pytest.raises(OSError, match="Stale"):
            sample_lines(source)


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.data())
def test_cuts_anywhere_give_every_line_once(content: list[bytes], data: st.DataObject) -> None:
    body = b"\n".join(content)
    source = locate("memory://cuts/a.jsonl")
    put(source, body)
    edges = sorted({0, len(body), *data.draw(st.lists(st.integers(0, len(body)), max_size=6))})
    pieces = [piece for a, b in itertools.pairwise(edges) for piece in lines(source, a, b)]
    assert pieces == list(lines(source, 0, None))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_damaged_stream_gives_its_lines_and_then_an_error(suffix: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    body = b"".join(b'{"a": "%d"}\n' % rng.getrandbits(200) for _ in range(50_000))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKERS[suffix](body)[:-1000])
    seen = []
    with pytest.raises(OSError, match="Truncated|ended before the end-of-stream marker"):
        for _, line in lines(locate(str(path)), 0, None):
            seen.append(line)
    assert len(seen) > 1000
    assert seen == body.splitlines()[: len(seen)]


def test_nothing_is_lost_before_the_place_where_a_gzip_stream_ends(tmp_path: Path) -> None:
    rng = random.Random(0)
    packed = gzip.compress(b"".join(b'{"a": "%d"}\n' % rng.getrandbits(200) for _ in range(900)))[:-9000]
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    seen = []
    with pytest.raises(OSError, match="ended before the end-of-stream marker"):
        for _, line in lines(locate(str(tmp_path / "a.jsonl.gz")), 0, None):
            seen.append(line)
    there = zlib.decompressobj(31).decompress(packed)
    assert seen == there.splitlines()[: there.count(b"\n")]
    assert len(there) % (1 << 14) > 200


def test_zeros_behind_a_gzip_stream_are_no_damage(tmp_path: Path) -> None:
    """Copies in blocks are filled up with them."""
    body = b"".join(b'{"a": %d}\n' % number for number in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body[:100]) + gzip.compress(body[100:]) + bytes(700))
    assert [line for _, line in whole(tmp_path / "a.jsonl.gz")] == body.splitlines()


class Counted(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    n_read = 0

    def readinto(self, buffer: Any) -> int:
        n_bytes = super().readinto(buffer)
        self.n_read += n_bytes
        return n_bytes


def test_units_of_one_endless_line_do_not_each_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a JSON array is, where lines were asked for."""
    monkeypatch.setattr(jsonl, "_BUFFER_BYTES", 1000)
    body = b"[" + b"1," * 500_000 + b"1]"
    for start in range(0, 1_000_000, 100_000):
        file = Counted(body)
        monkeypatch.setattr(jsonl, "open_input", lambda source, file=file: file)
        found = list(lines(locate("a.json"), start, start + 100_000, longest=1000))
        assert found == ([(0, body[:1001])] if start == 0 else [])
        assert file.n_read < 103_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "no JSON: Expecting property name .* at column 2"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at 7"),
        (b"[1, 2]", "holds a list, not an object"),
        (b'"text"', "holds a string"),
        (b"null", "holds null"),
        (b"true", "holds a truth value"),
        (b"[" * 100_000, "no JSON that can be read"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no JSON that can be read"),
    ],
)
def test_a_line_without_a_record_says_why(line: bytes, message: str) -> None:
    with pytest.raises(LineError, match=message):
        parse(line)


def test_the_sample_is_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 100)
    assert sample_lines(locate(str(path)), 30) == ([b'{"a": 1}'] * 4, [b'{"a": 1}'] * 4)


def test_the_sample_ends_with_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it may lie gigabytes."""
    monkeypatch.setattr(jsonl, "_LONGEST_SAMPLE_BYTES", 8)
    (tmp_path / "a.jsonl").write_bytes(b"1234\n" + b"x" * 100 + b"\n5678\n")
    assert sample_lines(locate(str(tmp_path / "a.jsonl")), 1000) == ([b"1234", b"x" * 9], [])


def small_windows(patch: pytest.MonkeyPatch) -> list[int]:
    """Windows of 40 bytes and chunks of 10; where the windows begin that are read from now on."""
    starts: list[int] = []
    window = jsonl._window
    patch.setattr(jsonl, "_WINDOW_BYTES", 40)
    patch.setattr(jsonl, "_CHUNK_BYTES", 10)
    patch.setattr(jsonl, "_WINDOWS_APART_BYTES", 100)
    patch.setattr(jsonl, "_window", lambda file, start: starts.append(start) or window(file, start))
    return starts


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(1, 20))
def test_densities_cover_the_file_and_are_those_of_its_windows(lengths: list[int], unit_rows: int) -> None:
    body = b"".join(b"x" * length + b"\n" for length in lengths)
    source = locate("memory://densities/a.jsonl")
    put(source, body)
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch)
        pieces, some = survey(source, len(body), unit_rows)
        assert survey(source, len(body), unit_rows) == (pieces, some)
    assert set(some) <= set(body.split(b"\n")) - {b""}

    def chunk(start: int) -> Fraction:
        held = body[start : start + 10]
        return Fraction(sum(line != b"" for line in held.split(b"\n")[:-1]), len(held))

    def window(start: int) -> Fraction:
        return sum((chunk(begin) for begin in range(start, start + 40, 10)), Fraction()) / 4

    edges = [0, *itertools.accumulate(n_bytes for n_bytes, _ in pieces)]
    assert edges[-1] == len(body)
    for (start, stop), (_, density) in zip(itertools.pairwise(edges), pieces, strict=True):
        is_counted = stop - start <= 10 and density == chunk(start)
        assert is_counted or density == (window(start - 40) + window(stop)) / 2


def test_windows_crowd_where_the_lengths_of_lines_change(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = small_windows(monkeypatch)
    source = locate("memory://densities/b.jsonl")
    for body, n_windows in [(b"xxx\n" * 5000, 9), (b"x" * 19 + b"\n", 1), (b"\n" * 30 + b"xxx\n" * 5, 2)]:
        put(source, body)
        starts.clear()
        survey(source, len(body), 10)
        assert len(starts) == n_windows
    body = (b"x" * 19 + b"\n") * 330 + b"x\n" * 10_000
    put(source, body)
    starts.clear()
    survey(source, len(body), 10)
    assert 9 < len(starts) < 24
    assert min(start for start in starts if start > 6600) - max(start for start in starts if start <= 6600) < 70


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_longer_than_the_limit_is_cut_and_reading_goes_on(suffix: str, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = [b"1234", b"12345678", b"123456789", b" " * 9, b"x" * 3_000_000, b"ok"]
    path.write_bytes(PACKERS[suffix](b"\n".join(content) + end))
    offsets = list(itertools.accumulate((len(line) + 1 for line in content), initial=0))
    found = list(lines(locate(str(path)), 0, None, longest=8))
    assert found == [(offset, line[:9]) for offset, line in zip(offsets, content, strict=False)]
    if suffix == ".jsonl":  # a range may begin in the middle of a long line
        assert list(lines(locate(str(path)), offsets[4] + 5, None, longest=8)) == [(offsets[5], b"ok")]


def test_a_line_longer_than_the_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST_LINE_BYTES", 8)
    assert parse(b'{"a": 1}') == {"a": 1}
    with pytest.raises(LineError, match="the line is longer than 8 bytes: split the record"):
        parse(b'{"a": 10}')


def test_blanks_behind_the_last_line_are_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\r\n  ')
    place = locate(str(tmp_path / "a.jsonl"))
    assert list(lines(place, 0, None)) == [(0, b'{"a": 1}'), (9, b'{"a": 2}')]
