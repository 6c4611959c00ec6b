"""URLs in, listings and bytes out, bytes into files in one stroke: local disk and any fsspec store.

Faults of a store that may pass are waited out (``convbert.stores.retried``); everything here does so.
"""

from __future__ import annotations

import html
import io
import os
import posixpath
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urljoin

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from convbert.stores import FileSystem, ShorterError, change_mark, file_info, open_store, read_range, reason, retried
from convbert.stores import redacted as redacted
from pipelines.errors import OutputError, SpecError, StoreError

_THREADS = 32
_TURN = threading.RLock()
_MOST_VERSIONS = 20  # of a file that others replace
_FIRST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 1 << 20, 16 << 20
_In = TypeVar("_In")
_Out = TypeVar("_Out")

Info = dict[str, Any]  # what a store says of a file or folder: at least name, type and size
_WHO_ASKS = ("user", "username", "password")  # options of a file system that make it no other one
_WILDCARD = re.compile(r"[*?[]")
_HREF = re.compile(r"""<a\s(?:[^>]*?\s)?href\s*=\s*(["'])(.*?)\1""", re.IGNORECASE | re.DOTALL)
LOST_LINK = "lost link"  # type of one on local disk that leads nowhere, or back to a folder in which it lies


class Location(NamedTuple):
    """A place on a file system."""

    fs: FileSystem
    path: str

    def child(self, name: str) -> Location:
        """The place of that name below this one."""
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        """On a disk of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def url(self) -> str:
        """The place as users write it: a plain absolute path on local disk, else protocol://path."""
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    def lies_in(self, folder: Location) -> bool:
        """Whether it is a file in a folder or below it, whoever asks the store and whatever links lead to its own."""
        its_store, its_folder = Location(self.fs, posixpath.dirname(self.path))._identity
        store, path = folder._identity
        return its_store == store and f"{its_folder}/".startswith(path.rstrip("/") + "/")

    def paths_from(self, folder: Location) -> set[str]:
        """Its paths from a folder on, as both are spelled and behind links; none where it does not lie below it."""
        (its_store, its_path), (store, path) = self._identity, folder._identity
        if its_store != store:
            return set()
        roots = {root.rstrip("/") + "/" for root in (folder.path, path)}
        return {name.removeprefix(root) for name in (self.path, its_path) for root in roots if name.startswith(root)}

    @property
    def _identity(self) -> tuple[Any, str]:
        """The same for all names of a folder: its store, and its path behind links on local disk."""
        if self.is_local:
            return LocalFileSystem, os.path.realpath(self.path)
        options = {name: value for name, value in self.fs.storage_options.items() if name not in _WHO_ASKS}
        return (type(self.fs), options), posixpath.normpath("/" + self.path.lstrip("/"))


def locate(url: str) -> Location:
    """The file system and path of a local path or fsspec URL; on local disk a path has one spelling.

    Raises:
        SpecError: a protocol that is unknown or whose package is not installed, or a URL without what it needs.
        StoreError: a store that is connected to here, such as SFTP, refuses or does not answer.
    """
    try:
        fs, path = open_store(os.path.expanduser(url))
    except ValueError as error:
        raise SpecError(f"{redacted(url)} cannot be opened: {reason(error)}") from error
    except OSError as error:
        raise StoreError(
            f"{redacted(url)} cannot be opened ({reason(error)}): check the address and credentials"
        ) from error
    return Location(fs, _plain(path) if isinstance(fs, LocalFileSystem) else path)


def _plain(path: str) -> str:
    """A local path without '//', '.' and '..', but where a '..' follows a link and so means a folder elsewhere."""
    plain = posixpath.normpath(re.sub("^//+", "/", path))  # which else would keep two slashes in front
    if ".." in path.split("/") and os.path.realpath(plain) != os.path.realpath(path):
        return path
    return plain


def url_like(given: str, place: Location) -> str:
    """The URL of a place in the store that a given URL names.

    Some file systems write their URLs without the host (SFTP, FTP, SMB, HDFS) or account (Azure): it comes from the
    given one.

    Raises:
        SpecError: no URL leads there.
    """
    fs, path = place
    scheme, _, rest = given.partition("://")
    authority, below = rest.partition("/")[0], path.lstrip("/")
    host = authority.rpartition("@")[2]
    in_container = below.partition("/")[2]  # CONTAINER@ACCOUNT/PATH is CONTAINER/PATH to its file system
    ends = (f"{host}/{below}", f"{authority}/{below}", f"{authority}/{in_container}")
    for url in (place.url, *(f"{scheme}://{end}" for end in ends)):
        if fs._get_kwargs_from_urls(url) == fs._get_kwargs_from_urls(given) and fs._strip_protocol(url) == path:
            return url
    raise SpecError(f"{redacted(given)}: its files have no URLs of their own: copy them to a store whose files do")


def absolute(url: str) -> str:
    """The same place for processes that work in another folder, as Ray's workers may."""
    place = locate(url)
    return place.path if place.is_local else url


def put(target: Location, data: bytes) -> None:
    """Make a file with this content in one stroke: readers see all of it or none.

    Local disk: a temporary neighbour, fsync, rename. Object stores: one put, no rename; where its answer is lost,
    it is put again, with the same bytes. Other stores, such as SFTP, write in place: a temporary neighbour, rename.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        if target.is_local:
            _put_locally(Path(target.path), data)
        elif _is_object_store(target.fs):
            retried(lambda: target.fs.pipe_file(target.path, data))
        else:
            with _in_turn(target.fs):
                retried(lambda: _put_beside(target, data))
    except OSError as error:
        raise OutputError(
            f"{redacted(target.url)} cannot be written ({reason(error)}): check the address, rights and space"
        ) from error


def _put_locally(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".partial-{uuid.uuid4().hex}"
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


def _put_beside(target: Location, data: bytes) -> None:
    """Write to a temporary neighbour, in a folder that is made if need be, and rename."""
    fs, path = target
    folder, token = fs._parent(path), uuid.uuid4().hex
    partial, replaced = (f"{folder.rstrip('/')}/.{what}-{token}" for what in ("partial", "replaced"))
    fs.invalidate_cache()
    _make_folder(fs, folder)
    try:
        fs.pipe_file(partial, data)
        _replace(fs, partial, path, replaced)
    except BaseException:
        with suppress(Exception):
            if not fs.exists(replaced):  # else nothing but these two is left of the file
                fs.rm_file(partial)
        raise


def _replace(fs: FileSystem, partial: str, path: str, replaced: str) -> None:
    """Rename over what may be there; some stores, such as SMB, rename over nothing: there it goes aside before."""
    try:
        fs.mv(partial, path)
    except Exception:
        if not (fs.exists(partial) and fs.exists(path)):
            raise
    if fs.exists(partial):  # WebHDFS has refused in silence
        fs.mv(path, replaced)
        try:
            fs.mv(partial, path)
            if fs.exists(partial):
                raise OSError("the store has not renamed it, and does not say why")
        except BaseException:
            fs.mv(replaced, path)
            raise
        with suppress(Exception):
            fs.rm_file(replaced)


def _make_folder(fs: FileSystem, folder: str) -> None:
    """Make a folder and those above it, which others may make at the same time."""
    if folder in ("", "/") or fs.isdir(folder):
        return
    _make_folder(fs, fs._parent(folder))
    try:
        fs.mkdir(folder, create_parents=False)
    except Exception:
        fs.invalidate_cache()
        if not fs.isdir(folder):
            raise


def exists(place: Location) -> bool:
    """Whether there is a file, asked of the store itself.

    Raises:
        OutputError: the store does not say.
    """
    try:
        with _in_turn(place.fs):
            file_info(place.fs, place.path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{redacted(place.url)} cannot be looked up ({reason(error)}): check the rights") from error
    return True


def remove(place: Location) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        with _in_turn(place.fs):
            retried(lambda: place.fs.rm_file(place.path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{redacted(place.url)} cannot be removed ({reason(error)}): check the rights") from error


def check_writable(folder: Location) -> None:
    """See that files can be made in a folder; nothing stays. A store takes a small one, which is removed again; on
    local disk it gets no name, and the folder is not made.

    Raises:
        OutputError: they cannot.
    """
    if folder.is_local:
        try:
            there = next(path for path in (Path(folder.path), *Path(folder.path).parents) if path.exists())
            with tempfile.TemporaryFile(dir=there):
                return
        except OSError as error:
            raise OutputError(
                f"{redacted(folder.url)} cannot be written ({reason(error)}): check the address, rights and space"
            ) from error
    probe = folder.child(f".probe-{uuid.uuid4().hex}")
    put(probe, b"")
    remove(probe)


def read_bytes(place: Location) -> bytes:
    """All of a file, in one version, whoever replaces it meanwhile.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with _in_turn(place.fs):
        info = file_info(place.fs, place.path)
        for _ in range(_MOST_VERSIONS):
            data = None
            with suppress(ShorterError):
                data = read_range(place.fs, place.path, 0, int(info["size"]))
            before, info = info, file_info(place.fs, place.path)
            if data is not None and (info["size"], change_mark(info)) == (before["size"], change_mark(before)):
                return data
    raise OSError(f"it was replaced {_MOST_VERSIONS} times while it was read")


def open_input(place: Location) -> BinaryIO:
    """A file to read and seek in, wherever it lies.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: the store refuses or does not answer, now or while the file is read.
        OSError: it lies on a local disk that cannot be read.
    """
    if place.is_local:
        return cast(BinaryIO, place.fs.open(place.path, "rb"))
    try:
        with _in_turn(place.fs):
            size = int(file_info(place.fs, place.path)["size"])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{redacted(place.url)} cannot be read ({reason(error)}): check the rights") from error
    return cast(BinaryIO, RemoteFile(place, size))


class RemoteFile(io.RawIOBase):
    """A file in a store, read in blocks: each comes whole or is asked for again, whatever happens on the way.

    Blocks that follow each other double from 1 to 16 MiB, so that little is read in vain and long runs take few
    requests. What goes wrong is a StoreError and no OSError, which would tell readers that the content is damaged.

    Args:
        place: where it lies.
        size: its length in bytes.
    """

    def __init__(self, place: Location, size: int) -> None:
        self._place = place
        self._size = size
        self._position = 0
        self._start = 0  # of the block
        self._block = memoryview(b"")
        self._ahead = _FIRST_BLOCK_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start, from here or from the end."""
        self._position = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; less only at the end of the file."""
        target = memoryview(buffer).cast("B")
        wanted = min(len(target), max(0, self._size - self._position))
        filled = 0
        while filled < wanted:
            inside = self._position - self._start
            if not 0 <= inside < len(self._block):
                self._fetch(wanted - filled)
                inside = 0
            piece = self._block[inside : inside + wanted - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def _fetch(self, wanted: int) -> None:
        """The block that begins at the position."""
        follows = len(self._block) > 0 and self._position == self._start + len(self._block)
        self._ahead = min(2 * self._ahead, _LARGEST_BLOCK_BYTES) if follows else _FIRST_BLOCK_BYTES
        stop = min(self._size, self._position + max(self._ahead, min(wanted, _LARGEST_BLOCK_BYTES)))
        try:
            with _in_turn(self._place.fs):
                block = read_range(self._place.fs, self._place.path, self._position, stop)
        except OSError as error:
            raise StoreError(
                f"{redacted(self._place.url)} cannot be read at byte {self._position} ({reason(error)}): "
                "start the same command again"
            ) from error
        self._start, self._block = self._position, memoryview(block)


def many_at_a_time(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Results in the order of the items; for small reads, which wait for the store and hardly work."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


class Listing(NamedTuple):
    """What lies directly in a folder.

    Attributes:
        files: their names, with what the store says of each.
        folders: their names.
    """

    files: dict[str, Info]
    folders: list[str]


def listed(folder: Location) -> Listing:
    """What lies directly in a folder; nothing where it is not there.

    Raises:
        OutputError: it cannot be listed.
    """
    try:
        entries = _entries(folder)
    except OSError as error:
        raise OutputError(f"{redacted(folder.url)} cannot be listed ({reason(error)}): check the rights") from error
    named = [(info["name"].rsplit("/", 1)[-1], info) for info in entries]
    return Listing(
        {name: info for name, info in named if info["type"] == "file"},
        [name for name, info in named if info["type"] == "directory"],
    )


def parted(pattern: Location) -> tuple[Location, list[str]]:
    """The folder that a glob begins with, and its levels: the names from the first one with wildcards on.

    Raises:
        SpecError: a ``**`` that is part of a name.
    """
    fs, path = pattern
    names = path.split("/")
    if any("**" in name and name != "**" for name in names):
        raise SpecError(f"{redacted(pattern.url)}: ** stands for whole folders: write corpus/**/*.jsonl")
    n_plain = next((n for n, name in enumerate(names) if _WILDCARD.search(name)), len(names))
    folder = Location(fs, "/".join(names[:n_plain]) or fs.root_marker)
    return folder, [name for name in names[n_plain:] if name]


def is_named(names: Sequence[str], levels: Sequence[str], *, or_above: bool = False) -> bool:
    """Whether a path is one that a glob means, or lies in a folder that it means.

    ``*``, ``?`` and ``[…]`` fit within a name, ``**`` any folders. Names that begin with '_' or '.' are hidden: they
    are meant only where the glob's own level begins so.

    Args:
        names: of the path, from the glob's folder on.
        levels: of the glob, as ``parted`` gives them; none mean all in the folder.
        or_above: also whether it is a folder on the way to what may be meant.
    """
    if not (names and levels):
        return (or_above or not levels) and all(map(_is_visible, names))
    (name, *names_below), (level, *levels_below) = names, levels
    if level != "**":
        return _fits(name, level) and is_named(names_below, levels_below, or_above=or_above)
    if is_named(names, levels_below, or_above=or_above):
        return True
    return _is_visible(name) and is_named(names_below, levels, or_above=or_above)


def _fits(name: str, level: str) -> bool:
    return fnmatchcase(name, level) and (_is_visible(name) or not _is_visible(level))


def _is_visible(name: str) -> bool:
    return not name.startswith(("_", "."))


def files_below(folder: Location, levels: Sequence[str] = ()) -> list[Info]:
    """All files in a folder and the folders in it that a glob's levels mean (``is_named``), without levels all that are
    visible; and the lost links among them, or that may hide more of them.

    Raises:
        OSError: a folder that cannot be listed; fsspec's own glob and walk leave it out in silence.
    """
    fs, root = folder
    found: list[Info] = [{"name": root, "type": "directory"}]
    lost: list[Info] = []
    for level in () if "**" in levels else levels:
        entries = _entries_of(fs, [info["name"] for info in found if info["type"] == "directory"])
        found = [info for info in entries if _fits(info["name"].rsplit("/", 1)[-1], level)]
        lost += [info for info in found if info["type"] == LOST_LINK]
    deeper = _all_below(fs, [info["name"] for info in found if info["type"] == "directory"])
    return [
        *lost,
        *(info for info in found if info["type"] == "file"),
        *(info for info in deeper if is_named(_names(info, root), levels, or_above=info["type"] == LOST_LINK)),
    ]


def _names(info: Info, root: str) -> list[str]:
    return [name for name in info["name"][len(root.rstrip("/")) :].split("/") if name]


def _all_below(fs: FileSystem, folders: list[str]) -> list[Info]:
    """All files and lost links in these folders and the folders in them."""
    if _is_object_store(fs):
        fs.invalidate_cache()
        found = many_at_a_time(lambda path: retried(lambda: fs.find(path, detail=True)), folders)
        return [info for infos in found for info in infos.values()]
    files: list[Info] = []
    while folders:
        entries = list(_entries_of(fs, folders))
        files += [info for info in entries if info["type"] in ("file", LOST_LINK)]
        folders = [info["name"] for info in entries if info["type"] == "directory"]
    return files


def _entries_of(fs: FileSystem, folders: list[str]) -> Iterator[Info]:
    """What lies directly in any of these folders."""
    for entries in many_at_a_time(lambda path: _entries(Location(fs, path)), folders):
        yield from entries


def _entries(folder: Location) -> list[Info]:
    """What lies directly in a folder; nothing where there is none."""

    def ask() -> list[Info]:
        folder.fs.invalidate_cache(folder.path)
        return [
            _followed(folder.fs, {**info, "name": info["name"].rstrip("/")})
            for info in (_links(*folder) if "https" in folder.fs.protocol else folder.fs.ls(folder.path, detail=True))
            if info["name"].rstrip("/") != folder.path.rstrip("/")  # some stores have a marker for the folder itself
        ]

    try:
        with _in_turn(folder.fs):
            return retried(ask)
    except FileNotFoundError:
        return []


def _links(fs: FileSystem, folder: str) -> list[Info]:
    """What a web server's page links to below itself; fsspec's listing loses ``http_1.jsonl``, and hides ``./a.jsonl``.

    Behind a proxy a page at https:// may link to http://: names begin as the folder's does.
    """
    page = fs.cat_file(folder).decode(errors="replace")
    root = folder.rstrip("/")
    base = urljoin(f"{root}/", ".")
    below = re.compile(rf"https?{re.escape(base[base.index(':') :])}(.+)").fullmatch
    links = (below(urljoin(base, html.unescape(link))) for _, link in _HREF.findall(page))
    names = sorted({f"{root}/{link[1]}" for link in links if link})
    return [{"name": name, "size": None, "type": "directory" if name.endswith("/") else "file"} for name in names]


def _followed(fs: FileSystem, info: Info) -> Info:
    """What a link on local disk leads to, under the link's name: fsspec lists links as neither file nor folder."""
    if not (isinstance(fs, LocalFileSystem) and info.get("islink")):
        return info
    try:
        found: Info = fs.info(info["name"])
    except OSError:
        return {**info, "type": LOST_LINK}
    return {**found, "type": LOST_LINK} if found["type"] == "directory" and _leads_back(info["name"]) else found


def _leads_back(link: str) -> bool:
    """Whether the folder that a link leads to holds one on the way to the link, so that following it has no end."""
    target = Path(link).resolve()
    return any(parent.resolve().is_relative_to(target) for parent in Path(link).parents)


def _is_object_store(fs: FileSystem) -> bool:
    """Whether it finds all below a folder in one listing of its own: it has no folders, and takes a file in one put."""
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is not AsyncFileSystem._find
    return type(fs).find is not AbstractFileSystem.find


def _in_turn(fs: FileSystem) -> AbstractContextManager[Any]:
    """Threads ask one after the other where they share one connection, as over SFTP, and would mix up answers."""
    is_shared = not (isinstance(fs, (LocalFileSystem, AsyncFileSystem)) or _is_object_store(fs))
    return _TURN if is_shared else nullcontext()
