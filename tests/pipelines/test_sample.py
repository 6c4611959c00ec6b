"""What a dry run measures, on the cluster of the test session."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from pipelines import sample
from pipelines.errors import SourceError
from pipelines.estimate import Estimate
from pipelines.plan import make_plan
from pipelines.resources import Hardware
from pipelines.sample import chosen, spread, take_sample
from pipelines.spec import JobSpec

ON_ONE_CPU = Hardware(1, 1, actor_cpus=1, actor_gpus=0, n_threads=1, task_cpus=0.5)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two kinds with rows of one length each, large enough to be cut, and small ones in a group."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [f"free mail {n:05d}" for n in range(3000)]
    lines = "".join(json.dumps({"id": f"r{n:05d}", "text": text}) + "\n" for n, text in enumerate(rows))
    pq.write_table(pa.table({"text": rows}), folder / "a.parquet")
    (folder / "b.jsonl").write_text(lines)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for n in range(20):
        (folder / f"s{n:02d}.jsonl").write_text('{"text": "offer"}\n{broken\n')
    return folder


def job(corpus: Path, output: object, checkpoint: Path, **changes: Any) -> JobSpec:
    values = {"input": [str(corpus)], "output": str(output), "model": str(checkpoint), "unit_rows": 500}
    return JobSpec.of({**values, **changes})


@pytest.mark.usefixtures("ray_cluster")
def test_a_sample_counts_what_is_there(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    plan = make_plan(job(corpus, tmp_path / "out", checkpoint))
    assert {shard.url.rsplit("/", 1)[-1] for _, shard, _ in chosen(plan)} >= {"a.parquet", "b.jsonl", "c.jsonl.gz"}
    found = sample.estimate(plan)
    assert found.work.rows == pytest.approx(9040, rel=0.02)
    assert not found.work.is_exact
    assert (found.shards, found.all_shards, found.kept_units) == (23, 23, 0)
    assert found.n_bytes == sum(path.stat().st_size for path in corpus.iterdir())
    measured = found.sample
    assert measured.failed > 0
    assert measured.timing is not None
    assert 16 <= measured.timing.records <= measured.records
    assert 0 < measured.timing.seconds < sample.LIMIT_S
    assert found.lines()[-1].startswith("estimate: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_without_room_gives_no_time(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(job(corpus, tmp_path / "out", checkpoint))
    no_gpu = take_sample(plan, Hardware(1, 1, actor_cpus=1, actor_gpus=1, n_threads=None, task_cpus=0.5))
    assert no_gpu.timing is None
    assert no_gpu.why_not.startswith("no node with room for a model actor is up yet")
    monkeypatch.setattr(sample, "WAIT_S", 0)
    monkeypatch.setattr(sample, "LIMIT_S", 0)
    late = take_sample(plan, ON_ONE_CPU)
    assert (late.timing, late.why_not) == (None, "the cluster has given no process for the sample in 0 s")
    assert no_gpu.tokens == late.tokens > 0


@pytest.mark.usefixtures("ray_cluster")
def test_the_sample_is_labelled_where_the_actors_will_be(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(job(corpus, tmp_path / "out", checkpoint))
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    nowhere = {"zone": "nowhere"}
    assert take_sample(plan, replace(ON_ONE_CPU, actor_nodes=(nowhere, here))).timing is not None
    monkeypatch.setattr(sample, "WAIT_S", 2.0)
    monkeypatch.setattr(sample, "LIMIT_S", 1.0)
    assert take_sample(plan, replace(ON_ONE_CPU, actor_nodes=(nowhere,))).why_not.startswith("the cluster has given no")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("error", [WorkerCrashedError(), OutOfMemoryError("a long\ntext"), NodeDiedError("a text")])
def test_a_process_that_dies_of_the_sample_gives_no_time(
    error: Exception, corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(result: object) -> None:
        raise error

    monkeypatch.setattr(sample.ray, "get", get)
    found = take_sample(make_plan(job(corpus, tmp_path / "out", checkpoint)), ON_ONE_CPU)
    assert (found.timing, found.why_not) == (
        None,
        "the process that labelled the sample has died, of its memory or of a record",
    )


def test_a_corpus_of_blank_lines_has_no_records(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    plan = make_plan(job(tmp_path / "a.jsonl", tmp_path / "out", checkpoint))
    found = take_sample(plan, ON_ONE_CPU)
    assert (found.records, found.timing, found.rows_per_byte) == (0, None, {(".jsonl", True, 1): 0.0})


def test_a_shard_that_goes_while_the_sample_is_taken_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "a.jsonl"
    shard.write_text('{"text": "free"}\n')
    plan = make_plan(job(shard, tmp_path / "out", checkpoint))

    def encode(*arguments: Any) -> pa.Table:
        shard.unlink()
        return sample_encode(*arguments)

    sample_encode = sample.encode
    monkeypatch.setattr(sample, "encode", encode)
    monkeypatch.setattr(sample, "_label", lambda *_: (None, "nobody asks", 0.0))
    with pytest.raises(SourceError, match=r"a\.jsonl has changed since the job was planned"):
        take_sample(plan, ON_ONE_CPU)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_few_of_long_lines_are_read(
    suffix: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (json.dumps({"text": "x" * 100_000}) + "\n").encode() * 400
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(lines) if suffix == "jsonl.gz" else lines)
    plan = make_plan(job(tmp_path / f"a.{suffix}", tmp_path / "out", checkpoint))
    monkeypatch.setattr(sample, "_label", lambda *_: (None, "nobody asks", 0.0))
    found = take_sample(plan, ON_ONE_CPU)
    assert 0 < found.records <= 4 * sample.SHARDS  # a piece is a quarter of a megabyte


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    "shards",
    [
        [(800, 30), *[(60, 3)] * 20],
        [(3000, 3), *[(60, 30)] * 20],
        [(200, 30), (1200, 3)] * 3,
    ],
    ids=["short texts in small shards", "long texts in small shards", "unlike texts in shards of one size"],
)
def test_shards_count_for_as_much_as_is_in_them(
    shards: list[tuple[int, int]], suffix: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of so many texts of so many words, each word a token between [CLS] and [SEP]."""
    rng = random.Random(0)
    (tmp_path / "in").mkdir()
    for number, (n_rows, n_words) in enumerate(shards):
        texts = [" ".join(rng.choices(ascii_lowercase, k=n_words)) for _ in range(n_rows)]
        file = tmp_path / "in" / f"{number:02d}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"text": texts}), file)
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
            file.write_bytes(gzip.compress(lines) if suffix == "jsonl.gz" else lines)
    monkeypatch.setattr(sample, "_label", lambda *_: (None, "nobody asks", 0.0))
    plan = make_plan(job(tmp_path / "in", tmp_path / "out", checkpoint))
    work = Estimate.of(plan, ON_ONE_CPU, take_sample(plan, ON_ONE_CPU), present={"CPU": 1}).work
    assert work.rows == pytest.approx(sum(n_rows for n_rows, _ in shards), rel=0.1)
    assert work.tokens == pytest.approx(sum(n_rows * (n_words + 2) for n_rows, n_words in shards), rel=0.1)


def test_rows_are_taken_from_all_over() -> None:
    block = pa.table({"n": list(range(101))})
    assert spread(block, 5)["n"].to_pylist() == [0, 25, 50, 75, 100]
    assert spread(block, 1000) == block
    assert len(spread(block.slice(0, 0), 5)) == 0
