"""How much of the actors' time the pipeline and Ray cost, from one actor to many.

The job's real pipeline on a simulated cluster: several nodes on this one machine, with made-up CPU counts. The actor
computes nothing: it waits as long as a model of the given rate would take for the unit. Efficiency is what the model
would have computed, units times wait, over what the actors had, actors times seconds. It is counted from when every
actor has had its first units, in which the processes of Ray's tasks start, to the end of the last unit.

Printed beside it: the same up to when the first actor has had its last unit; the median of the milliseconds that an
actor has nothing to do between two units; how busy this machine's cores are, which do all of the cluster's work; and
the milliseconds of one core that the driver, of which a cluster has one, spends on a unit.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster
from ray.data import DataContext

from benchmarks.corpora import short_texts
from benchmarks.inputs import CHECKPOINT
from benchmarks.machine import describe
from benchmarks.stand_in import Call, calls_of, waiting
from pipelines.plan import make_plan
from pipelines.predict import Predictor
from pipelines.resources import Hardware
from pipelines.run import parts_from, pipeline
from pipelines.spec import JobSpec
from pipelines.survive import open_ledger

GOALS = {16: 0.95}  # efficiency, by actors
MOST_NODES = 4
TASKS_AT_A_TIME = 4  # on all nodes: this machine's own cores run them
MOST_START_S = 600  # of all actors, whose processes two cores start one after the other


class Efficiency(NamedTuple):
    """What the calls of a run tell, from when every actor has had its first units.

    Attributes:
        n_units: that end later.
        seconds: to the end of the last.
        share: of the actors' seconds that a model would have computed for.
        steady: the same, to the end of that actor's last unit which is the first to have no further.
        gap_ms: median of an actor's time between two units.
    """

    n_units: int
    seconds: float
    share: float
    steady: float
    gap_ms: float


class Effort(NamedTuple):
    """What the machine did meanwhile.

    Attributes:
        busy: share of all cores' time.
        driver_s: of one core, by this process.
    """

    busy: float
    driver_s: float


def main() -> None:
    """Print a line for each number of actors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16], help="64 needs 16 GiB (default: 1 4 16)")
    parser.add_argument("--units", type=int, default=20, help="for each actor (default: 20)")
    parser.add_argument("--skip", type=int, default=8, help="of which so many do not count (default: 8)")
    parser.add_argument("--unit-rows", type=int, default=200, help="rows of ten words in a unit (default: 200)")
    parser.add_argument(
        "--tokens-per-second", type=float, default=3500.0, help="of the model that is waited for (default: 3500)"
    )
    options = parser.parse_args()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    print(f"# benchmarks/cluster.py, {describe()}")
    print(f"units of {options.unit_rows} rows, {options.tokens_per_second:,.0f} tokens/s an actor")
    titles = ("actors", "units", "wait s", "seconds", "efficiency", "goal", "steady", "gap ms", "busy", "driver ms")
    print("".join(f"{title:>11}" for title in titles), flush=True)
    for n_actors in options.actors:
        with simulated_cluster(n_nodes=min(n_actors, MOST_NODES)):
            calls, effort = measure(
                hardware_for(n_actors),
                n_units=n_actors * options.units,
                unit_rows=options.unit_rows,
                tokens_per_s=options.tokens_per_second,
            )
        found = efficiency(calls, n_actors, skip=options.skip)
        print(
            f"{n_actors:11}{found.n_units:11}{statistics.mean(call.wait_s for call in calls):11.2f}"
            f"{found.seconds:11.1f}{found.share:11.3f}{GOALS.get(n_actors, '-'):>11}{found.steady:11.3f}"
            f"{found.gap_ms:11.1f}{effort.busy:11.0%}{1000 * effort.driver_s / len(calls):11.1f}",
            flush=True,
        )


@contextmanager
def simulated_cluster(*, n_nodes: int) -> Iterator[None]:
    """Ray nodes on this machine, joined; each says that it has so many CPUs that half are for actors."""
    node: dict[str, Any] = {"num_cpus": 2 * TASKS_AT_A_TIME // n_nodes, "object_store_memory": 200 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**node, "include_dashboard": False, "_system_config": {"num_workers_soft_limit": 8}},
    )
    try:
        for _ in range(n_nodes - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def hardware_for(n_actors: int) -> Hardware:
    """How the cluster is shared out: half of it among actors, as in a real job."""
    return Hardware(
        min_actors=n_actors,
        max_actors=n_actors,
        actor_cpus=TASKS_AT_A_TIME / n_actors,
        actor_gpus=0,
        n_threads=1,
        task_cpus=0.99,  # unequal to the actors'
    )


def measure(hardware: Hardware, *, n_units: int, unit_rows: int, tokens_per_s: float) -> tuple[list[Call], Effort]:
    """Run a corpus of so many units through the pipeline."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = pa.table({"text": short_texts(n_units * unit_rows)})
        pq.write_table(table, folder / "texts.parquet", row_group_size=unit_rows)
        log = folder / "calls"
        effort = label(folder, hardware, unit_rows, waiting(tokens_per_s=tokens_per_s, log=str(log)))
        return calls_of(log.read_text().splitlines()), effort


def label(folder: Path, hardware: Hardware, unit_rows: int, predictor: type[Predictor]) -> Effort:
    """The job's run, begun when all of its actors are up."""
    paths = {"input": [str(folder / "texts.parquet")], "output": str(folder / "out"), "model": str(CHECKPOINT)}
    plan = make_plan(JobSpec.of({**paths, "unit_rows": unit_rows}))
    DataContext.get_current().wait_for_min_actors_s = MOST_START_S
    ledger = open_ledger()
    dataset = pipeline(plan, hardware, ledger, predictor=predictor)
    n_parts = 0
    before = after = _clock()
    for number, rows in enumerate(dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
        n_parts += len(parts_from(rows))
        after = _clock()
        if number == 0:
            before = after  # what the start of the actors takes does not count
    ray.kill(ledger)
    assert n_parts == plan.n_units, "parts are missing"
    idle, total, driver_s = (late - early for early, late in zip(before, after, strict=True))
    return Effort(busy=1 - idle / max(1, total), driver_s=driver_s)


def _clock() -> tuple[float, float, float]:
    """Ticks of all cores without work, all ticks, and seconds of this process."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks), time.process_time()


def efficiency(calls: Sequence[Call], n_actors: int, *, skip: int = 0) -> Efficiency:
    """Of all actors' calls.

    Args:
        calls: of a run.
        n_actors: of which some may have had none.
        skip: first units of each actor that do not count.
    """
    by_actor: dict[int, list[Call]] = {}
    for call in sorted(calls, key=lambda call: call.start):
        by_actor.setdefault(call.actor, []).append(call)
    start = max(its[min(skip, len(its) - 1)].start for its in by_actor.values())
    stop = max(call.stop for call in calls)
    first_stop = min(its[-1].stop for its in by_actor.values())
    pairs = [pair for its in by_actor.values() for pair in pairwise(its)]
    gaps = [after.start - before.stop for before, after in pairs if before.stop >= start]
    return Efficiency(
        n_units=sum(call.stop > start for call in calls),
        seconds=stop - start,
        share=_share(calls, n_actors, start, stop),
        steady=_share(calls, n_actors, start, first_stop),
        gap_ms=1000 * statistics.median(gaps) if gaps else 0.0,
    )


def _share(calls: Sequence[Call], n_actors: int, start: float, stop: float) -> float:
    """Computing's share of these seconds; a call that is partly outside counts in part."""
    if stop <= start:
        return float("nan")
    inside = (max(0.0, min(call.stop, stop) - max(call.start, start)) / (call.stop - call.start) for call in calls)
    return sum(part * call.wait_s for part, call in zip(inside, calls, strict=True)) / (n_actors * (stop - start))


if __name__ == "__main__":
    main()
