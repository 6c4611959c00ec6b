"""Models that cannot have the letter z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convbert.engine import Engine, Packed, PackedEncoder, Rows
from tests.conftest import VOCAB


def break_the_encoder(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Packed], Exception | None]) -> list[int]:
    """Let the encoder raise on some batches; the returned list takes how many records each had."""
    sizes: list[int] = []
    original = PackedEncoder.__call__

    def broken(self: PackedEncoder, batch: Packed, *wanted: Any, **settings: Any) -> torch.Tensor:
        sizes.append(len(batch.lengths))
        if error := fails(batch):
            raise error
        return original(self, batch, *wanted, **settings)

    monkeypatch.setattr(PackedEncoder, "__call__", broken)
    return sizes


def zebra(batch: Packed) -> Exception | None:
    """A kernel that cannot have the letter z."""
    return RuntimeError("no kernel for z\nat line 3") if VOCAB.index("z") in batch.input_ids else None


def spoil_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every head get nan for records with the letter z."""
    original = Engine.__call__

    def spoilt(self: Engine, records: Packed) -> dict[str, Rows]:
        results = original(self, records)
        has_z = [VOCAB.index("z") in ids for ids in np.split(records.input_ids, records.offsets[1:-1])]
        for rows in results.values():
            rows.values[np.repeat(has_z, np.diff(rows.offsets))] = np.nan
        return results

    monkeypatch.setattr(Engine, "__call__", spoilt)
