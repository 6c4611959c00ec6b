"""The way of the data without Ray: texts in, output columns out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import plan_passes
from pipelines.predict import Predictor
from pipelines.read import text_name
from pipelines.spec import JobSpec


def job(checkpoint: Path | None = None, **changes: Any) -> JobSpec:
    """A job that is never run as a whole."""
    model = {} if checkpoint is None else {"model": str(checkpoint)}
    return JobSpec.of({"input": ["in"], "output": "out", **model, **changes})


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
