"""Inputs in, work units out: shards cut into row ranges or byte ranges, each with a name of its own.

A unit becomes one block and one part file. Its name depends on nothing but its own shard and the
job's recipe, so that finished parts are recognised whatever is added beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from convbert.checkpoints.location import change_mark
from convbert.stores import file_info, reason
from pipelines.errors import SourceError
from pipelines.storage import Location, files_below, files_matching, locate, redacted

PARQUET_SUFFIX = ".parquet"
SUFFIXES = (PARQUET_SUFFIX, *(name + packed for name in (".jsonl", ".json") for packed in ("", ".gz", ".zst")))

Range = tuple[int, "int | None"]


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

    @property
    def is_parquet(self) -> bool:
        """Parquet, or else JSON lines."""
        return self.url.endswith(PARQUET_SUFFIX)

    @property
    def stem(self) -> str:
        """File name without its suffixes, in characters that every store takes."""
        name = self.url.rsplit("/", 1)[-1]
        suffix = max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len)
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", name.removesuffix(suffix))[:80]

    def fingerprint(self, recipe: str) -> str:
        """Names this version of the shard, labelled by this recipe."""
        identity = json.dumps([self.url, self.size, self.mark, recipe])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """A contiguous piece of a shard: rows [start, stop) of Parquet, or the lines that begin in its bytes.

    Attributes:
        shard: the file it is part of.
        name: name of its part file, without suffix.
        start: first row or byte.
        stop: one past the last row or byte; None reads to the end.
    """

    shard: Shard
    name: str
    start: int
    stop: int | None


def list_shards(inputs: Iterable[str]) -> list[Shard]:
    """All shards behind files, folders and globs, each once, in the order of their URLs.

    Folders are searched with everything below them; names that begin with '_' or '.' are passed over.

    Raises:
        SourceError: an input with no shard behind it.
    """
    shards: dict[str, Shard] = {}
    for url in inputs:
        found = _shards_of(url)
        if not found:
            raise SourceError(f"no input at {redacted(url)}: give files, a folder or a glob of {', '.join(SUFFIXES)}")
        shards.update({shard.url: shard for shard in found})
    return [shards[url] for url in sorted(shards)]


def _shards_of(url: str) -> list[Shard]:
    fs, path = place = locate(url)
    try:
        if any(character in path for character in "*?["):
            infos = files_matching(place)
        elif (found := file_info(fs, path))["type"] == "directory":
            infos = [info for info in files_below(place) if _is_visible(info["name"], below=path)]
        elif path.endswith(SUFFIXES):
            infos = [{**found, "name": path}]
        else:
            raise SourceError(f"{redacted(url)} is no kind of file that can be read: give {', '.join(SUFFIXES)}")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(
            f"{redacted(url)} cannot be listed ({reason(error)}): check the address and credentials"
        ) from error
    return [
        Shard(Location(fs, info["name"]).url, int(info["size"]), change_mark(info))
        for info in infos
        if info["type"] == "file" and info["name"].endswith(SUFFIXES)
    ]


def _is_visible(name: str, *, below: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in name[len(below) :].split("/") if part)


def units_of(shard: Shard, ranges: Iterable[Range], *, recipe: str) -> list[Unit]:
    """The units of a shard that is cut at these ranges."""
    stem = f"part-{shard.stem}-{shard.fingerprint(recipe)}"
    return [Unit(shard, f"{stem}-{number:05d}", start, stop) for number, (start, stop) in enumerate(ranges)]


def row_ranges(group_rows: Iterable[int], unit_rows: int) -> list[Range]:
    """Row ranges of at most ``unit_rows``: small row groups together, large ones cut."""
    ranges: list[Range] = []
    start = stop = 0
    for n_rows in group_rows:
        if stop > start and stop - start + n_rows > unit_rows:
            ranges.append((start, stop))
            start = stop
        stop += n_rows
        while stop - start > unit_rows:
            ranges.append((start, start + unit_rows))
            start += unit_rows
    return [*ranges, (start, stop)] if stop > start else ranges


def byte_ranges(size: int, unit_bytes: float) -> list[Range]:
    """Equal byte ranges of at most about ``unit_bytes`` that cover a file."""
    n_units = max(1, math.ceil(size / max(1.0, unit_bytes)))
    return [(size * number // n_units, size * (number + 1) // n_units) for number in range(n_units)]
