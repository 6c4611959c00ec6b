"""Inputs in, work units out: shards cut into row ranges or byte ranges, or small ones put together, each with a name.

A unit becomes one part file. Its name depends on nothing but its own shards and the job's recipe, so that
finished parts are recognised whatever is added beside them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, count, groupby, pairwise

from convbert.stores import FileSystem, change_mark, file_info, reason, retried
from pipelines.errors import SourceError
from pipelines.jsonl import is_unicode
from pipelines.storage import (
    LOST_LINK,
    Info,
    Location,
    files_below,
    is_named,
    locate,
    many_at_a_time,
    parted,
    redacted,
    url_like,
)

logger = logging.getLogger(__name__)

PARQUET_SUFFIX = ".parquet"
SUFFIXES = (PARQUET_SUFFIX, *(name + packed for name in (".jsonl", ".json") for packed in ("", ".gz", ".zst")))
_PLAIN = (".json", ".jsonl")  # not packed, so that 0 bytes are no damage
_ALIKE = re.compile(r"\.(jsonl?|ndjson|parq|parquet|pq)(\.\w+)?$", re.IGNORECASE)
_PART = re.compile(r"(?:_units/)?part-.*-([0-9a-f]{16})-(\d{5,})(?:\.[a-z]+)?", re.DOTALL)

Range = tuple[int, "int | None"]

MAX_UNIT_BYTES = 64 * 2**20  # of plain text: a unit must fit into a worker, however long its rows are

_SMALL_BYTES_A_ROW = 64  # a shard with fewer plain bytes for each row of a unit is small
_GROUP_BYTES_A_ROW = 256  # a group has about so many
_GROUP_SHARDS = 256  # and about so many shards, if they are tiny
_MOST_GROUP_ROWS = MAX_UNIT_BYTES // (4 * _GROUP_BYTES_A_ROW)  # however many a unit may have


@dataclass(frozen=True)
class Shard:
    """One input file in one version.

    Attributes:
        url: local path or fsspec URL.
        size: bytes.
        mark: what the store says of its version: ETag or modification time.
    """

    url: str
    size: int
    mark: str

    @property
    def location(self) -> Location:
        """Where it lies."""
        return locate(self.url)

    @cached_property
    def name(self) -> str:
        """Its URL without secrets: one that is changed makes no other shard."""
        return redacted(self.url)

    @property
    def is_parquet(self) -> bool:
        """Parquet, or else JSON lines."""
        return self.url.endswith(PARQUET_SUFFIX)

    @property
    def suffix(self) -> str:
        """The one of ``SUFFIXES`` that its name ends with."""
        return max((suffix for suffix in SUFFIXES if self.url.endswith(suffix)), key=len)

    @property
    def stem(self) -> str:
        """File name without its suffix, in characters that every store takes."""
        name = self.url.rsplit("/", 1)[-1]
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", redacted(name.removesuffix(self.suffix)))[:80]

    def fingerprint(self, recipe: str) -> str:
        """Names this version of the shard, labelled by this recipe."""
        identity = json.dumps([self.name, self.size, self.mark, recipe])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """What becomes one part: a contiguous piece of a shard, or several small shards whole.

    Attributes:
        name: name of its part file, without suffix.
        shards: the files that it is made from.
        start: first row (Parquet) or byte (JSONL: the lines that begin there or later).
        stop: one past the last row or byte; None reads to the end.
    """

    name: str
    shards: tuple[Shard, ...]
    start: int = 0
    stop: int | None = None

    @property
    def n_rows(self) -> int | None:
        """Rows that it must have, where that is known before reading."""
        return self.stop - self.start if self.stop is not None and self.shards[0].is_parquet else None


@dataclass(frozen=True)
class Stream:
    """A compressed shard, which can only be read from its beginning: a unit for each so many lines.

    How many units it has shows at its end; the part of the last one says so.

    Attributes:
        shard: the file.
        stem: names of its parts, without number and suffix.
        unit_rows: a unit takes so many of the next lines, or fewer that hold ``most_bytes``.
        unit_bytes: how much plain text that is, if all lines are as long as the first ones.
        present: numbers of the units whose parts are there already.
        most_bytes: plain text of a unit.
    """

    shard: Shard
    stem: str
    unit_rows: int
    unit_bytes: int
    present: frozenset[int] = frozenset()
    most_bytes: int = MAX_UNIT_BYTES

    @property
    def about_n_units(self) -> int:
        """An estimate of how many units have no part yet."""
        return max(1, plain_bytes(self.shard) // self.unit_bytes - len(self.present))

    def name(self, number: int) -> str:
        """Name of a unit's part, without suffix."""
        return part_name(self.stem, number)


Task = tuple[Unit, ...] | Stream
"""What is read in one go: neighbouring units of one shard, a group of small shards, or a compressed shard."""


def list_shards(inputs: Iterable[str]) -> list[Shard]:
    """All shards behind files, folders and globs, each once, in the order of their URLs without secrets.

    Folders are searched with everything below them, those that a glob means too; names that begin with '_' or '.' are
    passed over where the input does not spell them.

    Raises:
        SourceError: an input with no shard behind it, with a link that cannot be followed, or with a shard whose name
            is not UTF-8, whose size its store does not tell, or which has no bytes and a kind that cannot be empty.
        SpecError: a store whose files no URL names.
    """
    shards: dict[str, Shard] = {}
    for url in inputs:
        found = _shards_of(url)
        if not found:
            raise SourceError(f"no input at {redacted(url)}: give files, a folder or a glob of {', '.join(SUFFIXES)}")
        shards.update({shard.url: shard for shard in found})
    return sorted(shards.values(), key=lambda shard: (shard.name, shard.url))


def _shards_of(url: str) -> list[Shard]:
    fs, path = place = locate(url)
    try:
        folder, levels = _searched(place)
        if levels or (found := file_info(fs, path))["type"] == "directory" or _is_page(place):
            infos = files_below(folder, levels)
            _tell_of_others(url, infos)
        elif path.endswith(SUFFIXES):
            infos = [{**found, "name": path}]
        else:
            raise SourceError(f"{redacted(url)} is no kind of file that can be read: give {', '.join(SUFFIXES)}")
        infos = _with_sizes(fs, _readable(infos))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(
            f"{redacted(url)} cannot be listed ({reason(error)}): check the address and credentials"
        ) from error
    for info in infos:
        if info["type"] == LOST_LINK:
            raise SourceError(
                f"{info['name']} is a link to {info['destination']}, which is not there or holds the link itself: "
                "mend or remove it"
            )
    shards = [_shard(url, fs, info) for info in infos if info["type"] == "file"]
    for shard in shards:
        if shard.size == 0 and not shard.url.endswith(_PLAIN):
            raise SourceError(
                f"{shard.name} has 0 bytes, which no such file has: copy it again or leave it out of --input"
            )
    return shards


def _tell_of_others(url: str, infos: Sequence[Info]) -> None:
    """Warn of files that look like shards, but whose names end in another way, so that they are passed over."""
    others = [name for info in infos if _ALIKE.search(name := info["name"]) and not name.endswith(SUFFIXES)]
    if others:
        logger.warning(
            "%s: %d files such as %s are passed over, for shards end in %s",
            redacted(url),
            len(others),
            redacted(others[0]),
            ", ".join(SUFFIXES),
        )


def _searched(place: Location) -> tuple[Location, list[str]]:
    """The folder to search and the levels of the glob, none where the input is no glob.

    A name with a ``[`` is first looked up as it stands. A file that is really called ``a[1].jsonl`` does not fit itself
    as a glob, while one that is called ``a*.jsonl`` does.
    """
    return (place, []) if "[" in place.path and _is_there(place) else parted(place)


def _is_there(place: Location) -> bool:
    """Whether a store knows a file or folder; one that does not say may still be listed."""
    try:
        file_info(*place)
    except OSError:
        return False
    return True


def _is_page(place: Location) -> bool:
    """A web server's folder, which only its links tell from a file."""
    return not place.path.endswith(SUFFIXES) and retried(lambda: place.fs.isdir(place.path))


def _with_sizes(fs: FileSystem, infos: list[Info]) -> list[Info]:
    """What the store says of each file, asked one by one where a listing has no sizes, as on the web."""

    def asked(info: Info) -> Info:
        try:
            return {**file_info(fs, info["name"]), "name": info["name"]}
        except FileNotFoundError as error:
            raise OSError(f"{info['name']} is listed, but not there") from error

    return many_at_a_time(asked, infos) if any(info.get("size") is None for info in infos) else infos


def _readable(infos: list[Info]) -> list[Info]:
    """Shards and lost links among files, outputs of jobs included: a report.json beside its page is no shard."""
    reports = {info["name"].removesuffix("html") + "json" for info in infos if info["name"].endswith("/report.html")}
    infos = [info for info in infos if info["name"] not in reports]
    return [info for info in infos if info["type"] == LOST_LINK or info["name"].endswith(SUFFIXES)]


def would_read(url: str, files: Iterable[Location]) -> bool:
    """Whether an input takes one of these files as a shard, as soon as they are there."""
    folder, levels = _searched(locate(url))
    paths = {path for file in files for path in file.paths_from(folder)}
    return bool(
        _readable([{"name": f"/{path}", "type": "file"} for path in paths if is_named(path.split("/"), levels)])
    )


def shard_at(url: str) -> Shard:
    """The present version of one file.

    Raises:
        OSError: it is not there, or its store does not say.
        SourceError: its store does not tell its size.
    """
    fs, path = locate(url)
    return _shard(url, fs, {**file_info(fs, path), "name": path})


def _shard(given: str, fs: FileSystem, info: Info) -> Shard:
    name = info["name"]
    if not is_unicode(name):  # as Python reads other bytes in the names of local files
        raise SourceError(f"{name} has a name that is not UTF-8: rename it")
    if "::" in name:
        raise SourceError(f"{redacted(name)} has '::' in its name, which joins stores in addresses: rename it")
    if info.get("size") is None:
        raise SourceError(f"the server of {redacted(name)} does not tell its size: copy it to this machine or a store")
    return Shard(url_like(given, Location(fs, name)), int(info["size"]), change_mark(info))


def part_stem(shards: Sequence[Shard], recipe: str) -> str:
    """What the names of the parts of these shards begin with."""
    fingerprints = [shard.fingerprint(recipe) for shard in shards]
    one = fingerprints[0] if len(shards) == 1 else hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:16]
    return f"part-{shards[0].stem}-{one}"


def part_name(stem: str, number: int) -> str:
    """Name of a part, without suffix."""
    return f"{stem}-{number:05d}"


def unit_of(part: str) -> str:
    """Name of the unit that a part was made from."""
    return part.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def fingerprint_of(part: str) -> str:
    """The fingerprint in the name of a part; empty where it is no part's name."""
    found = _PART.fullmatch(part)
    return found[1] if found else ""


def number_of(part: str) -> int:
    """The number of the unit that a part was made from."""
    found = _PART.fullmatch(part)
    return int(found[2]) if found else -1


def units_of(shard: Shard, stem: str, stretches: Iterable[Iterable[Range]]) -> list[Task]:
    """The units of a shard that is cut at these ranges, a task for each stretch."""
    numbers = count()
    return [
        tuple(Unit(part_name(stem, next(numbers)), (shard,), start, stop) for start, stop in stretch)
        for stretch in stretches
    ]


def is_small(shard: Shard, unit_rows: int) -> bool:
    """Far below a unit, judged by its size alone: it shares one with others."""
    return 0 < plain_bytes(shard) < min(unit_rows, _MOST_GROUP_ROWS) * _SMALL_BYTES_A_ROW


def groups_of(shards: Iterable[Shard], unit_rows: int) -> list[tuple[Shard, ...]]:
    """Small shards, in the order of their URLs, in groups that make a unit each.

    Where a group ends depends on the shard that ends it: a hash of its name decides, the likelier the larger the
    shard. A shard that is added later changes the group that it falls into and, as a rule, no other.
    """
    groups: list[tuple[Shard, ...]] = []
    group: list[Shard] = []
    n_bytes = 0
    target = min(unit_rows, _MOST_GROUP_ROWS) * _GROUP_BYTES_A_ROW
    for shard in shards:
        group.append(shard)
        n_bytes += plain_bytes(shard)
        ends = _share(shard.name) < max(plain_bytes(shard) / target, 1 / _GROUP_SHARDS)
        if ends or n_bytes >= 4 * target or len(group) >= 4 * _GROUP_SHARDS:
            groups.append(tuple(group))
            group, n_bytes = [], 0
    return [*groups, tuple(group)] if group else groups


def plain_bytes(shard: Shard) -> int:
    """Bytes of its text, about."""
    return shard.size if shard.url.endswith(_PLAIN) else 4 * shard.size  # packed, as a rule


def _share(name: str) -> float:
    """A number in [0, 1) that the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56


def row_ranges(group_rows: Iterable[int], most_rows: Iterable[int]) -> list[Range]:
    """Row ranges: small row groups together, large ones cut.

    Args:
        group_rows: rows of each group.
        most_rows: how many a range may have that holds rows of the group.
    """
    ranges: list[Range] = []
    start = stop = most = 0
    for n_rows, own in zip(group_rows, most_rows, strict=True):
        if stop > start and stop - start + n_rows > min(most, own):
            ranges.append((start, stop))
            start = stop
        most = own if start == stop else min(most, own)
        stop += n_rows
        while stop - start > most:
            ranges.append((start, start + most))
            start += most
    return [*ranges, (start, stop)] if stop > start else ranges


def stretches(ranges: Iterable[Range], group_rows: Iterable[int]) -> list[list[Range]]:
    """Row ranges by the row group that each begins in: what to read in one go."""
    ends = list(accumulate(group_rows))
    return [list(its) for _, its in groupby(ranges, key=lambda range_: bisect_right(ends, range_[0]))]


def byte_ranges(pieces: Sequence[tuple[int, Fraction]], unit_rows: int) -> list[Range]:
    """Byte ranges of equally many rows, at most ``unit_rows``, of a file in pieces of so many bytes and rows a byte."""
    starts = [*accumulate((n_bytes for n_bytes, _ in pieces), initial=0)]
    rows = [*accumulate((n_bytes * density for n_bytes, density in pieces), initial=Fraction())]
    n_units = max(1, math.ceil(rows[-1] / unit_rows))
    cuts = [0]
    for row in (rows[-1] * number / n_units for number in range(1, n_units)):
        piece = bisect_right(rows, row) - 1
        cuts.append(starts[piece] + int((row - rows[piece]) / pieces[piece][1]))
    return list(pairwise([*cuts, starts[-1]]))
