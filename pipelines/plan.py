"""A JobSpec in, everything decided before work starts out: models, shards, units to do, parts already there."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from convbert.stores import reason
from pipelines.errors import OutputError, SourceError
from pipelines.inspect import Inspection, check_columns, inspect, kept_schema
from pipelines.manifest import (
    MANIFEST_NAME,
    SUCCESS_NAME,
    Group,
    Manifest,
    ShardEntry,
    by_group,
    differences,
    read_manifest,
)
from pipelines.models import EncoderPass, heads_of, plan_passes
from pipelines.partitions import NULL_VALUE, escaped, own_files, parted_otherwise
from pipelines.read import Columns
from pipelines.report import FIGURES_NAME, REPORT_NAME
from pipelines.resources import choose_device, choose_precision, choose_unit_rows
from pipelines.spec import DEFAULT_ID_COLUMN, JobSpec
from pipelines.storage import Info, Location, exists, locate, many_at_a_time, redacted
from pipelines.units import (
    Shard,
    Stream,
    Task,
    Unit,
    fingerprint_of,
    groups_of,
    is_small,
    list_shards,
    number_of,
    part_name,
    part_stem,
    would_read,
)
from pipelines.write import SUFFIXES as FILE_SUFFIXES
from pipelines.write import UNREADABLE, Part, is_index, part_figures, read_schema

logger = logging.getLogger(__name__)
_SAMPLED_SHARDS = 128  # small shards whose columns are looked at before the job starts
_SHOWN = 5  # parts that cannot be used and are named

Files = dict[str, Info]  # of an output folder, by name


@dataclass(frozen=True)
class JobPlan:
    """What a run does.

    Attributes:
        spec: the job.
        passes: encoders and heads.
        device, precision: what ``auto`` meant.
        columns: what is read from each record.
        recipe: everything that decides what stands in a part, apart from its shard.
        previous: state of the output before this run.
        strays: files that jobs have written into the output and ``previous`` does not name: what runs that did not
            finish have left, also that which this run goes on with.
        shards: the new manifest's entry of every shard; a compressed one that is still to be read has 0 units there,
            for their number shows at its end.
        parts: parts that are there already and stay.
        pending: what to read and label.
        vanished: labelled shards that are no longer among the inputs; their parts stay, or go with ``--prune`` and
            ``--overwrite``.
        seen_columns: shards whose columns were looked at; of many small ones only some are.
    """

    spec: JobSpec
    passes: list[EncoderPass]
    device: str
    precision: str
    columns: Columns
    recipe: dict[str, Any]
    previous: Manifest | None
    strays: list[str]
    shards: list[ShardEntry]
    parts: list[Part]
    pending: list[Task]
    vanished: list[str]
    seen_columns: int

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The manifest's account of the heads."""
        heads: list[dict[str, Any]] = self.recipe["heads"]
        return heads

    @property
    def model(self) -> dict[str, Any]:
        """How the Predictor computes, but for its threads, which are the hardware's."""
        return {
            "device": self.device,
            "precision": self.precision,
            "max_batch_tokens": self.spec.max_batch_tokens,
        }

    @property
    def is_done(self) -> bool:
        """The output is what this job would make."""
        if self.pending or self.previous is None or self.previous.shards != self.shards:
            return False
        there, told = ({part.name: part.files for part in parts} for parts in (self.parts, self.previous.parts))
        return there == told

    @property
    def n_units(self) -> int:
        """Units to label: of a compressed shard, whose units show while it is read, about so many."""
        return sum(task.about_n_units if isinstance(task, Stream) else len(task) for task in self.pending)

    @property
    def n_rows(self) -> int | None:
        """Records to label; None where only reading can tell."""
        total = 0
        for task in self.pending:
            rows = [None] if isinstance(task, Stream) else [unit.n_rows for unit in task]
            if None in rows:
                return None
            total += sum(n_rows or 0 for n_rows in rows)
        return total


def make_plan(spec: JobSpec) -> JobPlan:
    """Check models, inputs and output, and find out what is left to do.

    Raises:
        PipelineError: anything that would make the job fail later; nothing has been written by then.
    """
    output = locate(spec.output)
    previous = read_manifest(output)
    kept = None if spec.overwrite else previous  # the state that this run adds to
    if kept is not None:
        spec = _with_known_order(spec, kept)
    passes = plan_passes(spec)
    shards = _by_name(list_shards(spec.input))
    _check_apart(spec, list(shards.values()), output)
    device = choose_device(spec.device)
    begun_with = kept.recipe if kept else {}
    precision = choose_precision(spec.precision, device, kept=begun_with.get("precision"))
    unit_rows = choose_unit_rows(spec.unit_rows, device, kept=begun_with.get("unit_rows"))
    recipe = {
        **spec.recipe(),
        "unit_rows": unit_rows,
        "heads": [head for encoder_pass in passes for head in encoder_pass.describe()],
        "precision": precision,
        "generation": _generation(spec, previous),
    }
    if kept is not None:
        _check_same_job(kept, recipe, output)
    key = recipe_key(recipe)

    present = own_files(output)
    labelled = [group for group in kept.groups() if group.entries] if kept else []
    fingerprints = {name: shard.fingerprint(key) for name, shard in shards.items()}
    stay = _staying(labelled, fingerprints, present, prune=spec.prune)
    done = {entry.url for group in stay for entry in group.entries}
    pieces, inspections = _pieces([shard for name, shard in shards.items() if name not in done], unit_rows, key)
    if previous is None and (lost := _lost_manifest(spec, output, recipe, pieces, present)):
        if exists(output.child(MANIFEST_NAME)):  # another run has written it meanwhile
            return make_plan(spec)
        raise OutputError(lost)
    staying = [part for group in stay for part in group.parts]
    columns = _columns(spec, passes, inspections, output.child(staying[0].name) if staying else None)
    resumed = _resumed(output, pieces, present, columns.kept)
    pending = [task for piece in pieces for task in _pending(piece, resumed.get(piece.fingerprint, []))]
    entries = [entry for group in stay for entry in group.entries]
    entries += [
        ShardEntry(shard.name, fingerprints[shard.name], _n_units(piece, resumed), piece.fingerprint)
        for piece in pieces
        for shard in piece.shards
    ]
    return JobPlan(
        spec=spec,
        passes=passes,
        device=device,
        precision=precision,
        columns=columns,
        recipe=recipe,
        previous=previous,
        strays=[] if previous is None else previous.strays(present),
        shards=sorted(entries, key=lambda entry: entry.url),
        parts=[*staying, *(part for its in resumed.values() for part in its)],
        pending=pending,
        vanished=[entry.url for entry in (previous.shards if previous else []) if entry.url not in fingerprints],
        seen_columns=len(inspections),
    )


def is_there(part: Part, present: Files) -> bool:
    """The part is among the files that are present, and so is every file that it names; those with rows as written."""
    sizes = {part.name: part.bytes}
    if is_index(part.name):
        sizes = {name: n_bytes for name, (_, n_bytes) in part.files.items()}
    return {part.name, *sizes} <= present.keys() and all(present[name]["size"] == n for name, n in sizes.items())


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """What stands for the recipe in the fingerprints of shards."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


# --- what has been labelled ---------------------------------------------------------------------------


def _staying(labelled: list[Group], fingerprints: dict[str, str], present: Files, *, prune: bool) -> list[Group]:
    """What need not be labelled again.

    Raises:
        OutputError: records of a shard that has vanished would be lost with their part.
    """
    stay = []
    for group in labelled:
        gone = [entry.url for entry in group.entries if entry.url not in fingerprints]
        if prune and gone:
            continue
        is_same = all(fingerprints.get(entry.url, entry.fingerprint) == entry.fingerprint for entry in group.entries)
        if is_same and _is_whole(group, present):
            stay.append(group)
        elif gone:
            why = (
                "parts with its records are missing or damaged"
                if is_same
                else "a shard that shares its part has changed"
            )
            raise OutputError(
                f"{gone[0]} is no longer among the inputs and {why}: bring it back, or drop its records with --prune"
            )
    return stay


def _is_whole(group: Group, present: Files) -> bool:
    """All of its parts are there."""
    return len(group.parts) == group.entries[0].units and all(is_there(part, present) for part in group.parts)


# --- what is new --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """What is labelled together: a large shard, or a group of small ones that share a part.

    Attributes:
        shards: the large one, or the group.
        fingerprint: what stands for them in the names of their parts.
        tasks: what reads them.
    """

    shards: tuple[Shard, ...]
    fingerprint: str
    tasks: list[Task]


def _pieces(shards: list[Shard], unit_rows: int, key: str) -> tuple[list[_Piece], list[Inspection]]:
    """Small shards in groups, every other cut into units; and what was seen of their columns."""
    small = [shard for shard in shards if is_small(shard, unit_rows)]
    large = [shard for shard in shards if not is_small(shard, unit_rows)]
    pieces = []
    for group in groups_of(small, unit_rows):
        name = part_name(part_stem(group, key), 0)
        pieces.append(_Piece(group, fingerprint_of(name), [(Unit(name, group),)]))
    inspections = inspect(large, unit_rows=unit_rows)
    for inspection in inspections:
        stem = part_stem([inspection.shard], key)
        pieces.append(_Piece((inspection.shard,), fingerprint_of(part_name(stem, 0)), inspection.tasks(stem)))
    return pieces, [*inspections, *inspect(_some_of(small), unit_rows=unit_rows)]


def _some_of(shards: list[Shard]) -> list[Shard]:
    """As many as are looked at, by a hash of their names: every nth might be of one kind, as in folders of two."""
    return heapq.nsmallest(_SAMPLED_SHARDS, shards, key=lambda shard: hashlib.sha256(shard.name.encode()).digest())


def _resumed(output: Location, pieces: list[_Piece], present: Files, kept: pa.Schema) -> dict[str, list[Part]]:
    """The parts that an interrupted run has left, by fingerprint and in their order.

    One that is damaged, not what its name says, or has kept columns of other types, as from a run over other inputs,
    counts as not there: it is made again under this name.
    """

    def figures(name: str) -> Part | str:
        try:
            found = part_figures(output.child(name), int(present[name]["size"]), kept)
        except UNREADABLE as error:
            return reason(error)
        if found.name != name:
            return f"it was written as {found.name}"
        return found if is_there(found, present) else "a file that it names is missing or damaged"

    wanted = {piece.fingerprint for piece in pieces}
    names = [name for name in present if fingerprint_of(name) in wanted]
    found = dict(zip(names, many_at_a_time(figures, names), strict=True))
    useless = [(name, why) for name, why in found.items() if isinstance(why, str)]
    for name, why in useless[:_SHOWN]:
        logger.warning("%s cannot be used (%s): its unit is labelled again", redacted(output.child(name).url), why)
    if len(useless) > _SHOWN:
        logger.warning("… and so are the units of %d more parts", len(useless) - _SHOWN)
    return by_group(part for part in found.values() if isinstance(part, Part))


def _pending(piece: _Piece, resumed: list[Part]) -> Iterator[Task]:
    """What is left to read of a piece."""
    numbers = {number_of(part.name) for part in resumed}
    for task in piece.tasks:
        if isinstance(task, Stream):
            if not is_whole_stream(resumed):
                yield replace(task, present=frozenset(numbers))
        else:
            runs = groupby(task, key=lambda unit: number_of(unit.name) in numbers)
            yield from (tuple(units) for is_done, units in runs if not is_done)


def _n_units(piece: _Piece, resumed: dict[str, list[Part]]) -> int:
    """Units of a piece; 0 where only reading can tell."""
    its = resumed.get(piece.fingerprint, [])
    if any(isinstance(task, Stream) for task in piece.tasks):
        return len(its) if is_whole_stream(its) else 0
    return sum(len(task) for task in piece.tasks if not isinstance(task, Stream))


def is_whole_stream(parts: Sequence[Part]) -> bool:
    """Parts of a compressed shard are all of them: none is missing before the one that says that it is the last."""
    numbers = sorted(number_of(part.name) for part in parts)
    return numbers == list(range(len(parts))) and any(part.is_last for part in parts)


# --- checks -------------------------------------------------------------------------------------------


def _columns(spec: JobSpec, passes: list[EncoderPass], inspections: list[Inspection], made: Location | None) -> Columns:
    """What to read from each record; kept columns have the types that a finished part has, else those of the shards."""
    read = [encoder_pass.encoding.inputs for encoder_pass in passes]
    lists = tuple(dict.fromkeys(name for inputs in read for name in inputs.lists))
    texts = tuple(dict.fromkeys(name for inputs in read for name in inputs.columns if name not in lists))
    check_columns(
        inspections,
        text_columns=texts,
        list_columns=lists,
        id_column=spec.id_column,
        other_columns=spec.keep_column,
        known=spec.keep_column if made else (),
    )
    kept = kept_schema(inspections, spec.keep_column)
    if made is not None and spec.keep_column:
        kept = _types_in(made, spec.keep_column)
    if spec.partitioning:
        heads = {name: head.schema for name, head in heads_of(passes).items()}
        spec.partitioning.check({**heads, **{field.name: field.type for field in kept}})
    return Columns(texts=texts, lists=lists, id=spec.id_column or DEFAULT_ID_COLUMN, kept=kept)


def _types_in(made: Location, columns: list[str]) -> pa.Schema:
    """Types of these columns in a part made earlier.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        known = read_schema(made)
        return pa.schema([known.field(name).remove_metadata() for name in columns])
    except UNREADABLE as error:
        raise OutputError(
            f"{redacted(made.url)} cannot be read ({reason(error)}): move it away and start the same command again, "
            "which labels its records anew"
        ) from error


def _by_name(shards: list[Shard]) -> dict[str, Shard]:
    """Shards by what manifest and ids call them: their addresses without secrets.

    Raises:
        SourceError: two would be called the same.
    """
    named: dict[str, Shard] = {}
    for shard in shards:
        name = shard.name
        if name in named:
            raise SourceError(
                f"{name} would stand for several shards, whose addresses differ only in what looks like a secret: "
                "rename the file or folder that is shown as ***, or give each its own --output"
            )
        named[name] = shard
    return named


def _check_apart(spec: JobSpec, shards: list[Shard], output: Location) -> None:
    """See that the job reads nothing that it writes, nor would on a later night.

    Raises:
        SourceError: it does, or would.
    """
    for _, neighbours in groupby(shards, key=lambda shard: shard.url.rpartition("/")[0]):
        shard = next(neighbours)
        if shard.location.lies_in(output):
            raise SourceError(
                f"{shard.name} lies inside the output folder, so that the job would read what it writes: "
                "choose another --output"
            )
    by = spec.partitioning
    folder = output.child(f"{escaped(by.key)}={NULL_VALUE}") if by else output
    part = folder.child(part_name(part_stem(shards[:1], ""), 0) + FILE_SUFFIXES[spec.output_format])
    written = [part, *(output.child(name) for name in (REPORT_NAME, FIGURES_NAME))]
    for url in spec.input:
        if would_read(url, written):
            raise SourceError(
                f"the output folder {redacted(output.url)} lies inside the input {redacted(url)}, "
                "so that the job would read what it writes: choose another --output, or put a '_' before its name"
            )


def _check_same_job(previous: Manifest, recipe: dict[str, Any], output: Location) -> None:
    changed = differences(previous.recipe, recipe)
    if changed:
        raise OutputError(
            f"{redacted(output.url)} was made by another job ({'; '.join(changed)}): "
            "use another --output, or --overwrite to label everything anew"
        )


def _lost_manifest(
    spec: JobSpec, output: Location, recipe: Mapping[str, Any], pieces: list[_Piece], present: Files
) -> str | None:
    """What to say where an output without a manifest holds parts that this run does not make; else None.

    They may be all that is left of finished work, which this run would remove, or leave beside its own parts. Only
    where no run has ever finished are they known to be what a killed one has left.
    """
    if otherwise := parted_otherwise(present, recipe):
        folders = sorted({name.partition("/")[0] for name in otherwise})
        return (
            f"{redacted(output.url)} has no {MANIFEST_NAME}, and {len(otherwise):,} files of a job with another "
            f"--partition-by, such as {otherwise[0]}: put it back, remove the folders ({', '.join(folders[:3])}"
            f"{', …' if len(folders) > 3 else ''}), or choose another --output"
        )
    if spec.prune or spec.overwrite:
        return None
    wanted = {"", *(piece.fingerprint for piece in pieces)}  # files of partitions have none: indexes stand for them
    others = sorted(name for name in present if fingerprint_of(name) not in wanted)
    if others and any(exists(output.child(name)) for name in (FIGURES_NAME, SUCCESS_NAME)):
        return (
            f"{redacted(output.url)} has lost its {MANIFEST_NAME}, and {len(others):,} of its parts, such as "
            f"{others[0]}, are not of these inputs as they are now: put it back, or let their records go with --prune"
        )
    return None


def _with_known_order(spec: JobSpec, previous: Manifest) -> JobSpec:
    """The job with its heads in the order of the manifest, if they are the same: that of the flags decides nothing."""
    known = [head["name"] for head in previous.heads]
    if sorted(known) != sorted(spec.head):
        return spec
    return spec.model_copy(update={"head": {name: spec.head[name] for name in known}})


def _generation(spec: JobSpec, previous: Manifest | None) -> int:
    """Counts overwrites, so that parts made before one are never taken for parts made by it."""
    if previous is None:
        return 0
    return int(previous.recipe.get("generation", 0)) + (1 if spec.overwrite else 0)
