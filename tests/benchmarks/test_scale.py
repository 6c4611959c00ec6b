"""The corpora of the benchmark: as many rows and shards as asked for."""

import mmap
from pathlib import Path

import pyarrow.dataset as ds

from benchmarks.corpora import large_shards, short_texts, tiny_shards
from benchmarks.scale import peak_memory
from pipelines.units import is_small, list_shards


def test_texts_have_as_many_words_as_asked_for() -> None:
    assert {len(text.split()) for text in short_texts(1000, 7)} == {7}


def test_large_shards_have_all_rows(tmp_path: Path) -> None:
    folder = large_shards(tmp_path / "corpus", 250_000)
    assert len(list_shards([str(folder)])) == 3
    assert ds.dataset(folder).count_rows() == 250_000


def test_tiny_shards_are_small_and_longer_ones_stand_alone(tmp_path: Path) -> None:
    tiny = list_shards([str(tiny_shards(tmp_path / "tiny", 20))])
    lone = list_shards([str(tiny_shards(tmp_path / "lone", 20, n_words=40))])
    assert [is_small(shard, 5000) for shard in tiny] == [True] * 20
    assert [is_small(shard, 1) for shard in lone] == [False] * 20


def test_the_peak_is_seen_when_the_memory_is_given_back() -> None:
    with peak_memory() as memory:
        block = bytearray(64 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert memory.peak_mib - memory.before_mib > 60


def test_shared_pages_are_told_apart() -> None:
    with mmap.mmap(-1, 64 * 2**20) as shared, peak_memory() as memory:
        shared[:] = bytes(len(shared))
    assert memory.store_mib >= 64
    assert memory.peak_mib - memory.before_mib < 30
