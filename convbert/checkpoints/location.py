"""A folder or fsspec URL in, a local folder with the checkpoint's files out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import fsspec

from convbert.checkpoints.formats import FORMATS, OTHER_SUFFIXES, TF1_DATA
from convbert.errors import CheckpointError
from convbert.stores import (
    FileSystem,
    NoRangesError,
    change_mark,
    copy_file,
    info_of,
    open_store,
    reason,
    redacted,
    retried,
)

CACHE_VARIABLE = "CONVBERT_CACHE"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        folder: its files; those that were copied are of one version.
        source: what messages call it: the path or URL that was given, without secrets.
    """

    folder: Path
    source: str


def located(folder_or_url: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint as ``local_folder`` finds it now; one that was located before stays as it was.

    Who reads several of its files locates it once, lest they be of two versions.

    Raises:
        CheckpointError: as ``local_folder``.
    """
    if isinstance(folder_or_url, Checkpoint):
        return folder_or_url
    return Checkpoint(local_folder(folder_or_url), redacted(str(folder_or_url)))


def folder_to_write(folder: str | Path) -> Path:
    """A local folder, made where it is missing; ``~`` is the home.

    Raises:
        CheckpointError: a URL.
    """
    url = re.sub(r"^([A-Za-z][\w+.:-]+:/)(?!/)", r"\1/", str(folder))  # a Path makes one slash of two
    if "://" in url:
        raise CheckpointError(
            f"{redacted(url)} is a URL: save to a local folder, then copy that there with the store's own tools"
        )
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def swapped_in(folder: str | Path) -> Iterator[Path]:
    """A folder to write files into, which take their places in a local folder when all of them are written.

    A link there is replaced, not followed: in the Hugging Face cache its file is of other revisions, too.

    Raises:
        CheckpointError: a URL.
    """
    target = folder_to_write(folder)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as scratch:
        yield Path(scratch)
        for path in Path(scratch).iterdir():
            path.replace(target / path.name)


def local_folder(folder_or_url: str | Path) -> Path:
    """The checkpoint's folder on this machine; a remote one is copied into the cache once a version.

    The cache lies in ``$CONVBERT_CACHE``, or ``~/.cache/convbert``. A version is told by the names, sizes and change
    marks of the remote files: ETag, hash or modification time, or all that the listing says where it has none of them.

    Raises:
        CheckpointError: nothing there, or it cannot be read.
    """
    url = redacted(str(folder_or_url))
    if "://" not in str(folder_or_url):
        folder = Path(folder_or_url).expanduser()
        if not folder.is_dir():
            hub = f", or hf://{folder_or_url} for the Hugging Face hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", url) else ""
            raise CheckpointError(
                f"no checkpoint folder at {folder_or_url}: give a folder with config.json and weights{hub}"
            )
        return folder
    try:
        fs, root = open_store(str(folder_or_url))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{url} cannot be opened: {reason(error)}") from error
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        return local_folder(root)
    files = _files(fs, root, url)
    if not files:
        raise CheckpointError(f"the folder {url} is empty: give one with config.json and weights")
    version = hashlib.sha256(json.dumps([str(folder_or_url), _marks(files)]).encode()).hexdigest()[:32]
    cached = _cache_root() / version
    if not cached.is_dir():
        try:
            _copy(fs, _needed(files), cached, is_unchanged=lambda: _marks(_files(fs, root, url)) == _marks(files))
        except CheckpointError:
            raise
        except NoRangesError as error:
            raise CheckpointError(f"{url} cannot be read ({reason(error)}): copy the folder to this machine") from error
        except OSError as error:
            raise CheckpointError(
                f"{url} cannot be copied to {cached} ({reason(error)}): try again, "
                f"or set {CACHE_VARIABLE} to a folder that can be written and has room"
            ) from error
    return cached


def _files(fs: FileSystem, root: str, url: str) -> list[dict[str, Any]]:
    """What the store itself says of each file in a folder.

    An S3 folder may hold an empty object of its own name and a slash, and a web server's page is a list of links, of
    which some sort it and some lead nowhere: these are left out.
    """

    def ask() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        files = [info for info in fs.ls(root, detail=True) if info["type"] == "file"]
        found = [_with_size(fs, info) for info in files if _base(info)[:1] not in ("", "?")]
        return [info for info in found if info is not None]

    try:
        return retried(ask)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint folder at {url}: check the address") from error
    except OSError as error:
        raise CheckpointError(f"{url} cannot be listed ({reason(error)}): check address and rights") from error


def _with_size(fs: FileSystem, info: dict[str, Any]) -> dict[str, Any] | None:
    """A file of a listing, asked for by itself where that says nothing but its name; None where nothing is there."""
    if info.get("size") is not None:
        return info
    try:
        return info_of(fs, info["name"])
    except FileNotFoundError:
        return None


def _marks(files: list[dict[str, Any]]) -> list[list[Any]]:
    """What tells one version of the files from another."""
    return sorted(
        [info["name"], info.get("size"), change_mark(info) or json.dumps(info, default=str, sort_keys=True)]
        for info in files
    )


def path_beside(index: Path, name: object) -> Path:
    """The file that an index names, which must lie in the index's own folder.

    The cache of the Hugging Face hub is the one exception: the files of its ``snapshots/<revision>`` are
    links into ``blobs`` beside them.

    Raises:
        CheckpointError: no plain file name, a link that leads out of the folder, or no such file.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or PureWindowsPath(name).name != name:
        raise CheckpointError(f"{index} names {name!r}, which lies outside its folder: refused")
    path = index.parent / name
    try:
        is_there = path.is_file()
    except OSError:  # a name that no file can have, such as one of 300 characters
        is_there = False
    if not is_there:
        raise CheckpointError(f"{name} is missing from {index.parent}, but {index.name} names it: copy every file")
    home = index.parent.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append((home.parent.parent / "blobs").resolve())
    if path.resolve().parent not in homes:
        raise CheckpointError(f"{path}, which {index.name} names, is a link out of its folder: refused")
    return path


def _needed(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All files but weights that are never read because those of another format go before them."""
    bases = {_base(info) for info in files}
    for form in FORMATS:
        if {form.single_name, form.index_name} & bases:
            unread = (*(other.suffix for other in FORMATS if other is not form), *OTHER_SUFFIXES)
            return [
                info for info in files if not info["name"].endswith(unread) and not re.fullmatch(TF1_DATA, info["name"])
            ]
    return files


def _base(info: dict[str, Any]) -> str:
    return str(info["name"]).rsplit("/", 1)[-1]


def _cache_root() -> Path:
    try:
        return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "convbert")
    except RuntimeError as error:  # a container's user that has no name, without HOME
        raise CheckpointError(f"there is no home for copies of remote checkpoints: set {CACHE_VARIABLE}") from error


def _copy(fs: FileSystem, files: list[dict[str, Any]], target: Path, *, is_unchanged: Callable[[], bool]) -> None:
    """Copy into a temporary neighbour, then rename: a reader never sees half a checkpoint, nor a mix of two."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / "checkpoint"
        partial.mkdir()
        for info in files:
            base = _base(info)
            if base in ("", ".", "..") or PureWindowsPath(base).name != base:
                raise CheckpointError(f"a file of the checkpoint is named {base!r}: refused")
            if info.get("size") is None:
                raise CheckpointError(f"{redacted(info['name'])} has no known size: copy the folder to this machine")
            copy_file(fs, info["name"], int(info["size"]), partial / base)
        if not is_unchanged():
            raise OSError("its files changed while they were copied")
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: its copy is as good
                raise
