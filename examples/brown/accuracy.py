"""Labelled parts in, agreement with the corpus's own labels out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds


def count_right(words: Iterable[Any] | None, tokens: Sequence[str]) -> int:
    """How many tokens, ``start:end:class``, have their class on the word that begins where they do."""
    found = {word["start"]: word["label"] for word in words or ()}
    gold = (token.split(":") for token in tokens)
    return sum(found.get(int(start)) == tag for start, _, tag in gold)


def main(output: str) -> None:
    """Print how many tokens and how many sentences the job labelled as the corpus does."""
    columns = ["pos", "prose", "tokens", "kind"]
    parts = ds.dataset(sorted(Path(output).glob("part-*"))).to_table(columns)
    tokens = [sentence.split() for sentence in parts["tokens"].to_pylist()]
    words = pc.struct_field(parts["pos"], "entities").to_pylist()
    right = sum(count_right(*sentence) for sentence in zip(words, tokens, strict=True))
    n_tokens = sum(map(len, tokens))
    print(f"pos: accuracy {right / n_tokens:.4f} on {n_tokens:,} tokens")
    predicted = pc.struct_field(parts["prose"], "label")
    share = pc.mean(pc.equal(predicted, parts["kind"])).as_py()
    print(f"prose: accuracy {share:.4f} on {len(parts):,} sentences")


if __name__ == "__main__":
    main(sys.argv[1])
