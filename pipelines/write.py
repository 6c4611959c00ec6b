"""A labelled block in, one committed part file out, and a row of figures about it."""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.envelope import Envelope
from pipelines.errors import LOST_REST, RunError
from pipelines.figures import Figures, lengths
from pipelines.heads import Head
from pipelines.partitions import INDEX_FOLDER, INDEX_SUFFIX, Partitioning
from pipelines.results import N_COPIED, N_TOKENS
from pipelines.storage import Location, locate, many_at_a_time, open_input, put, redacted
from pipelines.units import unit_of

Format = Literal["parquet", "arrow"]
SUFFIXES: dict[Format, str] = {"parquet": ".parquet", "arrow": ".arrow"}
MOST_REASONS = 10  # why records failed, in the figures of a part
MOST_ID_CHARACTERS = 200  # of an example in the figures
_QUOTED = re.compile(r" holds .{1,40}, not ")  # a value, cut to 40 characters (pipelines.values)
_NUMBER = re.compile(r"0x[0-9a-f]+|(?<![\w-])\d+\b")  # the 8 of UTF-8 is none
_PART = b"convbert.part"  # keys of the schema metadata that carry a part's figures
_FIGURES = b"convbert.figures"
_OF_THIS_RUN = ("bytes", "busy_s", "stages_s")  # not kept in the file, which is the same whenever its unit is done
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, TypeError)
"""What a damaged or foreign file makes of reading a part; a store that does not answer is none of them (StoreError)."""


@dataclass(frozen=True)
class Part:
    """Figures of one part file.

    Attributes:
        name: file name in the output folder; with --partition-by that of the unit's index, below the folder.
        rows, failed: records in it, and those with an error.
        tokens: tokens of its records.
        bytes: size of the file, or of the files that the index names.
        labels: records by label, for each head.
        reasons: failed records by reason, the commonest; numbers in a reason are written as #.
        examples: id of a record for each of these reasons.
        is_last: no further unit of the same compressed shard follows.
        n_cut: shards of whose rest nothing can be read, and one error stands for all of its records.
        copied_tokens: tokens of records that equal another of the unit, which was computed in their place.
        files: with --partition-by the files that hold the rows, each with its rows and bytes.
        busy_s: seconds that a model actor took for it; not kept in the file, which is the same whenever its unit is
            done.
        stages_s: seconds of each stage, and of the actor's waiting; kept neither in the file nor in the manifest.
        figures: histograms of its records (pipelines.figures) as text; kept in the file, not in the manifest.
    """

    name: str
    rows: int
    failed: int
    tokens: int
    bytes: int = 0
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    is_last: bool = True
    n_cut: int = 0
    copied_tokens: int = 0
    files: dict[str, list[int]] = field(default_factory=dict)
    busy_s: float = field(default=0.0, compare=False)  # differs where the same unit is done again
    stages_s: dict[str, float] = field(default_factory=dict, compare=False)
    figures: str = field(default="", compare=False)


def write_part(
    envelope: Envelope,
    *,
    output: str,
    output_format: Format,
    heads: Mapping[str, Head],
    partitioning: Partitioning | None = None,
) -> Part:
    """Write a labelled block as the part that its envelope names: a file, or files and at last their index.

    Raises:
        RunError: rows of the unit were lost or doubled on the way.
        OutputError: the part cannot be written.
    """
    started = time.perf_counter()
    block = envelope.block
    if len(block) != envelope.n_rows:
        raise RunError(f"unit {envelope.part} arrived with {len(block)} of its {envelope.n_rows} rows")
    columns = [name for name in block.column_names if name not in (N_TOKENS, N_COPIED, "error")]
    table = block.select([*columns, "error"])
    part = _part_of(table, envelope, output_format, heads)
    if partitioning:
        part = _put_files(table, part, locate(output), output_format, partitioning)
        table, output_format = table.schema.empty_table(), "arrow"  # the index: figures, and the unit's columns
    own = {key: value for key, value in asdict(part).items() if key not in (*_OF_THIS_RUN, "figures")}
    metadata = {_PART: json.dumps(own, sort_keys=True), _FIGURES: part.figures}
    data = serialised(table.replace_schema_metadata(metadata), output_format)
    put(locate(output).child(part.name), data)
    return replace(
        part,
        bytes=_n_bytes(part, len(data)),
        busy_s=round(envelope.busy_s, 3),
        stages_s={
            "reading": envelope.read_s,
            "tokenising": envelope.encode_s,
            "model": envelope.busy_s,
            "decoding": envelope.decode_s,
            "writing": time.perf_counter() - started,
            "waiting": envelope.waited_s,
        },
    )


def _part_of(table: pa.Table, envelope: Envelope, output_format: Format, heads: Mapping[str, Head]) -> Part:
    """The part whose rows are this table: all of its figures but the size of its file and the times of its stages."""
    block = envelope.block
    reasons, examples = _commonest(table)
    found = {name: table[name].combine_chunks().drop_null() for name in heads}
    return Part(
        name=envelope.part + SUFFIXES[output_format],
        rows=len(table),
        failed=len(table) - table["error"].null_count,
        tokens=pc.sum(block[N_TOKENS]).as_py() or 0,
        copied_tokens=pc.sum(block[N_COPIED]).as_py() or 0,
        is_last=envelope.is_last,
        n_cut=pc.sum(pc.starts_with(table["error"], LOST_REST)).as_py() or 0,
        labels={name: head.counts(found[name]) for name, head in heads.items()},
        reasons=reasons,
        examples=examples,
        figures=Figures(
            lengths(block[N_TOKENS].filter(pc.is_null(table["error"]))),
            {name: head.scores(found[name]) for name, head in heads.items()},
        ).to_text(),
    )


def _put_files(table: pa.Table, part: Part, output: Location, output_format: Format, by: Partitioning) -> Part:
    """Put a file for each value; the part is there only when its index is."""
    unit, suffix = unit_of(part.name), SUFFIXES[output_format]

    def put_one(entry: tuple[str, pa.Table]) -> tuple[str, list[int]]:
        name, rows = entry
        data = serialised(rows, output_format)
        put(output.child(name + suffix), data)
        return name + suffix, [len(rows), len(data)]

    files = dict(many_at_a_time(put_one, by.split(table, unit)))
    if sum(rows for rows, _ in files.values()) != part.rows:
        raise RunError(
            f"the files of unit {unit} hold {sum(rows for rows, _ in files.values())} of its {part.rows} rows"
        )
    return replace(part, name=f"{INDEX_FOLDER}/{unit}{INDEX_SUFFIX}", files=files)


def _n_bytes(part: Part, size: int) -> int:
    return sum(n_bytes for _, n_bytes in part.files.values()) if is_index(part.name) else size


def files_of(part: Part) -> list[str]:
    """The files that hold a part's rows."""
    return list(part.files) if is_index(part.name) else [part.name]


def is_index(name: str) -> bool:
    """Whether a part is the index of its unit's files."""
    return name.startswith(INDEX_FOLDER + "/")


def _commonest(table: pa.Table) -> tuple[dict[str, int], dict[str, str]]:
    """The commonest reasons, without numbers and values of records, with how often each occurs and an id where it does.

    They go where others read who may not read the corpus: manifest, report, logs.
    """
    failed = table.select(["id", "error"]).filter(pc.is_valid(table["error"]))
    reasons = [_NUMBER.sub("#", _QUOTED.sub(" holds ..., not ", error)) for error in failed["error"].to_pylist()]
    ids = failed["id"].to_pylist()
    examples = dict(zip(reversed(reasons), reversed(ids), strict=True))  # the first of each
    counts = sorted(Counter(reasons).items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_REASONS]
    return dict(counts), {reason: _shown(examples[reason]) for reason, _ in counts}


def _shown(place: str) -> str:
    """An id as people see it: secrets go first, or a cut might leave half of one."""
    return redacted(place[: 10 * MOST_ID_CHARACTERS])[:MOST_ID_CHARACTERS]


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


def part_figures(part: Location, n_bytes: int, kept: Iterable[pa.Field] = ()) -> Part:
    """The figures that a part file carries about itself.

    Raises:
        ValueError: one of the kept columns has another type than it should.
    """
    schema = read_schema(part)
    for f in kept:
        if (found := schema.field(f.name).type) != f.type:
            raise ValueError(f"its {f.name} is {found}, not {f.type}")
    metadata = schema.metadata
    own: dict[str, Any] = json.loads(metadata[_PART])
    figures = Part(**own, figures=metadata.get(_FIGURES, b"").decode())
    return replace(figures, bytes=_n_bytes(figures, n_bytes))
