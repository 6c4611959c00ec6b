"""An output folder in, whether every record of its shards is there exactly once out: a recount from the shards.

Shards are read from end to end, without the cuts that the job made, and the ids of their records compared in
their order with those in the parts. Of the manifest nothing is believed but which shards and parts belong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from convbert.stores import reason
from pipelines.errors import OutputError, PipelineError, SourceError, StoreError
from pipelines.manifest import Manifest, ShardEntry, read_manifest
from pipelines.partitions import own_files
from pipelines.plan import recipe_key
from pipelines.read import ids_of
from pipelines.spec import DEFAULT_ID_COLUMN
from pipelines.storage import Location, locate, many_at_a_time, open_input, redacted
from pipelines.units import shard_at
from pipelines.write import UNREADABLE, Part, files_of, read_schema


@dataclass(frozen=True)
class Verdict:
    """What a recount found.

    Attributes:
        shards, parts, rows, failed: counted, not claimed.
        faults: what is wrong, one line each; empty where every record that could be compared is there once.
        changed: shards that are gone, or not what they were when they were labelled.
        hidden: shards whose address holds a secret, which the manifest does not keep.
        unanswered: shards that their store did not look up, and why.

    Shards of the last three, and those that share a part with one, could not be compared.
    """

    shards: int
    parts: int
    rows: int
    failed: int
    faults: list[str]
    changed: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Nothing is wrong, and no store has left it open."""
        return not self.faults and not self.unanswered

    def lines(self) -> list[str]:
        """The verdict as it is printed."""
        n_left_out = len(self.changed) + len(self.hidden) + len(self.unanswered)
        verdict = f"{len(self.faults)} faults" if self.faults else "every record is there once"
        if not self.faults and 0 < n_left_out == self.shards:
            verdict = "none of the shards could be compared"
        elif n_left_out:
            verdict += f" ({n_left_out} shards could not be compared)"
        return [
            *(f"fault: {fault}" for fault in self.faults),
            *(f"gone or changed since it was labelled: {shard}" for shard in self.changed),
            *(f"not compared, since the manifest keeps no secrets of addresses: {shard}" for shard in self.hidden),
            *(f"cannot be looked up, check rights and credentials: {shard}" for shard in self.unanswered),
            f"{self.rows:,} records ({self.failed:,} failed) of {self.shards:,} shards in {self.parts:,} parts: "
            + verdict,
        ]


@dataclass(frozen=True)
class _Count:
    """What was found in the parts of one group of shards."""

    rows: int
    failed: int
    faults: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)


def verify(output_url: str) -> Verdict:
    """Recount an output against its shards.

    Raises:
        OutputError: nothing has been finished there yet.
    """
    output = locate(output_url)
    manifest = read_manifest(output)
    if manifest is None:
        raise OutputError(f"{redacted(output_url)} has no _manifest.json: no run has finished there yet")
    strays = sorted(manifest.strays(own_files(output)))
    counts = many_at_a_time(lambda group: _recount(output, manifest, *group), manifest.groups())
    return Verdict(
        shards=len(manifest.shards),
        parts=sum(len(files_of(part)) for part in manifest.parts),
        rows=sum(count.rows for count in counts),
        failed=sum(count.failed for count in counts),
        faults=[
            *(f"{name} is there, but the manifest does not name it" for name in strays),
            *_unlike_columns(output, [name for part in manifest.parts for name in files_of(part)]),
            *chain.from_iterable(count.faults for count in counts),
        ],
        changed=[url for count in counts for url in count.changed],
        hidden=[url for count in counts for url in count.hidden],
        unanswered=[url for count in counts for url in count.unanswered],
    )


def _unlike_columns(output: Location, names: list[str]) -> Iterator[str]:
    """What is wrong with files whose columns or their types are not those of the first that can be read."""

    def types(name: str) -> dict[str, pa.DataType] | None:
        try:
            schema = read_schema(output.child(name))
        except UNREADABLE:  # the recount says so
            return None
        return dict(zip(schema.names, schema.types, strict=True))

    found = [(name, its) for name, its in zip(names, many_at_a_time(types, names), strict=True) if its is not None]
    for name, its in found[1:]:
        first, wanted = found[0]
        for column in sorted(its.keys() | wanted.keys()):
            if (here := its.get(column)) != (there := wanted.get(column)):
                yield f"column {column!r} is {here or 'missing'} in {name}, but {there or 'missing'} in {first}"


def _recount(output: Location, manifest: Manifest, entries: list[ShardEntry], parts: list[Part]) -> _Count:
    heads = [head["name"] for head in manifest.heads]
    faults: list[str] = []
    rows = failed = 0
    for part in parts:
        found = []
        for name in files_of(part):
            try:
                n_rows, n_failed, n_odd = _count_part(output.child(name), heads)
            except UNREADABLE as error:
                faults.append(f"{name} cannot be read: {error!r:.200}")
                break
            found.append((n_rows, n_failed))
            if n_odd:
                faults.append(f"{name} has {n_odd} records with neither or both of a prediction and an error")
        else:
            n_rows, n_failed = sum(n for n, _ in found), sum(n for _, n in found)
            if (n_rows, n_failed) != (part.rows, part.failed):
                faults.append(f"{part.name} has {n_rows} records, {n_failed} failed; not {part.rows} and {part.failed}")
        rows, failed = rows + sum(n for n, _ in found), failed + sum(n for _, n in found)
    if faults:
        return _Count(rows, failed, faults)
    lost = [
        f"{part.name} has one error for all that is lost of a damaged compressed shard" for part in parts if part.n_cut
    ]
    urls = [entry.url for entry in entries]
    if any("***" in url for url in urls):
        return _Count(rows, failed, lost, hidden=urls)
    try:
        shards = [shard_at(url) for url in urls]
    except FileNotFoundError:
        return _Count(rows, failed, lost, changed=urls)
    except (OSError, PipelineError) as error:
        return _Count(rows, failed, lost, unanswered=[f"{url} ({reason(error)})" for url in urls])
    key = recipe_key(manifest.recipe)
    if [shard.fingerprint(key) for shard in shards] != [entry.fingerprint for entry in entries]:
        return _Count(rows, failed, lost, changed=urls)
    id_column = manifest.recipe["id_column"] or DEFAULT_ID_COLUMN
    wanted: Iterator[str] = chain.from_iterable(ids_of(shard, id_column) for shard in shards)
    if is_parted := "partition_by" in manifest.recipe:
        wanted = _in_any_order(wanted, parts)
    there = chain.from_iterable(_ids_of(output, part, is_parted=is_parted) for part in parts)
    try:
        return _Count(rows, failed, [*lost, *_first_difference(wanted, there, parts, entries)])
    except (SourceError, StoreError) as error:  # the others are compared all the same
        return _Count(rows, failed, lost, unanswered=[str(error)])


def _count_part(part: Location, heads: list[str]) -> tuple[int, int, int]:
    """Records, failed ones, and those with neither or both of a prediction and an error."""
    n_rows = n_failed = n_odd = 0
    for batch in _batches(part, None):
        is_failed = pc.is_valid(batch["error"])
        n_rows += len(batch)
        n_failed += pc.sum(is_failed).as_py() or 0
        is_odd = pa.array([False] * len(batch))
        for head in heads:
            is_odd = pc.or_(is_odd, pc.equal(is_failed, pc.is_valid(batch[head])))
        n_odd += pc.sum(is_odd).as_py() or 0
    return n_rows, n_failed, n_odd


def _ids_of(output: Location, part: Part, *, is_parted: bool) -> Iterator[str]:
    """Ids in a unit's files: in the order of the shard, or sorted where the rows are parted by a column."""
    batches = (batch for name in files_of(part) for batch in _batches(output.child(name), ["id"]))
    ids = chain.from_iterable(batch["id"].to_pylist() for batch in batches)
    return iter(sorted(ids)) if is_parted else ids


def _in_any_order(ids: Iterator[str], parts: list[Part]) -> Iterator[str]:
    """The shard's ids, sorted within each unit."""
    for part in parts:
        yield from sorted(islice(ids, part.rows))
    yield from ids


def _batches(part: Location, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """A file's rows in pieces: of these columns, or all."""
    with open_input(part) as file:
        if part.path.endswith(".parquet"):
            yield from pq.ParquetFile(file).iter_batches(columns=columns)
        else:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            yield from (batch if columns is None else batch.select(columns) for batch in batches)


def _first_difference(
    wanted: Iterator[str], there: Iterator[str], parts: list[Part], entries: list[ShardEntry]
) -> Iterator[str]:
    where = entries[0].url if entries else parts[0].name
    for number, (shard_id, part_id) in enumerate(zip_longest(wanted, there)):
        if shard_id != part_id:
            found = "nothing" if part_id is None else repr(part_id)
            expected = "no further record" if shard_id is None else f"record {shard_id!r}"
            yield f"{where}: record {number} of its parts is {found}, but the shard has {expected} there"
            return
