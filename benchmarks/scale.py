"""How the job's cost grows with rows and shards, the model's own computing left out.

The job's real pipeline with an actor that loads no model and computes nothing: reading, tokenising, Ray, making
columns and writing are real. Measured of each corpus: seconds of the plan, of the same plan when every part is there,
and of the run; microseconds for a row more; what share of its tasks' time is tokenising; and the driver's peak
memory, apart from it the pages of Ray's object store that the driver has touched: they are shared with every process
of the machine, and never more than the store. A run that is not measured comes first and starts Ray's processes; the
actor starts anew in each.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ray

from benchmarks.corpora import large_shards, tiny_shards
from benchmarks.inputs import CHECKPOINT
from benchmarks.machine import describe
from benchmarks.stand_in import NullPredictor
from pipelines.plan import JobPlan, make_plan
from pipelines.resources import share_out
from pipelines.run import parts_from, pipeline
from pipelines.spec import JobSpec
from pipelines.survive import open_ledger
from pipelines.write import Part

GOAL_PLAN_S = 60
GOAL_FLAT_MIB = 64  # by so much the driver's peak may differ between the fewest rows and the most
LOOK_S = 0.2


class Run(NamedTuple):
    """What was measured of one corpus.

    Attributes:
        plan_s, resume_s: seconds of the plan before anything is labelled, and when everything is.
        run_s: seconds from starting the actor to the last part.
        tokenising: share of the time of all tasks.
        peak_mib: the driver's most resident memory of its own from the plan to the last part.
        growth_mib: the same, less what it had before.
        store_mib: pages of the object store that it has touched by then.
    """

    rows: int
    shards: int
    units: int
    plan_s: float
    resume_s: float
    run_s: float
    tokenising: float
    peak_mib: float
    growth_mib: float
    store_mib: float


def main() -> None:
    """Print a line for each corpus, and what became of the goals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[10**4, 10**5, 10**6], help="rows of ten words (default: up to 1e6)"
    )
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[10**3, 10**5], help="shards of one row, many to a unit"
    )
    parser.add_argument("--lone-shards", type=int, default=10**5, help="shards to plan as a unit each; 0: leave out")
    options = parser.parse_args()
    print(f"# benchmarks/scale.py, {describe()}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.lone_shards:
            print_plan(f"{options.lone_shards:,} shards, a unit each", plan_lone(folder, options.lone_shards))
        if options.rows or options.shards:
            connect()
            measure(large_shards(folder / "warm-up", 20_000), folder)
        runs = print_runs(measure(large_shards(folder / f"{n}-rows", n), folder) for n in options.rows)
        if runs:
            more_mib = max(run.peak_mib for run in runs) - runs[0].peak_mib
            print(
                f"driver's peak above that at the fewest rows: {more_mib:.0f} MiB (goal: at most {GOAL_FLAT_MIB} MiB)"
            )
        for run in print_runs(measure(tiny_shards(folder / f"{n}-shards", n), folder) for n in options.shards):
            print_plan(f"{run.shards:,} shards in {run.units:,} units", run.plan_s)


def connect() -> None:
    """A Ray on this machine that keeps its idle processes, and says nothing."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        "local",
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=500 * 2**20,
        _system_config={"num_workers_soft_limit": 8},
    )


def plan_lone(folder: Path, n_shards: int) -> float:
    """Seconds to plan shards each of which is looked into and becomes a unit."""
    corpus = tiny_shards(folder / "lone", n_shards, n_words=40)  # too long for a group
    started = time.perf_counter()
    plan = make_plan(spec_for(corpus, folder / "none", unit_rows=1))
    assert plan.n_units == n_shards, "the shards are put into groups"
    return time.perf_counter() - started


def spec_for(corpus: Path, output: Path, **settings: Any) -> JobSpec:
    """A job with the spam example's checkpoint, for its tokenizer and labels."""
    return JobSpec.of({"input": [str(corpus)], "output": str(output), "model": str(CHECKPOINT), **settings})


def measure(corpus: Path, folder: Path) -> Run:
    """Plan, run, and plan again."""
    spec = spec_for(corpus, folder / f"{corpus.name}-labelled")
    with peak_memory() as memory:
        started = time.perf_counter()
        plan = make_plan(spec)
        planned = time.perf_counter()
        parts, dataset = label(plan)
        labelled = time.perf_counter()
    assert make_plan(spec).n_units == 0, "parts are missing"
    return Run(
        rows=sum(part.rows for part in parts),
        shards=len(plan.shards),
        units=len(parts),
        plan_s=planned - started,
        resume_s=time.perf_counter() - labelled,
        run_s=labelled - planned,
        tokenising=share_of(dataset, "encode"),
        peak_mib=memory.peak_mib,
        growth_mib=memory.peak_mib - memory.before_mib,
        store_mib=memory.store_mib,
    )


def label(plan: JobPlan) -> tuple[list[Part], ray.data.Dataset]:
    """The job's run without its model."""
    ledger = open_ledger()
    hardware = share_out(plan.spec, "cpu", n_units=plan.n_units)
    dataset = pipeline(plan, hardware, ledger, predictor=NullPredictor)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    parts = [part for rows in batches for part in parts_from(rows)]
    ray.kill(ledger)
    return parts, dataset


def share_of(dataset: ray.data.Dataset, stage: str) -> float:
    """A stage's share of the time that the functions of all stages took."""
    seconds = dict(_seconds_of_stages(dataset._get_stats_summary()))
    return sum(s for name, s in seconds.items() if stage in name) / sum(seconds.values())


def _seconds_of_stages(summary: Any) -> Iterator[tuple[str, float]]:
    for parent in summary.parents:
        yield from _seconds_of_stages(parent)
    yield from ((stats.operator_name, stats.function_body_time.sum) for stats in summary.operators_stats)


@dataclass
class Memory:
    """This process's resident memory of its own before, and at most; and what it has touched of the object store."""

    before_mib: float
    peak_mib: float = 0.0
    store_mib: float = 0.0

    def look(self) -> None:
        """Note what it is now."""
        self.peak_mib = max(self.peak_mib, _own_mib())
        self.store_mib = max(self.store_mib, _status_mib("RssShmem"))


@contextmanager
def peak_memory() -> Iterator[Memory]:
    """Looked at some times a second, since Linux keeps a peak of the whole alone, shared pages included.

    A peak between two looks counts as that whole less all the shared pages that there are in the end.
    """
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    memory, is_over = Memory(_own_mib()), threading.Event()

    def watch() -> None:
        while not is_over.wait(LOOK_S):
            memory.look()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield memory
    finally:
        is_over.set()
        watching.join()
        memory.look()
        memory.peak_mib = max(memory.peak_mib, _status_mib("VmHWM") - memory.store_mib)


def _own_mib() -> float:
    return _status_mib("RssAnon") + _status_mib("RssFile")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def print_plan(what: str, plan_s: float) -> None:
    """A line about a plan."""
    print(f"plan of {what}: {plan_s:.1f} s (goal: below {GOAL_PLAN_S} s)", flush=True)


def print_runs(measured: Iterable[Run]) -> list[Run]:
    """A table, line by line as it is measured.

    An added row is one more than on the line above, so that it bears no share of the start.
    """
    titles = (
        "rows",
        "shards",
        "units",
        "plan s",
        "replan s",
        "run s",
        "µs/added row",
        "tokenising",
        "driver MiB",
        "growth",
        "store MiB",
    )
    widths = [max(11, len(title) + 2) for title in titles]
    runs: list[Run] = []
    for run in measured:
        if not runs:
            print("".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
        added_us = 1e6 * (run.run_s - runs[-1].run_s) / (run.rows - runs[-1].rows) if runs else float("nan")
        cells = (
            *(f"{count:,}" for count in (run.rows, run.shards, run.units)),
            *(f"{number:.1f}" for number in (run.plan_s, run.resume_s, run.run_s, added_us)),
            f"{run.tokenising:.0%}",
            *(f"{mib:.0f}" for mib in (run.peak_mib, run.growth_mib, run.store_mib)),
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)
        runs.append(run)
    return runs


if __name__ == "__main__":
    main()
