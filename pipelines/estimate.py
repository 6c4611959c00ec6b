"""A plan and a measured sample in, what the run will take out: rows, tokens, hours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.models import describe_sharing
from pipelines.units import Shard, Stream, Task

if TYPE_CHECKING:
    from pipelines.plan import JobPlan
    from pipelines.resources import Hardware

DRIVER_S = 0.05
"""What a unit takes the driver, of which no cluster has a second one (docs/performance.md)."""

_WORTH_TELLING_S = 60.0  # of the driver

Stratum = tuple[str, bool, int]
"""Shards of one kind, that are read whole or in pieces, and whose sizes differ by a factor of four at most."""


@dataclass(frozen=True)
class Timing:
    """What the model took for a sample, in one process with the resources of a model actor.

    Attributes:
        records: those that were labelled, after a few that warmed it up.
        tokens, seconds: of these, and for them.
        ready_s: until the process was there, with the models loaded and warm.
    """

    records: int
    tokens: int
    seconds: float
    ready_s: float


@dataclass(frozen=True)
class Sample:
    """Records that were really read, tokenised and labelled.

    Attributes:
        records, shards: how many, and from how many shards.
        failed: those of them that cannot be labelled.
        tokens: of all of them.
        rows_per_byte, tokens_per_row: of the shards of each stratum (``stratum_of``).
        beside_s: seconds to read, tokenise and decode them on one CPU.
        timing: of the model; None where no process for it could be had.
        why_not: why there is no timing.
    """

    records: int
    shards: int
    failed: int
    tokens: int
    rows_per_byte: Mapping[Stratum, float]
    tokens_per_row: Mapping[Stratum, float]
    beside_s: float
    timing: Timing | None
    why_not: str = ""


@dataclass(frozen=True)
class Work:
    """What is to be done, and with what.

    Attributes:
        units: to label.
        rows: records in them.
        is_exact: every shard says how many it has.
        tokens: to encode, about.
        n_cpus: all CPUs of the cluster.
        grown_cpus: those that it has once there is room for ``most`` actors.
        fewest, most: model actors.
        gpus: that each of them takes.
        actor_cpus: that each of them reserves.
    """

    units: int
    rows: int
    is_exact: bool
    tokens: int
    n_cpus: float
    grown_cpus: float
    fewest: int
    most: int
    gpus: float
    actor_cpus: float

    def cpus_of(self, n_actors: int) -> float:
        """All CPUs of a cluster that has room for so many actors."""
        return max(self.n_cpus, self.grown_cpus * n_actors / self.most)


def stratum_of(shard: Shard, *, in_group: bool) -> Stratum:
    """Where a shard belongs: large ones say little of small ones, which often are of another source."""
    return shard.suffix, in_group, shard.size.bit_length() // 2


def count_rows(pending: Iterable[Task], rows_per_byte: Mapping[Stratum, float]) -> tuple[dict[Stratum, float], bool]:
    """Records to label in each stratum, and whether that is known or estimated from bytes."""
    rows: dict[Stratum, float] = defaultdict(float)
    is_exact = True
    for task in pending:
        if isinstance(task, Stream):
            share = task.about_n_units / (task.about_n_units + len(task.present))
            stratum = stratum_of(task.shard, in_group=False)
            rows[stratum] += share * task.shard.size * rows_per_byte[stratum]
            is_exact = False
            continue
        for unit in task:
            is_exact = is_exact and unit.n_rows is not None
            for shard in unit.shards:
                stratum = stratum_of(shard, in_group=unit.stop is None)
                n_bytes = shard.size if unit.stop is None else unit.stop - unit.start
                rows[stratum] += n_bytes * rows_per_byte[stratum] if unit.n_rows is None else unit.n_rows
    return rows, is_exact


def duration_s(work: Work, sample: Sample, timing: Timing, *, n_actors: int) -> float:
    """Seconds from the moment the actors' machines are up; no number of them is faster than the driver."""
    return timing.ready_s + max(labelling_s(work, sample, timing, n_actors=n_actors), driver_s(work))


def driver_s(work: Work) -> float:
    """Seconds that handing out all units takes."""
    return work.units * DRIVER_S


def labelling_s(work: Work, sample: Sample, timing: Timing, *, n_actors: int) -> float:
    """Seconds of the actors, and of what feeds them.

    All of it goes by tokens: nothing is padded, so that short records take as long for each as long ones. Reading,
    tokenising and decoding run beside the model. On a GPU the slower of the two decides, on CPUs they share the same
    ones, and their work adds up.
    """
    label_s = work.tokens * timing.seconds / timing.tokens / n_actors
    beside_s = work.tokens * sample.beside_s / sample.tokens
    n_cpus = work.cpus_of(n_actors)
    if work.gpus:
        return max(label_s, beside_s / max(1.0, n_cpus - n_actors * work.actor_cpus))
    return label_s + beside_s / max(1.0, n_cpus)


@dataclass(frozen=True)
class Estimate:
    """What a dry run tells.

    Attributes:
        shards, n_bytes: files to read.
        all_shards: files among the inputs, those that are labelled already among them.
        kept_units: work units that are there already.
        sharing, hardware, tasks, precision: in words.
        work: what is to be done.
        sample: what was measured.
        seen_columns: files whose columns were looked at.
    """

    shards: int
    n_bytes: int
    all_shards: int
    kept_units: int
    sharing: str
    hardware: str
    tasks: str
    precision: str
    work: Work
    sample: Sample
    seen_columns: int

    @classmethod
    def of(cls, plan: JobPlan, hardware: Hardware, sample: Sample, *, present: Mapping[str, float]) -> Estimate:
        """The estimate for a plan that has something to label, on a cluster with these resources."""
        n_cpus = present.get("CPU", 0.0)
        has_gpus = hardware.max_actors * hardware.actor_gpus <= present.get("GPU", 0.0)
        shards = {shard for task in plan.pending for shard in shards_of(task)}
        rows, is_exact = count_rows(plan.pending, sample.rows_per_byte)
        return cls(
            shards=len(shards),
            n_bytes=sum(shard.size for shard in shards),
            all_shards=len(plan.shards),
            kept_units=len(plan.parts),
            sharing=describe_sharing(plan.passes),
            hardware=hardware.describe(),
            tasks=f"an actor reserves {hardware.actor_cpus:g} of {n_cpus:g} CPUs"
            f"{' and a GPU' if hardware.actor_gpus else ''}, a task beside it {hardware.task_cpus:g}",
            precision=plan.precision,
            work=Work(
                units=plan.n_units,
                rows=round(sum(rows.values())),
                is_exact=is_exact,
                tokens=round(sum(n_rows * sample.tokens_per_row[stratum] for stratum, n_rows in rows.items())),
                n_cpus=n_cpus,
                grown_cpus=n_cpus if hardware.actor_gpus and has_gpus else hardware.max_cpus,
                fewest=hardware.min_actors,
                most=hardware.max_actors,
                gpus=hardware.actor_gpus,
                actor_cpus=hardware.actor_cpus,
            ),
            sample=sample,
            seen_columns=plan.seen_columns,
        )

    def lines(self) -> list[str]:
        """The estimate as it is printed."""
        work, sample = self.work, self.sample
        about = "" if work.is_exact else "about "
        failed = f", {sample.failed:,} of them cannot be labelled" if sample.failed else ""
        return [
            f"dry run: {work.units:,} units to label, {self.kept_units:,} already there; nothing was written",
            f"input: {about}{work.rows:,} rows, about {work.tokens:,} tokens, {size_in_words(self.n_bytes)} "
            f"in {self.shards:,} of {self.all_shards:,} shards",
            self.sharing,
            f"{self.hardware}, {self.precision}; {self.tasks}",
            f"checked: models, columns of {self.seen_columns:,} of {self.all_shards:,} shards, "
            "rights to write the output",
            f"sample: {sample.records:,} records of {sample.shards:,} shards read and tokenised{failed}",
            *self._times(),
        ]

    def _times(self) -> list[str]:
        timing, work = self.sample.timing, self.work
        if timing is None:
            return [f"no estimate of the time: {self.sample.why_not}"]
        measured = (
            f"{timing.records:,} of them labelled, {timing.tokens / timing.seconds:,.0f} tokens a second in one actor"
        )
        unit, each = ("GPU", work.gpus) if work.gpus else ("CPU", work.grown_cpus / work.most)
        lines = []
        for n_actors in dict.fromkeys((work.most, work.fewest)):
            seconds = duration_s(work, self.sample, timing, n_actors=n_actors)
            lines.append(
                f"estimate: {time_in_words(seconds)} with {n_actors:,} actor{'s' if n_actors > 1 else ''}, "
                f"{seconds * n_actors * each / 3600:,.2f} {unit}-hours ({measured})"
            )
        if driver_s(work) > max(_WORTH_TELLING_S, labelling_s(work, self.sample, timing, n_actors=work.most)):
            lines.append(
                f"the driver, which hands out about {1 / DRIVER_S:.0f} units a second, is slower than the actors: "
                "give a new output a higher --unit-rows"
            )
        return lines


def shards_of(task: Task) -> tuple[Shard, ...]:
    """The files that a task reads."""
    return (task.shard,) if isinstance(task, Stream) else task[0].shards


def time_in_words(seconds: float) -> str:
    """A time with no more digits than an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def size_in_words(n_bytes: float) -> str:
    """Bytes in the unit that leaves few digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:  # which three digits would make a thousand of
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.0f} TB"
