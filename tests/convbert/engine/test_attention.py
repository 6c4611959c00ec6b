"""Attention of records of any lengths, in runs and at once, against each record's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convbert.engine import attention
from convbert.engine.attention import attend_at_once, attend_runs, has_kernel
from convbert.engine.packing import layout
from tests.convbert.engine.varlen import varlen_reference

N_HEADS, HEAD_WIDTH = 2, 8
LENGTHS = np.array([3, 1, 1, 7, 2])


def fused(device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Queries, keys, values and what else stands in a row."""
    n_columns = 4 * N_HEADS * HEAD_WIDTH
    return torch.randn(LENGTHS.sum(), n_columns, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def by_record(rows: torch.Tensor) -> torch.Tensor:
    """softmax(q · kᵀ / √d) · v of each record and head."""
    results = []
    for record in rows.split(LENGTHS.tolist()):
        q, k, v = record[:, : 3 * N_HEADS * HEAD_WIDTH].view(len(record), 3, N_HEADS, HEAD_WIDTH).unbind(1)
        shares = (torch.einsum("inc,jnc->nij", q, k) / HEAD_WIDTH**0.5).softmax(-1)
        results.append(torch.einsum("nij,jnc->inc", shares, v).flatten(1))
    return torch.cat(results)


def offsets(device: str = "cpu") -> torch.Tensor:
    return torch.tensor(np.concatenate([[0], np.cumsum(LENGTHS)]), dtype=torch.int32, device=device)


def test_runs_give_each_record_its_own_attention() -> None:
    rows = fused()
    out = torch.empty(len(rows), N_HEADS * HEAD_WIDTH)
    attend_runs(rows, layout(LENGTHS, n_taps=1, max_length=7).runs, n_heads=N_HEADS, out=out)
    torch.testing.assert_close(out, by_record(rows))


def test_all_at_once_give_each_record_its_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_at_once", lambda: varlen_reference)
    rows = fused()
    attended = attend_at_once(rows, offsets(), longest=7, n_heads=N_HEADS, width=N_HEADS * HEAD_WIDTH)
    torch.testing.assert_close(attended, by_record(rows))


def test_torch_takes_the_call() -> None:
    """Without a GPU, for shapes alone."""
    if attention._at_once() is None:
        pytest.skip("torch has it from 2.10 on")
    rows, width = fused("meta", torch.bfloat16), N_HEADS * HEAD_WIDTH
    attended = attend_at_once(rows, offsets("meta"), longest=7, n_heads=N_HEADS, width=width)
    assert attended.shape == (len(rows), width)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"head_width": 12}, False),
        ({"head_width": 264}, False),
        ({"device": "cpu"}, False),
        ({"capability": (7, 5)}, False),
        ({"varlen": None}, False),
    ],
    ids=str,
)
def test_the_kernel_is_taken_where_it_computes(
    changes: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"device": "cuda", "dtype": torch.bfloat16, "head_width": 64, "capability": (9, 0), "varlen": print}
    case |= changes
    monkeypatch.setattr(attention, "_at_once", lambda: case["varlen"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: case["capability"])
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert has_kernel(torch.device(case["device"]), case["dtype"], head_width=case["head_width"]) is expected
