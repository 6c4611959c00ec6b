"""What the model gave in, one struct column a head out: the CPU stage after the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine import Rows
from convbert.engine.packing import sums_of
from pipelines.culprits import good_rows, with_errors
from pipelines.heads import Results
from pipelines.models import EncoderPass, heads_of
from pipelines.read import text_name
from pipelines.results import N_COPIED, N_TOKENS, result_of
from pipelines.sequences import at_rows, sequences_of


def decode(block: pa.Table, passes: Sequence[EncoderPass]) -> pa.Table:
    """Each head's column in place of what the model read and gave; null where the row has failed."""
    for name in heads_of(passes):
        rows = good_rows(block)
        if len(rows):
            is_broken = has_no_number(result_of(block, name, pa.array(rows)))
            block = with_errors(block, dict.fromkeys(rows[is_broken].tolist(), no_number(name)))
    rows = pa.array(good_rows(block))
    columns = {name: column for encoder_pass in passes for name, column in _columns(block, encoder_pass, rows).items()}
    kept = [name for name in block.column_names if not name.startswith("__") or name in (N_TOKENS, N_COPIED)]
    block = block.select(kept)
    for name, column in columns.items():
        block = block.append_column(name, _spread(column, rows, len(block)))
    return block


def has_no_number(rows: Rows) -> NDArray[np.bool_]:
    """(R,) the records for which the model gave what is no finite number."""
    is_broken = np.logical_not(np.isfinite(rows.values).all(axis=1))
    return sums_of(is_broken, rows.offsets) > 0


def no_number(head: str) -> str:
    """The error of such a record."""
    return f"{head}: the model's result is no finite number: try precision fp32"


def _columns(block: pa.Table, encoder_pass: EncoderPass, rows: pa.Array) -> dict[str, pa.StructArray]:
    """The columns of a pass, for the rows that have not failed."""
    if not len(rows):
        return {plan.name: pa.array([], plan.head.schema) for plan in encoder_pass.heads}
    encoding = encoder_pass.encoding
    sequences = sequences_of(block, encoding.name, rows)
    texts = at_rows(block[text_name(encoding.inputs.columns[-1])], rows).to_pylist() if encoding.needs_spans else None
    return {
        plan.name: plan.head.to_arrow(Results(*result_of(block, plan.name, rows), sequences, texts))
        for plan in encoder_pass.heads
    }


def _spread(values: pa.StructArray, rows: pa.Array, n_rows: int) -> pa.Array:
    """Values at these rows, null elsewhere."""
    if len(rows) == n_rows:
        return values
    places = np.full(n_rows, -1)
    places[rows.to_numpy()] = np.arange(len(values))
    return values.take(pa.array(places, mask=places < 0))
