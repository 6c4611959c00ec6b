"""URLs in, listings and bytes out, bytes into files in one stroke: local disk and any fsspec store."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import OutputError, SpecError

_THREADS = 32
_In = TypeVar("_In")
_Out = TypeVar("_Out")

FileSystem = Any  # fsspec.AbstractFileSystem, which has no types


class Location(NamedTuple):
    """A place on a file system."""

    fs: FileSystem
    path: str

    def child(self, name: str) -> Location:
        """The place of that name below this one."""
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    @property
    def url(self) -> str:
        """The place as users write it: a plain absolute path on local disk, else protocol://path."""
        return self.path if isinstance(self.fs, LocalFileSystem) else str(self.fs.unstrip_protocol(self.path))


def locate(url: str) -> Location:
    """The file system and path of a local path or fsspec URL.

    Raises:
        SpecError: a protocol that is unknown, or whose package is not installed.
    """
    try:
        fs, path = url_to_fs(os.path.expanduser(url))
    except (ImportError, ValueError) as error:
        raise SpecError(f"{redacted(url)} cannot be opened: {error}") from error
    return Location(fs, path)


def put(target: Location, data: bytes) -> None:
    """Make a file with this content in one stroke: readers see all of it or none.

    Local disk: a temporary neighbour, fsync, rename. Object stores: one put, no rename.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        if isinstance(target.fs, LocalFileSystem):
            _put_locally(Path(target.path), data)
        else:
            target.fs.pipe_file(target.path, data)
    except OSError as error:
        raise OutputError(
            f"{redacted(target.url)} cannot be written ({error}): check the address, rights and space"
        ) from error


def _put_locally(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def exists(place: Location) -> bool:
    """Whether there is a file, asked of the store itself."""
    place.fs.invalidate_cache()
    return bool(place.fs.exists(place.path))


def many_at_a_time(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Results in the order of the items; for small reads, which wait for the store and hardly work."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def names_in(folder: Location) -> dict[str, dict[str, Any]]:
    """File names directly in a folder with what the store says of each; empty where there is none."""
    folder.fs.invalidate_cache()
    try:
        infos = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return {}
    return {info["name"].rsplit("/", 1)[-1]: info for info in infos if info["type"] == "file"}


def redacted(text: str) -> str:
    """A URL without the user and password it may carry: what may stand in logs, errors and manifests."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)
