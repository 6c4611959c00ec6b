"""A hook of mkdocs: a page that links to a file outside docs/, such as deploy/crontab, finds a copy on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)\)")
FOLDER = "repository"  # of the site
AS_TEXT = ".txt"  # so that Markdown among them is no page, and browsers show all of them


def on_files(files: Files, config: Any) -> Files:
    """Add each file and folder outside docs/ that a page links to; mkdocs itself complains of what is missing."""
    docs = Path(config.docs_dir)
    for page in list(files.documentation_pages()):
        for path in _outside(page.content_string, page.src_uri):
            source = docs.parent / path
            if source.exists() and files.get_file_from_path(f"{FOLDER}/{path}{AS_TEXT}") is None:
                files.append(File.generated(config, f"{FOLDER}/{path}{AS_TEXT}", content=_content(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to the site's copies."""
    here = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        path = _beyond(link, page.file.src_uri)
        if path is None or files.get_file_from_path(f"{FOLDER}/{path}{AS_TEXT}") is None:
            return link[0]
        return f"]({posixpath.relpath(f'{FOLDER}/{path}{AS_TEXT}', here or '.')})"

    return OUTSIDE.sub(inside, markdown)


def _content(source: Path) -> bytes:
    """A file's, or all files' of a folder, each under its name."""
    if source.is_file():
        return source.read_bytes()
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return b"\n".join(f"==> {path.relative_to(source)} <==\n".encode() + path.read_bytes() for path in files)


def _outside(markdown: str, src_uri: str) -> list[str]:
    found = (_beyond(link, src_uri) for link in OUTSIDE.finditer(markdown))
    return [path for path in found if path is not None]


def _beyond(link: re.Match[str], src_uri: str) -> str | None:
    """The path from the repository's top where a link leaves docs/, else None."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(src_uri), link["up"] + link["path"]))
    return None if path.startswith("docs/") else path
