"""Parquet with damaged bytes, footers that lie and columns of any type: every row comes out, or the shard is named."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.fuzz.targets import FEW, TARGETS, Files, outcome, parquet_samples


@pytest.mark.parametrize("number", range(len(parquet_samples())))
def test_undamaged_shards_are_read(number: int) -> None:
    assert outcome(TARGETS["parquet"], {"a.parquet": parquet_samples()[number]}) == "ok"


@FEW
@given(TARGETS["parquet"].files)
def test_damaged_parquet(files: Files) -> None:
    outcome(TARGETS["parquet"], files)


@FEW
@given(TARGETS["parquet_types"].files)
def test_odd_columns(files: Files) -> None:
    outcome(TARGETS["parquet_types"], files)
