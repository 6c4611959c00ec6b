"""A JobSpec in, a labelled corpus out: plan → read → encode → predict → decode → write → manifest."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from ray.exceptions import RayError

from pipelines.admission import Admission
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.errors import ModelError, PipelineError, RunError, SpecError
from pipelines.job_metrics import JobMetrics
from pipelines.judge import Judge
from pipelines.ledger import Ledger
from pipelines.manifest import (
    Manifest,
    by_group,
    in_order,
    mark_success,
    read_manifest,
    unmark_success,
    versions,
    write_manifest,
)
from pipelines.models import describe_sharing, heads_of
from pipelines.nights import Meter, with_night
from pipelines.partitions import own_files
from pipelines.plan import JobPlan, is_there, is_whole_stream, make_plan
from pipelines.predict import Predictor
from pipelines.progress import Progress
from pipelines.report import write_report
from pipelines.resources import Hardware, connect, nodes_alive, share_out, why_stalled
from pipelines.sample import estimate
from pipelines.spec import JobSpec
from pipelines.stages import TaskSource, write
from pipelines.storage import Location, absolute, check_writable, locate, many_at_a_time, redacted, remove
from pipelines.summary import Summary
from pipelines.survive import open_ledger, surviving, surviving_actor
from pipelines.units import Stream, fingerprint_of, number_of, unit_of
from pipelines.write import Part

logger = logging.getLogger(__name__)
ENCODING, LABELLING = "encoding", "labelling"  # what processes tell the ledger that they do
_UNITS_AHEAD = 4  # that wait at each actor while it computes another
_ROUNDS = 3  # plans, where other runs change the output meanwhile
_SHOWN = 5  # vanished shards that are named


def run(spec: JobSpec) -> Summary:
    """Label what is not labelled yet.

    Raises:
        PipelineError: with one line that says what to do.
    """
    with Admission() as admission:
        return _run(spec, admission)


def _run(spec: JobSpec, admission: Admission) -> Summary:
    output = locate(spec.output)
    meter = Meter()
    labelled: list[Part] = []
    n_actors = 0
    for _ in range(_ROUNDS):
        plan, new = make_plan(spec), []
        _warn_of_vanished(plan)
        if spec.dry_run:
            return _dry_run(plan, output)
        if plan.is_done:
            state = _confirm(plan, output)
        else:
            check_writable(output)
            hardware = _hardware(plan)
            if hardware and admission.has_waited(hardware) and not labelled:
                return _run(spec, admission)  # others may have done it meanwhile
            unmark_success(output)
            if hardware:
                n_actors = max(n_actors, hardware.max_actors)
                meter.hardware = hardware
                new = _label(plan, hardware, meter, admission)
                labelled += new
            state = _commit(plan, new, output, meter)
        if state is not None:
            break
        logger.warning("another run has changed %s meanwhile: planning again", redacted(spec.output))
    else:
        raise RunError(f"other runs keep changing {redacted(spec.output)}: let one of them finish, and start again")
    seconds = meter.seconds if labelled else 0.0
    night = state.nights[-1] if state.nights else None
    parts = [*plan.parts, *new]
    summary = Summary.of(plan, parts=parts, labelled=labelled, seconds=seconds, night=night, n_actors=n_actors)
    write_report(output, state)
    if summary.has_failed_too_often:
        unmark_success(output)
    else:
        mark_success(output)
    return summary


def _hardware(plan: JobPlan) -> Hardware | None:
    """The job's share of the cluster; None where there is nothing to label."""
    if not plan.pending:
        return None
    connect()
    return share_out(plan.spec, plan.device, n_units=plan.n_units)


def _dry_run(plan: JobPlan, output: Location) -> Summary:
    """Check what the plan leaves unchecked, and measure what the run will take."""
    if not plan.is_done:
        check_writable(output)
    try:
        found = estimate(plan) if plan.pending else None
    except RayError as error:
        kind, cause = _root_cause(error)
        raise kind(cause) from error
    return Summary.of(plan, parts=plan.parts, labelled=[], seconds=0.0, estimate=found)


def _warn_of_vanished(plan: JobPlan) -> None:
    goes = plan.spec.prune or plan.spec.overwrite
    fate = "its records go" if goes else "its records stay (--prune drops them)"
    for url in plan.vanished[:_SHOWN]:
        logger.warning("%s is no longer among the inputs: %s", url, fate)
    if len(plan.vanished) > _SHOWN:
        logger.warning("… and so are %d more", len(plan.vanished) - _SHOWN)


def _confirm(plan: JobPlan, output: Location) -> Manifest | None:
    """Leave a finished output as its manifest says; None where another run has changed it since the plan was made.

    What a killed run has left beside it would be read twice by those who take all parts.
    """
    if plan.strays:
        if read_manifest(output) != plan.previous:
            return None
        _remove(output, plan.strays)
    return plan.previous


def _commit(plan: JobPlan, labelled: list[Part], output: Location, meter: Meter) -> Manifest | None:
    """Let the manifest say what is there; None where another run has changed the output since the plan was made.

    Raises:
        RunError: a unit was lost or doubled, or workers have written elsewhere.
    """
    parts = {part.name: part for part in [*plan.parts, *labelled]}  # Ray may do a unit twice
    manifest = _manifest(plan, list(parts.values()), meter)
    _check_complete(plan, manifest)
    current = read_manifest(output)
    if current is not None and current.is_same_state(manifest):
        return current
    present = own_files(output)
    if current != plan.previous:
        return None
    if others := [part for part in manifest.parts if not is_there(part, present)]:
        missing = [part for part in others if part.name not in present]
        if missing and output.is_local and ray.is_initialized() and len(nodes_alive()) > 1:
            raise RunError(
                f"{len(missing)} of {len(manifest.parts)} parts are not in {output.path}: on several nodes a local "
                "--output must be the same mount on each of them; else give a store's URL"
            )
        return None
    write_manifest(output, manifest)
    _remove(output, manifest.strays(present))  # of changed shards, of what was overwritten, of runs that were killed
    return manifest


def _label(plan: JobPlan, hardware: Hardware, meter: Meter, admission: Admission) -> list[Part]:
    """Run what is pending through the pipeline and collect the parts' figures.

    Raises:
        PipelineError: a stage failed, of the kind of its own error; what is finished stays.
        RunError: too many records failed.
    """
    _quiet_ray_data()
    logger.info("%s", describe_sharing(plan.passes))
    logger.info("labelling %d units: %s, %s", plan.n_units, hardware.describe(), plan.precision)
    labelled: list[Part] = []
    ledger, judge = open_ledger(), Judge(plan)
    sizes: dict[str, Any] = {"n_units": plan.n_units, "n_rows": plan.n_rows, "n_actors": hardware.max_actors}

    def n_at_work(doing: str = LABELLING) -> int:
        return ray.get(ledger.n_at_work.remote(doing))

    def stalled() -> str | None:
        with suppress(RayError):
            return why_stalled(hardware, n_at_work(ENCODING)) if n_at_work() == 0 else None
        return None

    try:
        metrics = JobMetrics(output=redacted(plan.spec.output), n_at_work=n_at_work, **sizes)
        with metrics, Progress(**sizes, stalled=stalled) as progress:
            for rows in pipeline(plan, hardware, ledger).iter_batches(batch_size=None, batch_format="pyarrow"):
                admission.release()
                parts = parts_from(rows)
                labelled += parts
                progress.add(parts, n_at_work=n_at_work())
                metrics.add(parts)
                meter.add(parts)
                judge.add(parts)
    except RayError as error:
        kind, cause = _root_cause(error)
        raise kind(f"{cause} (finished parts stay: start the same command again)") from error
    finally:
        with suppress(RayError):  # the cluster may be gone
            ray.kill(ledger)
    return labelled


_RETRIES = re.compile(r"(\\n|[\s,'\"])*Failed to .+ after \d+/\d+ attempts \(total backoff.*", re.DOTALL)
"""What Ray Data appends to an error of a worker: how often it tried, and which of its settings say so."""


def _root_cause(error: RayError) -> tuple[type[PipelineError], str]:
    """Our own error in the text that Ray hands over from a worker, or else its last line; before it, its kind."""
    text = _RETRIES.sub("", str(error)).strip()
    own = re.findall(r"(convbert|pipelines)\.errors\.(\w+): (.+)", text)
    package, name, message = own[-1] if own else ("", "", text.splitlines()[-1])
    kinds = {kind.__name__: kind for kind in PipelineError.__subclasses__()}
    kind = ModelError if package == "convbert" else kinds.get(name, RunError)  # workers load what a plan has checked
    if kind is SpecError:  # the plan has taken the flags: a worker lacks something
        kind = RunError
    return kind, redacted(message)


def pipeline(
    plan: JobPlan, hardware: Hardware, ledger: ActorHandle[Ledger], *, predictor: type[Predictor] = Predictor
) -> ray.data.Dataset:
    """The way of the data: a unit is a row of the dataset from reading to its part; a row of figures comes out."""
    context = DataContext.get_current()
    context.target_max_block_size = 1  # byte: every row is a block of its own
    context.enable_progress_bars = False  # ours counts rows and tokens
    context.print_on_execution_start = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=hardware.max_cpus, gpu=hardware.max_actors * hardware.actor_gpus
    )
    encodings = [encoder_pass.encoding for encoder_pass in plan.passes]
    stage: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    model = {**plan.model, "n_threads": hardware.n_threads}
    pool = ActorPoolStrategy(
        min_size=hardware.min_actors,
        max_size=hardware.max_actors,
        initial_size=hardware.min_actors,
        max_tasks_in_flight_per_actor=1 + _UNITS_AHEAD,
    )
    part = {
        "output": absolute(plan.spec.output),
        "output_format": plan.spec.output_format,
        "heads": heads_of(plan.passes),
        "partitioning": plan.spec.partitioning,
    }
    source = TaskSource(plan.pending, plan.columns, ledger)
    return (
        ray.data.read_datasource(
            source,
            num_cpus=hardware.read_cpus,
            override_num_blocks=len(source.read_tasks),
        )
        .map_batches(
            surviving(encode, ledger, doing=ENCODING, timed_as="encode_s"),
            fn_args=[encodings],
            num_cpus=hardware.task_cpus,
            **stage,
        )
        .map_batches(
            surviving_actor(predictor, ledger, doing=LABELLING),
            fn_constructor_args=[plan.passes],
            fn_constructor_kwargs=model,
            compute=pool,
            num_cpus=hardware.actor_cpus,
            num_gpus=hardware.actor_gpus,
            **hardware.placement,
            **stage,
        )
        .map_batches(
            surviving(decode, ledger, doing="decoding", timed_as="decode_s"),
            fn_args=[plan.passes],
            num_cpus=hardware.task_cpus,
            **stage,
        )
        .map_batches(write, fn_args=[ledger], fn_kwargs=part, num_cpus=hardware.task_cpus, **stage)
    )


def parts_from(rows: pa.Table) -> list[Part]:
    """The figures in rows that come out of the pipeline."""
    return [Part(**json.loads(text)) for text in rows["part"].to_pylist()]


def _quiet_ray_data() -> None:
    """Ray Data announces each execution and the missing of its own bar; our progress says what users need."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _manifest(plan: JobPlan, parts: list[Part], meter: Meter) -> Manifest:
    before = 0.0 if plan.previous is None or plan.spec.overwrite else plan.previous.seconds
    units = Counter(fingerprint_of(part.name) for part in parts)
    manifest = Manifest(
        recipe=plan.recipe,
        heads=plan.heads,
        passes=[[head.name for head in encoder_pass.heads] for encoder_pass in plan.passes],
        shards=[replace(entry, units=entry.units or units[entry.group]) for entry in plan.shards],
        parts=in_order(parts),
        seconds=before,
        versions=versions(),
    )
    nights = with_night(manifest, plan, meter)
    return replace(manifest, seconds=before + nights[-1]["seconds"], nights=nights)


def _check_complete(plan: JobPlan, manifest: Manifest) -> None:
    """Every unit has its part, with as many rows as its shard says.

    Raises:
        RunError: a unit was lost or doubled.
    """
    parts = by_group(manifest.parts)
    for entry in manifest.shards:
        numbers = [number_of(part.name) for part in parts.get(entry.group, [])]
        if numbers != list(range(entry.units)):
            raise RunError(f"{entry.url} has parts {numbers[:9]} of {entry.units}: start the job again")
    if len(parts.keys() - {entry.group for entry in manifest.shards}):
        raise RunError("there are parts that no shard has: start the job again")
    rows = {unit_of(part.name): part.rows for part in manifest.parts}
    for task in plan.pending:
        if isinstance(task, Stream):
            if not is_whole_stream(parts[fingerprint_of(task.name(0))]):
                raise RunError(f"{redacted(task.shard.url)} was not read to its end: start the job again")
            continue
        for unit in task:
            if unit.n_rows not in (None, rows[unit.name]):
                raise RunError(f"{unit.name} has {rows[unit.name]} rows of {unit.n_rows}: start the job again")


def _remove(output: Location, names: Iterable[str]) -> None:
    many_at_a_time(lambda name: remove(output.child(name)), names)
