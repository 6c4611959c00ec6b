"""The columns that the model adds to a block, and the rows that the heads read from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert.engine import Rows
from pipelines.sequences import at_rows, list_column, list_offsets

N_TOKENS = "__tokens"  # that were encoded of each record
N_COPIED = "__copied"  # those of them whose results were taken from an equal record
RESULT = "__result_"  # and the head's name: list of fixed-size lists of float32


def add_result(block: pa.Table, name: str, result: Rows, rows: NDArray[np.int64]) -> pa.Table:
    """The block with a column for one head: what the model gave for these rows, null elsewhere."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(result.values.ravel()), result.values.shape[-1])
    return block.append_column(RESULT + name, list_column(lists, np.diff(result.offsets), rows, len(block)))


def result_of(block: pa.Table, name: str, rows: pa.Array) -> Rows:
    """What ``add_result`` wrote for these ascending rows, none of which has failed."""
    lists = at_rows(block[RESULT + name], rows)
    values = lists.flatten()
    return Rows(values.flatten().to_numpy().reshape(len(values), values.type.list_size), list_offsets(lists))
