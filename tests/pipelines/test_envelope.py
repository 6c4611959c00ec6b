from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.envelope import Envelope


@pytest.mark.parametrize("n_rows", [0, 1, 1000])
def test_what_is_sealed_comes_out_again(n_rows: int) -> None:
    pieces = [pa.table({"n": pa.array(range(i, i + n), pa.int64())}) for i, n in ((0, n_rows // 2), (7, n_rows // 3))]
    block = pa.concat_tables([*pieces, pa.table({"n": pa.array([None] * (n_rows % 2), pa.int64())})])
    envelope = Envelope("part-a", len(block), False, block, busy_s=1.5)
    row = envelope.seal()
    assert len(row) == 1
    row.validate(full=True)
    assert Envelope.open(row) == envelope
