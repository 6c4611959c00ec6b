"""A job's own pipeline and requests for GPUs, on nodes that only say they have one: the model computes nothing.

python -m tests.deploy.stand_in_job INPUT OUTPUT N_ACTORS
"""

from __future__ import annotations

import sys

from benchmarks.stand_in import NullPredictor
from pipelines.plan import make_plan
from pipelines.resources import connect, share_out
from pipelines.run import parts_from, pipeline
from pipelines.spec import JobSpec
from pipelines.survive import open_ledger


def main(source: str, output: str, n_actors: int) -> None:
    """Label, and print how many rows came out."""
    pool = {"min_actors": n_actors, "max_actors": n_actors}
    spec = {"input": [source], "output": output, "model": "examples/spam/checkpoint", "unit_rows": 100}
    connect()
    plan = make_plan(JobSpec.of({**spec, **pool, "device": "cuda"}))
    hardware = share_out(plan.spec, plan.device, n_units=plan.n_units)
    dataset = pipeline(plan, hardware, open_ledger(), predictor=NullPredictor)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    print("rows:", sum(part.rows for rows in batches for part in parts_from(rows)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
