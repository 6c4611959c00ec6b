from __future__ import annotations

import numpy as np
import pytest
import torch

from convbert.engine import transfer

ARRAYS = [np.array([3, 1, 2], np.int32), np.array([], np.int64), np.array([9], np.int64)]


def test_arrays_arrive_as_they_are() -> None:
    there = transfer.send(*ARRAYS, device=torch.device("cpu"))
    assert [tensor.tolist() for tensor in there] == [[3, 1, 2], [], [9]]
    assert {tensor.dtype for tensor in there} == {torch.int64}


def test_a_gpu_gets_them_in_one_copy_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[torch.Tensor, bool]] = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        copies.append((tensor, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    there = transfer.send(*ARRAYS, device=torch.device("cuda"))
    assert [tensor.tolist() for tensor in there] == [[3, 1, 2], [], [9]]
    assert [(tensor.dtype, non_blocking) for tensor, non_blocking in copies] == [(torch.int64, True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gets_them() -> None:
    there = transfer.send(*ARRAYS, device=torch.device("cuda"))
    assert [tensor.tolist() for tensor in there] == [[3, 1, 2], [], [9]]


def test_results_arrive_as_they_are() -> None:
    np.testing.assert_array_equal(transfer.Arriving(torch.tensor([[1.0, 2.0]])).wait(), [[1, 2]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpus_results_arrive_before_what_was_started_after_them() -> None:
    rows = torch.arange(5.0, device="cuda")
    arriving = transfer.Arriving(rows)
    torch.cuda._sleep(10**9)  # cycles: half a second
    np.testing.assert_array_equal(arriving.wait(), [0, 1, 2, 3, 4])
    assert not torch.cuda.current_stream().query()
