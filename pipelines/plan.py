"""A JobSpec in, everything decided before work starts out: models, shards, units to do, parts already there."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from pipelines.errors import OutputError, SourceError
from pipelines.inspect import Inspection, check_columns, inspect, kept_schema
from pipelines.manifest import Manifest, ShardEntry, differences, read_manifest
from pipelines.models import EncoderPass, plan_passes
from pipelines.read import Columns
from pipelines.resources import choose_device, choose_precision
from pipelines.spec import DEFAULT_ID_COLUMN, JobSpec
from pipelines.storage import Location, locate, many_at_a_time, names_in, put, redacted, remove
from pipelines.units import Shard, Unit, list_shards, units_of
from pipelines.write import SUFFIXES, Part, part_figures, read_schema

Names = dict[str, dict[str, Any]]  # files of the output folder and what the store says of each


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
        shards: entries of every shard of the new state.
        parts: parts that are there already and stay.
        pending: units to label.
        vanished: labelled shards that are no longer among the inputs; their parts stay.
    """

    spec: JobSpec
    passes: list[EncoderPass]
    device: str
    precision: str
    columns: Columns
    recipe: dict[str, Any]
    previous: Manifest | None
    shards: list[ShardEntry]
    parts: list[Part]
    pending: list[Unit]
    vanished: list[str]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The manifest's account of the heads."""
        heads: list[dict[str, Any]] = self.recipe["heads"]
        return heads

    @property
    def is_done(self) -> bool:
        """The output is what this job would make."""
        return not self.pending and self.previous is not None and self.previous.shards == self.shards


def make_plan(spec: JobSpec) -> JobPlan:
    """Check models, inputs and output, and find out what is left to do.

    Raises:
        PipelineError: anything that would make the job fail later; nothing has been written by then.
    """
    output = locate(spec.output)
    passes = plan_passes(spec)
    shards = list_shards(spec.input)
    _check_apart(shards, output)
    previous = read_manifest(output)
    device = choose_device(spec.device)
    precision = choose_precision(spec.precision, device, kept=_kept_precision(spec, previous))
    recipe = {
        **spec.recipe(),
        "heads": [head for encoder_pass in passes for head in encoder_pass.describe()],
        "precision": precision,
        "generation": _generation(spec, previous),
    }
    if previous is not None and not spec.overwrite:
        _check_same_job(previous, recipe, output)
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    present = names_in(output)
    labelled = [] if previous is None else _labelled(previous)
    finished = {entry.fingerprint: (entry, parts) for entry, parts in labelled if _is_whole(entry, parts, present)}
    fingerprints = {shard: shard.fingerprint(key) for shard in shards}
    kept = [finished[mark] for mark in fingerprints.values() if mark in finished]
    new = [shard for shard, mark in fingerprints.items() if mark not in finished]
    inspections = inspect(new, unit_rows=spec.unit_rows)
    units = {inspection.shard: units_of(inspection.shard, inspection.ranges, recipe=key) for inspection in inspections}
    resumed, pending = _split(units.values(), present, suffix=SUFFIXES[spec.output_format])
    made = [*(part.name for _, parts in kept for part in parts), *resumed]
    columns = _columns(spec, passes, inspections, output.child(made[0]) if made else None)
    urls = {redacted(shard.url) for shard in shards}
    vanished = [] if spec.overwrite else [(entry, parts) for entry, parts in labelled if entry.url not in urls]
    stay = [*kept, *vanished]
    entries = [ShardEntry(redacted(shard.url), fingerprints[shard], len(its)) for shard, its in units.items()]
    return JobPlan(
        spec=spec,
        passes=passes,
        device=device,
        precision=precision,
        columns=columns,
        recipe=recipe,
        previous=previous,
        shards=sorted([*(entry for entry, _ in stay), *entries], key=lambda entry: entry.url),
        parts=[*(part for _, parts in stay for part in parts), *_figures(output, resumed, present)],
        pending=pending,
        vanished=[entry.url for entry, _ in vanished],
    )


def _split(units: Iterable[list[Unit]], present: Names, *, suffix: str) -> tuple[list[str], list[Unit]]:
    """Names of the parts that an interrupted run has left, and the units that have none yet."""
    resumed, pending = [], []
    for unit in chain.from_iterable(units):
        if unit.name + suffix in present:
            resumed.append(unit.name + suffix)
        else:
            pending.append(unit)
    return resumed, pending


def _figures(output: Location, names: list[str], present: Names) -> list[Part]:
    """What parts tell of themselves, many at a time."""
    return many_at_a_time(lambda name: part_figures(output.child(name), int(present[name]["size"])), names)


def check_writable(output: Location) -> None:
    """Put and remove a small file.

    Raises:
        OutputError: the output cannot be written.
    """
    probe = output.child(f".probe-{uuid.uuid4().hex}")
    put(probe, b"")
    remove(probe)


def shard_fingerprint(part_name: str) -> str:
    """The fingerprint of the shard that a part is made from."""
    return part_name.rsplit("-", 2)[1]


def _labelled(manifest: Manifest) -> list[tuple[ShardEntry, list[Part]]]:
    """Every labelled shard with its parts."""
    parts: dict[str, list[Part]] = {}
    for part in manifest.parts:
        parts.setdefault(shard_fingerprint(part.name), []).append(part)
    return [(entry, parts.get(entry.fingerprint, [])) for entry in manifest.shards]


def _is_whole(entry: ShardEntry, parts: list[Part], present: Names) -> bool:
    """All parts of the shard are there."""
    return len(parts) == entry.units and all(part.name in present for part in parts)


def _columns(spec: JobSpec, passes: list[EncoderPass], inspections: list[Inspection], made: Location | None) -> Columns:
    """What to read from each record; kept columns keep the types that a part made earlier has."""
    read = [encoder_pass.encoding.inputs for encoder_pass in passes]
    lists = tuple(dict.fromkeys(inputs.columns[1] for inputs in read if inputs.kind == "choices"))
    texts = tuple(dict.fromkeys(name for inputs in read for name in inputs.columns if name not in lists))
    explicit_id = [spec.id_column] if spec.id_column else []
    check_columns(inspections, text_columns=texts, list_columns=lists, other_columns=[*explicit_id, *spec.keep_column])
    kept = kept_schema(inspections, spec.keep_column)
    if made is not None:
        known = read_schema(made)
        kept = pa.schema([known.field(name).remove_metadata() for name in spec.keep_column])
    return Columns(texts=texts, lists=lists, id=spec.id_column or DEFAULT_ID_COLUMN, kept=kept)


def _check_apart(shards: list[Shard], output: Location) -> None:
    folder = output.url.rstrip("/") + "/"
    for shard in shards:
        if shard.url.startswith(folder):
            raise SourceError(
                f"{redacted(shard.url)} lies inside the output folder, so that the job would read what it writes: "
                "choose another --output"
            )


def _check_same_job(previous: Manifest, recipe: dict[str, Any], output: Location) -> None:
    changed = differences(previous.recipe, recipe)
    if changed:
        raise OutputError(
            f"{redacted(output.url)} was made by another job ({'; '.join(changed)}): "
            "use another --output, or --overwrite to label everything anew"
        )


def _kept_precision(spec: JobSpec, previous: Manifest | None) -> str | None:
    return None if previous is None or spec.overwrite else previous.recipe.get("precision")


def _generation(spec: JobSpec, previous: Manifest | None) -> int:
    """Counts overwrites, so that parts made before one are never taken for parts made by it."""
    if previous is None:
        return 0
    return int(previous.recipe.get("generation", 0)) + (1 if spec.overwrite else 0)
