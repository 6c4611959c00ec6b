"""How many times the encoder's rate, worked out by hand."""

import pytest

from benchmarks.tokenising import H200_TOKENS_PER_S, Rates, rows_of


def test_rows() -> None:
    alone, with_gpu = rows_of(Rates(tokeniser=320_000.0, texts=1.0, encoder=200.0))
    assert alone.measured == pytest.approx(100.0)
    assert with_gpu.measured == pytest.approx(16 * 320_000 / (3200 + H200_TOKENS_PER_S))
    assert with_gpu.note == "the GPU, of 2,568,721 tokens/s, takes 8.0 cores"
