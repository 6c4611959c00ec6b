"""A JobSpec in, a labelled corpus out: plan → read → encode → predict → decode → write → manifest."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.errors import RunError
from pipelines.manifest import Manifest, mark_success, unmark_success, versions, write_manifest
from pipelines.models import describe_sharing
from pipelines.plan import JobPlan, check_writable, make_plan
from pipelines.predict import Predictor
from pipelines.progress import Progress
from pipelines.read import Columns, read_unit
from pipelines.report import Summary
from pipelines.resources import Hardware, connect, share_out
from pipelines.spec import JobSpec
from pipelines.storage import Location, locate, names_in, redacted, remove
from pipelines.units import Unit
from pipelines.write import Part, parts_from, write_part

logger = logging.getLogger(__name__)


def run(spec: JobSpec) -> Summary:
    """Label what is not labelled yet.

    Raises:
        PipelineError: with one line that says what to do.
    """
    plan = make_plan(spec)
    for url in plan.vanished:
        logger.warning("%s is no longer among the inputs; its parts stay", url)
    if spec.dry_run or plan.is_done:
        summary = Summary.of(plan, parts=plan.parts, labelled=[], seconds=0.0)
    else:
        summary = _carry_out(plan, locate(spec.output))
    if not (spec.dry_run or summary.has_failed_too_often):
        mark_success(locate(spec.output))
    return summary


def _carry_out(plan: JobPlan, output: Location) -> Summary:
    """Label the pending units, check that everything is there, and let the manifest say so."""
    check_writable(output)
    unmark_success(output)
    started = time.monotonic()
    labelled = _label(plan) if plan.pending else []
    seconds = time.monotonic() - started
    manifest = _manifest(plan, [*plan.parts, *labelled], seconds)
    present = names_in(output)
    _check_complete(plan, manifest, present)
    write_manifest(output, manifest)
    _remove_superseded(output, manifest, present)
    return Summary.of(plan, parts=manifest.parts, labelled=labelled, seconds=seconds)


def _label(plan: JobPlan) -> list[Part]:
    """Run the pending units through the pipeline and collect their parts' figures.

    Raises:
        RunError: a stage failed; what is finished stays.
    """
    connect()
    hardware = share_out(plan.spec, plan.device, n_units=len(plan.pending))
    _quiet_ray_data()
    logger.info("%s", describe_sharing(plan.passes))
    logger.info("labelling %d units: %s, %s", len(plan.pending), hardware.describe(), plan.precision)
    labelled: list[Part] = []
    try:
        with Progress(n_units=len(plan.pending)) as progress:
            for rows in pipeline(plan, hardware).iter_batches(batch_size=None, batch_format="pyarrow"):
                parts = parts_from(rows)
                labelled += parts
                progress.add(parts)
    except RayError as error:
        raise RunError(f"{_root_cause(error)} (finished parts stay: start the same command again)") from error
    return labelled


def _root_cause(error: RayError) -> str:
    """Our own error in the text that Ray hands over from a worker, or else its last line."""
    text = str(error).strip()
    own = re.findall(r"(?:convbert|pipelines)\.errors\.\w+: (.+)", text)
    return redacted(own[-1] if own else text.splitlines()[-1])


def pipeline(plan: JobPlan, hardware: Hardware, *, predictor: type[Predictor] = Predictor) -> ray.data.Dataset:
    """The way of the data: one unit is one block from reading to its part; one row of figures comes out."""
    context = DataContext.get_current()
    context.target_max_block_size = None  # a unit stays whole, however large its block
    context.enable_progress_bars = False  # ours counts rows and tokens
    context.print_on_execution_start = False
    encodings = [encoder_pass.encoding for encoder_pass in plan.passes]
    heads = {head.name: head.head for encoder_pass in plan.passes for head in encoder_pass.heads}
    stage: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    return (
        ray.data.read_datasource(
            UnitSource(plan.pending, plan.columns),
            num_cpus=hardware.task_cpus,
            override_num_blocks=len(plan.pending),
        )
        .map_batches(encode, fn_kwargs={"encodings": encodings}, num_cpus=hardware.task_cpus, **stage)
        .map_batches_internal(  # map_batches refuses whole blocks as batches where GPUs are asked for
            predictor,
            fn_constructor_args=[plan.passes],
            fn_constructor_kwargs={
                "device": plan.device,
                "precision": plan.precision,
                "max_batch_tokens": plan.spec.max_batch_tokens,
                "n_threads": hardware.n_threads,
            },
            compute=ActorPoolStrategy(
                min_size=hardware.min_actors, max_size=hardware.max_actors, initial_size=hardware.min_actors
            ),
            num_cpus=hardware.actor_cpus,
            num_gpus=hardware.actor_gpus,
            **stage,
        )
        .map_batches(decode, fn_kwargs={"passes": plan.passes}, num_cpus=hardware.task_cpus, **stage)
        .map_batches(
            write_part,
            fn_kwargs={"output": plan.spec.output, "output_format": plan.spec.output_format, "heads": heads},
            num_cpus=hardware.task_cpus,
            **stage,
        )
    )


def _quiet_ray_data() -> None:
    """Ray Data announces each execution and the missing of its own bar; our progress says what users need."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class UnitSource(Datasource):
    """Work units as a Ray datasource: one read task and one block each."""

    def __init__(self, units: list[Unit], columns: Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._units = units
        self._columns = columns

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a unit, whatever parallelism Ray proposes."""
        nothing_known = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read_one, unit, self._columns), nothing_known) for unit in self._units]


def _read_one(unit: Unit, columns: Columns) -> Iterator[Any]:
    yield read_unit(unit, columns)


def _manifest(plan: JobPlan, parts: list[Part], seconds: float) -> Manifest:
    before = 0.0 if plan.previous is None or plan.spec.overwrite else plan.previous.seconds
    return Manifest(
        recipe=plan.recipe,
        heads=plan.heads,
        passes=[[head.name for head in encoder_pass.heads] for encoder_pass in plan.passes],
        shards=plan.shards,
        parts=sorted(parts, key=lambda part: part.name),
        seconds=before + seconds,
        versions=versions(),
    )


def _check_complete(plan: JobPlan, manifest: Manifest, present: Iterable[str]) -> None:
    """Every unit has one part, with as many rows as its shard says, and the part lies in the output.

    Raises:
        RunError: a unit was lost or doubled.
    """
    names = [part.name for part in manifest.parts]
    n_units = sum(shard.units for shard in plan.shards)
    if len(names) != n_units or len(set(names)) != n_units:
        raise RunError(f"{n_units} units gave {len(set(names))} parts: start the job again, it does what is missing")
    rows = {part.name.rsplit(".", 1)[0]: part.rows for part in manifest.parts}
    for unit in plan.pending:
        if unit.shard.is_parquet and unit.stop is not None and rows[unit.name] != unit.stop - unit.start:
            raise RunError(f"{unit.name} has {rows[unit.name]} rows of {unit.stop - unit.start}: start the job again")
    missing = sorted(set(names) - set(present))
    if missing:
        raise RunError(f"{len(missing)} parts are missing, such as {missing[0]}: start the job again")


def _remove_superseded(output: Location, manifest: Manifest, present: Iterable[str]) -> None:
    """Remove parts that the new manifest does not know: of changed shards, of what was overwritten."""
    for name in set(present) - {part.name for part in manifest.parts}:
        if name.startswith("part-"):
            remove(output.child(name))
