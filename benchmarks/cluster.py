"""How much of the actors' time the pipeline and Ray cost, from one actor to many.

The job's real pipeline on a simulated cluster: several nodes on this one machine, with made-up CPU counts. The actor
computes nothing: it waits as long as a model of the given rate would take for the unit. Efficiency is what the model
would have computed, units times wait, over what the actors had, actors times the seconds between the first unit's
start and the last one's end. The start of the actors is outside of it; how long the first units take to reach every
actor, and the last ones to end, is inside. A small run that starts the processes of Ray's tasks comes first.

Printed beside it: the same from when every actor has its first unit to when the first one has had its last; seconds
before and after that; and the median of the milliseconds that an actor has nothing to do between two units.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
MOST_START_S = 200  # of all actors


class Efficiency(NamedTuple):
    """What the calls of a run tell.

    Attributes:
        n_actors: those that had a unit.
        n_units: labelled.
        seconds: from the first unit's start to the last one's end.
        share: of the actors' seconds that a model would have computed for.
        steady: the same, from when the last actor has its first unit to when the first has ended its last one.
        ramp_s: until the last actor has its first unit.
        tail_s: from the first actor's last unit to the end.
        gap_ms: median of an actor's time between two units.
    """

    n_actors: int
    n_units: int
    seconds: float
    share: float
    steady: float
    ramp_s: float
    tail_s: float
    gap_ms: float


def main() -> None:
    """Print a line for each number of actors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16], help="64 needs 16 GiB (default: 1 4 16)")
    parser.add_argument("--units", type=int, default=40, help="for each actor (default: 40)")
    parser.add_argument("--unit-rows", type=int, default=200, help="rows of ten words in a unit (default: 200)")
    parser.add_argument(
        "--tokens-per-second", type=float, default=3500.0, help="of the model that is waited for (default: 3500)"
    )
    options = parser.parse_args()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    print(f"# benchmarks/cluster.py, {describe()}")
    print(f"units of {options.unit_rows} rows, {options.tokens_per_second:,.0f} tokens/s an actor")
    titles = ("actors", "units", "seconds", "efficiency", "goal", "steady", "ramp s", "tail s", "gap ms")
    print("".join(f"{title:>11}" for title in titles))
    for n_actors in options.actors:
        with simulated_cluster(n_nodes=min(n_actors, MOST_NODES)):
            pool = hardware_for(n_actors)
            one = replace(pool, min_actors=1, max_actors=1)
            measure(one, n_units=16, unit_rows=options.unit_rows, tokens_per_s=1e9)  # starts the tasks' processes
            found = measure(
                pool,
                n_units=n_actors * options.units,
                unit_rows=options.unit_rows,
                tokens_per_s=options.tokens_per_second,
            )
        print(
            f"{found.n_actors:11}{found.n_units:11}{found.seconds:11.1f}{found.share:11.3f}"
            f"{GOALS.get(n_actors, '-'):>11}{found.steady:11.3f}{found.ramp_s:11.2f}{found.tail_s:11.2f}"
            f"{found.gap_ms:11.1f}",
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


def measure(hardware: Hardware, *, n_units: int, unit_rows: int, tokens_per_s: float) -> Efficiency:
    """Run a corpus of so many units through the pipeline."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = pa.table({"text": short_texts(n_units * unit_rows)})
        pq.write_table(table, folder / "texts.parquet", row_group_size=unit_rows)
        log = folder / "calls"
        label(folder, hardware, unit_rows, waiting(tokens_per_s=tokens_per_s, log=str(log)))
        return efficiency(calls_of(log.read_text().splitlines()), hardware.max_actors)


def label(folder: Path, hardware: Hardware, unit_rows: int, predictor: type[Predictor]) -> None:
    """The job's run, begun when all of its actors are up."""
    paths = {"input": [str(folder / "texts.parquet")], "output": str(folder / "out"), "model": str(CHECKPOINT)}
    plan = make_plan(JobSpec.of({**paths, "unit_rows": unit_rows}))
    DataContext.get_current().wait_for_min_actors_s = MOST_START_S
    ledger = open_ledger()
    dataset = pipeline(plan, hardware, ledger, predictor=predictor)
    parts = [p for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow") for p in parts_from(rows)]
    assert len(parts) == plan.n_units, "parts are missing"
    ray.kill(ledger)


def efficiency(calls: Sequence[Call], n_actors: int) -> Efficiency:
    """Of these calls, by actors of which some may have had none."""
    by_actor: dict[int, list[Call]] = {}
    for call in sorted(calls, key=lambda call: call.start):
        by_actor.setdefault(call.actor, []).append(call)
    start, stop = min(call.start for call in calls), max(call.stop for call in calls)
    gaps = [after.start - before.stop for its in by_actor.values() for before, after in pairwise(its)]
    everybody = max(its[0].start for its in by_actor.values()), min(its[-1].stop for its in by_actor.values())
    return Efficiency(
        n_actors=n_actors,
        n_units=len(calls),
        seconds=stop - start,
        share=sum(call.wait_s for call in calls) / (n_actors * (stop - start)),
        steady=_steady(calls, n_actors, *everybody),
        ramp_s=everybody[0] - start,
        tail_s=stop - everybody[1],
        gap_ms=1000 * statistics.median(gaps) if gaps else 0.0,
    )


def _steady(calls: Sequence[Call], n_actors: int, start: float, stop: float) -> float:
    """Share of these seconds; a call that is partly outside counts in part."""
    if stop <= start:
        return float("nan")
    inside = (max(0.0, min(call.stop, stop) - max(call.start, start)) / (call.stop - call.start) for call in calls)
    return sum(part * call.wait_s for part, call in zip(inside, calls, strict=True)) / (n_actors * (stop - start))


if __name__ == "__main__":
    main()
