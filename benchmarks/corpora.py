"""Short real texts in, corpora of any number of rows and shards out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.inputs import texts

_SHARD_ROWS = 100_000


def short_texts(n_texts: int, n_words: int = 10) -> list[str]:
    """Stretches of the spam corpus's words, one after the other, and again from its beginning."""
    words = [word for text in texts(10**6) for word in text.split()]
    starts = range(0, len(words) - n_words, n_words)
    return [" ".join(words[start : start + n_words]) for start in (starts[n % len(starts)] for n in range(n_texts))]


def large_shards(folder: Path, n_rows: int) -> Path:
    """A folder of Parquet shards with so many rows in all, which share their bytes on the disk."""
    folder.mkdir()
    whole, rest = divmod(n_rows, _SHARD_ROWS)
    for number, rows in enumerate([_SHARD_ROWS] * whole + [rest] * (rest > 0)):
        shard = folder / f"shard-{number:05}.parquet"
        if number and rows == _SHARD_ROWS:
            os.link(folder / "shard-00000.parquet", shard)
        else:
            pq.write_table(pa.table({"text": short_texts(rows)}), shard, row_group_size=5000)
    return folder


def tiny_shards(folder: Path, n_shards: int, n_words: int = 10) -> Path:
    """A folder of JSONL shards of one row each."""
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in short_texts(1000, n_words)]
    for number in range(n_shards):
        (folder / f"shard-{number:06}.jsonl").write_text(lines[number % len(lines)], encoding="utf-8")
    return folder
