from __future__ import annotations

import pytest
import torch

from convbert.engine.budget import budget_of, probed_budget, warm_up

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


@pytest.mark.parametrize(
    ("longest", "max_tokens", "expected"),
    [
        (512, None, (32, 512)),
        (512, 10**6, (32, 512)),
        (512, 1100, (2, 512)),
        (512, 1, (1, 512)),
        (1, None, (16_384, 1)),
    ],
)
def test_warming_up_stays_within_the_budget(longest: int, max_tokens: int | None, expected: tuple[int, int]) -> None:
    runs: list[tuple[int, int]] = []
    warm_up(lambda *size: runs.append(size), longest=longest, max_tokens=max_tokens)
    assert runs == [expected]


def test_what_a_few_records_take_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"now": 5 * GIB, "peak": 7 * GIB}
    runs: list[tuple[int, int]] = []

    def run(n_records: int, length: int) -> None:
        runs.append((n_records, length))
        taken["peak"] = max(taken["peak"], taken["now"] + n_records * length * 200_000)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: taken["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: taken.update(peak=taken["now"]))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    assert probed_budget(run, longest=512, device=torch.device("cuda")) == 32_768
    assert runs == [(32, 512)]
