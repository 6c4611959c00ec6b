"""The way of the data without Ray: texts in, output columns out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import heads_of, plan_passes
from pipelines.plan import make_plan
from pipelines.predict import Predictor
from pipelines.read import read, text_name
from pipelines.run import run
from pipelines.spec import JobSpec
from pipelines.summary import Summary
from pipelines.write import write_part


def job(checkpoint: Path | None = None, **changes: Any) -> JobSpec:
    """A job that is never run as a whole."""
    model = {} if checkpoint is None else {"model": str(checkpoint)}
    return JobSpec.of({"input": ["in"], "output": "out", **model, **changes})


def whole_job(input: Path | str, output: Path | str, model: Path | str, **changes: Any) -> JobSpec:
    """A job with several units a shard that takes a fifth of broken records."""
    values = {"input": [str(input)], "output": str(output), "model": str(model), "unit_rows": 6}
    return JobSpec.of({**values, "max_failed_fraction": 0.2, **changes})


def parts(output: Path) -> list[Path]:
    """The parts of an output that is not partitioned."""
    return sorted(output.glob("part-*"))


def manifest(output: Path) -> dict[str, Any]:
    """The values of its manifest."""
    values: dict[str, Any] = json.loads((output / "_manifest.json").read_text())
    return values


def block(errors: list[str | None] | None = None, **columns: list[Any]) -> pa.Table:
    """What reading gives: texts or lists of texts by column; a record without one has failed."""
    n_rows = len(next(iter(columns.values())))
    if errors is None:
        errors = ["missing" if any(values[i] is None for values in columns.values()) else None for i in range(n_rows)]
    arrays = {}
    for name, values in columns.items():
        is_list = any(isinstance(value, list) for value in values)
        arrays[text_name(name)] = pa.array(values, pa.list_(pa.large_string()) if is_list else pa.large_string())
    return pa.table({"id": [str(i) for i in range(n_rows)], **arrays, "error": pa.array(errors, pa.string())})


def label(spec: JobSpec, errors: list[str | None] | None = None, **columns: list[Any]) -> pa.Table:
    """Encode, predict, decode."""
    passes = plan_passes(spec)
    encoded = encode(block(errors, **columns), [encoder_pass.encoding for encoder_pass in passes])
    return decode(Predictor(passes, max_batch_tokens=spec.max_batch_tokens or 100)(encoded), passes)


def label_here(spec: JobSpec) -> None:
    """Label and write in this process what a job has to do, by the same stages, as if it had been killed then."""
    plan = make_plan(spec)
    encodings = [encoder_pass.encoding for encoder_pass in plan.passes]
    predictor = Predictor(plan.passes, precision=plan.precision)
    for task in plan.pending:
        for envelope in read(task, plan.columns):
            labelled = envelope._replace(block=decode(predictor(encode(envelope.block, encodings)), plan.passes))
            write_part(
                labelled,
                output=spec.output,
                output_format=spec.output_format,
                heads=heads_of(plan.passes),
                partitioning=spec.partitioning,
            )


def run_here(spec: JobSpec) -> Summary:
    """A job that this process labels; ``run`` finds all there and finishes."""
    label_here(spec)
    return run(spec)
