"""What the model gave in, one struct column a head out: the CPU stage after the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine.packing import offsets_of
from pipelines.culprits import good_rows, with_errors
from pipelines.heads import Results
from pipelines.models import EncoderPass, HeadPlan
from pipelines.predict import N_COPIED, N_TOKENS, RESULT
from pipelines.read import text_name
from pipelines.sequences import at_rows, list_offsets, sequences_of


def decode(block: pa.Table, passes: Sequence[EncoderPass]) -> pa.Table:
    """Each head's column in place of what the model read and gave; null where the row has failed."""
    for encoder_pass in passes:
        for plan in encoder_pass.heads:
            block = _without_nan(block, plan)
    rows = pa.array(good_rows(block))
    columns = {name: column for encoder_pass in passes for name, column in _columns(block, encoder_pass, rows).items()}
    kept = [name for name in block.column_names if not name.startswith("__") or name in (N_TOKENS, N_COPIED)]
    block = block.select(kept)
    for name, column in columns.items():
        block = block.append_column(name, _spread(column, rows, len(block)))
    return block


def _columns(block: pa.Table, encoder_pass: EncoderPass, rows: pa.Array) -> dict[str, pa.StructArray]:
    """The columns of a pass, for the rows that have not failed."""
    if not len(rows):
        return {plan.name: pa.array([], plan.head.schema) for plan in encoder_pass.heads}
    encoding = encoder_pass.encoding
    sequences = sequences_of(block, encoding.name, rows)
    texts = at_rows(block[text_name(encoding.inputs.columns[-1])], rows).to_pylist() if encoding.needs_spans else None
    columns = {}
    for plan in encoder_pass.heads:
        values, offsets = _result(block, plan, rows)
        columns[plan.name] = plan.head.to_arrow(Results(values, offsets, sequences, texts))
    return columns


def _without_nan(block: pa.Table, plan: HeadPlan) -> pa.Table:
    """Mark the rows for which the model gave what is no number."""
    rows = pa.array(good_rows(block))
    if not len(rows):
        return block
    values, offsets = _result(block, plan, rows)
    is_broken = np.logical_not(np.isfinite(values).all(axis=1))
    n_broken = np.diff(offsets_of(is_broken)[offsets])
    reason = f"{plan.name}: the model's result is no finite number: try --precision fp32"
    return with_errors(block, dict.fromkeys(rows.to_numpy()[n_broken > 0].tolist(), reason))


def _result(block: pa.Table, plan: HeadPlan, rows: pa.Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, W) rows of a head, and where each record's begin."""
    lists = at_rows(block[RESULT + plan.name], rows)
    values = lists.flatten()
    return values.flatten().to_numpy().reshape(len(values), values.type.list_size), list_offsets(lists)


def _spread(values: pa.StructArray, rows: pa.Array, n_rows: int) -> pa.Array:
    """Values at these rows, null elsewhere."""
    if len(rows) == n_rows:
        return values
    places = np.full(n_rows, -1)
    places[rows.to_numpy()] = np.arange(len(values))
    return values.take(pa.array(places, mask=places < 0))
