"""A labelled block in, one committed part file out, and a row of figures about it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import RunError
from pipelines.heads import Head
from pipelines.predict import N_TOKENS
from pipelines.read import WAYBILL
from pipelines.storage import Location, locate, open_input, put

Format = Literal["parquet", "arrow"]
SUFFIXES: dict[Format, str] = {"parquet": ".parquet", "arrow": ".arrow"}
_FIGURES = b"convbert.part"  # key of the schema metadata that carries a part's figures


@dataclass(frozen=True)
class Part:
    """Figures of one part file.

    Attributes:
        name: file name in the output folder.
        rows, failed: records in it, and those with an error.
        tokens: tokens computed for it.
        bytes: size of the file.
        labels: records by label, for each head.
        reasons: failed records by reason, the commonest.
    """

    name: str
    rows: int
    failed: int
    tokens: int
    bytes: int = 0
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def write_part(block: pa.Table, *, output: str, output_format: Format, heads: Mapping[str, Head]) -> pa.Table:
    """Write a block as the part that its waybill names, and return the part's figures as one row.

    Raises:
        RunError: rows of the unit were lost or doubled on the way.
        OutputError: the part cannot be written.
    """
    waybills = pc.unique(block[WAYBILL]).to_pylist()
    waybill = json.loads(waybills[0])
    if len(waybills) != 1 or len(block) != max(1, waybill["rows"]):
        raise RunError(f"unit {waybills} arrived with {len(block)} rows: units must stay whole on their way")
    columns = [name for name in block.column_names if name not in (WAYBILL, N_TOKENS, "error")]
    table = block.select([*columns, "error"]).slice(0, waybill["rows"])
    part = Part(
        name=waybill["part"] + SUFFIXES[output_format],
        rows=len(table),
        failed=len(table) - table["error"].null_count,
        tokens=pc.sum(block[N_TOKENS]).as_py() or 0,
        labels={name: head.counts(table[name].combine_chunks().drop_null()) for name, head in heads.items()},
        reasons=_commonest(table["error"]),
    )
    figures = {key: value for key, value in asdict(part).items() if key != "bytes"}
    data = serialised(table.replace_schema_metadata({_FIGURES: json.dumps(figures, sort_keys=True)}), output_format)
    put(locate(output).child(part.name), data)
    return pa.table({"part": [json.dumps(asdict(replace(part, bytes=len(data))))]})


def _commonest(errors: pa.ChunkedArray, n: int = 10) -> dict[str, int]:
    counts = pc.value_counts(errors.drop_null()).to_pylist()
    ordered = sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))
    return {entry["values"]: entry["counts"] for entry in ordered[:n]}


def serialised(table: pa.Table, output_format: Format) -> bytes:
    """The bytes of a part file: zstd-compressed Parquet, or an Arrow IPC file."""
    sink = io.BytesIO()
    if output_format == "parquet":
        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    return sink.getvalue()


def read_schema(part: Location) -> pa.Schema:
    """Schema of a part file, without its rows."""
    with open_input(part) as file:
        if part.path.endswith(SUFFIXES["parquet"]):
            return pq.read_schema(file)
        return pa.ipc.open_file(file).schema


def part_figures(part: Location, n_bytes: int) -> Part:
    """The figures that a part file carries about itself."""
    figures: dict[str, Any] = json.loads(read_schema(part).metadata[_FIGURES])
    return Part(**figures, bytes=n_bytes)


def parts_from(rows: pa.Table) -> list[Part]:
    """The figures in what ``write_part`` returned."""
    return [Part(**json.loads(text)) for text in rows["part"].to_pylist()]
