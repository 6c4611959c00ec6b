from __future__ import annotations

import pytest
import torch

from convbert.engine.budget import budget_of, probed_budget

GIB = 2**30


@pytest.mark.parametrize(
    ("free_bytes", "bytes_per_token", "expected"),
    [
        (70 * GIB, 30_000, 65_536),  # more than that gains nothing
        (10 * GIB, 200_000, 32_768),  # 0.8 · 10 GiB / 200 kB = 42,949
        (10 * GIB, 200_001, 32_768),
        (10 * GIB, 0, 65_536),
        (GIB, 4_000_000, 512),  # the longest record, whatever it takes
        (0, 1000, 512),
    ],
)
def test_a_budget_fits_the_free_memory(free_bytes: int, bytes_per_token: float, expected: int) -> None:
    assert budget_of(free_bytes=free_bytes, bytes_per_token=bytes_per_token, longest=512) == expected


def test_what_a_few_records_take_is_measured_once_all_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"now": 5 * GIB, "peak": 0}

    def run(n_records: int, length: int) -> None:
        assert (n_records, length) == (8, 512)
        taken["peak"] = max(taken["peak"], taken["now"] + n_records * length * 200_000 + run_extra.pop())

    run_extra = [0, 3 * GIB]  # the first run takes more
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: taken["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: taken.update(peak=taken["now"]))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    assert probed_budget(run, longest=512, device=torch.device("cuda")) == 32_768
    assert run_extra == []
