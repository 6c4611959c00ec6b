"""A folder or fsspec URL in, a local folder with the checkpoint's files out."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from convbert.errors import CheckpointError

CACHE_VARIABLE = "CONVBERT_CACHE"


def local_folder(folder_or_url: str | Path) -> Path:
    """The checkpoint's folder on this machine; a remote one is copied into the cache once a version.

    The cache lies in ``$CONVBERT_CACHE``, or ``~/.cache/convbert``. A version is told by the names,
    sizes and change marks (ETag, modification time) of the remote files.

    Raises:
        CheckpointError: nothing there, or it cannot be read.
    """
    if "://" not in str(folder_or_url):
        folder = Path(folder_or_url).expanduser()
        if not folder.is_dir():
            raise CheckpointError(
                f"no checkpoint folder at {folder_or_url}: give a folder with config.json and weights"
            )
        return folder
    fs, root = url_to_fs(str(folder_or_url))
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        return local_folder(root)
    try:
        files = [info for info in fs.ls(root, detail=True) if info["type"] == "file"]
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint folder at {folder_or_url}: check the address") from error
    if not files:
        raise CheckpointError(f"the folder {folder_or_url} is empty: give one with config.json and weights")
    marks = sorted((info["name"], info.get("size"), change_mark(info)) for info in files)
    version = hashlib.sha256(json.dumps([str(folder_or_url), marks]).encode()).hexdigest()[:32]
    cached = _cache_root() / version
    if not cached.is_dir():
        _copy(fs, [info["name"] for info in files], cached)
    return cached


def change_mark(info: dict[str, object]) -> str:
    """What a file system says about a file's version: ETag, generation or modification time, else nothing."""
    for key in ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "updated"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""


def _cache_root() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "convbert")


def _copy(fs: fsspec.AbstractFileSystem, names: list[str], target: Path) -> None:
    """Copy into a temporary neighbour, then rename: a reader never sees half a checkpoint."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / "checkpoint"
        partial.mkdir()
        for name in names:
            fs.get_file(name, str(partial / name.rsplit("/", 1)[-1]))
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: its copy is as good
                raise
