from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import plan_passes
from pipelines.predict import Predictor
from pipelines.results import N_COPIED, N_TOKENS, RESULT
from tests.pipelines.labelling import block, job, label


def test_only_the_heads_columns_are_added(checkpoint: Path) -> None:
    result = label(job(head={"a": str(checkpoint), "b": str(checkpoint)}), text=["free", None])
    assert result.column_names == ["id", "error", N_TOKENS, N_COPIED, "a", "b"]
    assert [row is None for row in result["a"].to_pylist()] == [False, True]


def test_a_block_of_failures_has_typed_columns(checkpoint: Path) -> None:
    result = label(job(checkpoint), text=[None, None])
    assert result["prediction"].to_pylist() == [None, None]
    assert result["prediction"].type == label(job(checkpoint), text=["free"])["prediction"].type


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_an_error(bad: float, checkpoint: Path) -> None:
    passes = plan_passes(job(checkpoint))
    given = Predictor(passes)(encode(block(text=["free", "mail", None]), [p.encoding for p in passes]))
    broken = given[RESULT + "prediction"].to_pylist()
    broken[1][0][1] = bad
    place = given.schema.get_field_index(RESULT + "prediction")
    type_ = given.schema.field(place).type
    result = decode(given.set_column(place, RESULT + "prediction", pa.array(broken, type_)), passes)
    assert result["error"].to_pylist() == [
        None,
        "prediction: the model's result is no finite number: try precision fp32",
        "missing",
    ]
    assert [row is None for row in result["prediction"].to_pylist()] == [False, True, True]
