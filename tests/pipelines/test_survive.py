"""Processes that are really killed, on a real Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch

from convbert.engine.encoder import PackedEncoder
from convbert.errors import CheckpointError
from pipelines import run
from pipelines.culprits import with_errors
from pipelines.encode import encode
from pipelines.envelope import Envelope
from pipelines.errors import RunError
from pipelines.ledger import MAX_DEATHS, MAX_IN_VAIN
from pipelines.plan import make_plan
from pipelines.predict import Predictor
from pipelines.resources import Hardware
from pipelines.spec import JobSpec
from pipelines.survive import counted, open_ledger, surviving

pytestmark = pytest.mark.usefixtures("ray_cluster")

TEXTS = {
    "null": None,
    "a": "free",
    "loses the device": "zebra",
    "kills once": "mail offer",
    "kills": "boom",
    "b": "x 12",
}


def armed(folder: Path) -> tuple[type[Predictor], Callable[..., pa.Table]]:
    """An actor and an encoding stage, and records that kill them or lose the device."""

    def is_in(block: pa.Table, key: str) -> bool:
        return pc.any(pc.and_(pc.equal(block["id"], key), block["error"].is_null())).as_py()

    def is_first(what: str) -> bool:
        marker = folder / what
        return not marker.exists() and marker.touch() is None

    def lose_the_device(*batch: object, **options: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    class Bomb(Predictor):
        def __call__(self, block: pa.Table) -> pa.Table:
            if is_in(block, "kills") or (is_in(block, "kills once") and is_first("labelling")):
                os.kill(os.getpid(), signal.SIGKILL)
            if is_in(block, "loses the device") and is_first("device"):
                PackedEncoder.__call__ = lose_the_device
            return super().__call__(block)

    def bomb(block: pa.Table, *arguments: object) -> pa.Table:
        if is_in(block, "kills once") and is_first("encoding"):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(block, *arguments)

    return Bomb, bomb


@pytest.mark.slow  # processes die and start again for more than a minute
def test_records_that_kill_their_process_are_marked_and_the_job_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts in a second shard without the killers' tell what is expected."""
    (tmp_path / "in").mkdir()
    ids = {"bombs": list(TEXTS), "none": [str(number) for number in range(len(TEXTS))]}
    texts = {"bombs": list(TEXTS.values()), "none": [None if key == "kills" else text for key, text in TEXTS.items()]}
    for name in ids:
        pq.write_table(pa.table({"id": ids[name], "text": texts[name]}), tmp_path / f"in/{name}.parquet")
    spec = {"input": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "model": str(checkpoint), "unit_rows": 6}
    predictor, stage = armed(tmp_path)
    monkeypatch.setattr(run, "encode", stage)
    plan = make_plan(JobSpec.of(spec))
    dataset = run.pipeline(plan, Hardware(1, 1, 1, 0, 2, 0.5), open_ledger(), predictor=predictor)
    parts = [
        part for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow") for part in run.parts_from(rows)
    ]
    assert sorted((part.rows, part.failed) for part in parts) == [(6, 2), (6, 2)]
    result, expected = (pq.read_table(next((tmp_path / "out").glob(f"part-{name}-*"))) for name in ids)
    reason = f"the process died {MAX_DEATHS} times while labelling this record alone"
    assert result["error"].to_pylist() == [{"kills": reason, "null": "text is null"}.get(key) for key in TEXTS]
    assert result["prediction"].equals(expected["prediction"])
    assert {"encoding", "labelling", "device"} <= {path.name for path in tmp_path.iterdir()}


def block_of(*ids: str) -> pa.Table:
    return pa.table({"id": ids, "error": pa.nulls(len(ids), pa.string())})


def sealed(block: pa.Table) -> pa.Table:
    return Envelope("part-a", len(block), True, block).seal()


def test_a_unit_is_at_work_until_it_is_finished() -> None:
    ledger = open_ledger()

    def n_at_work(doing: str) -> int:
        return ray.get(ledger.n_at_work.remote(doing))

    def see(block: pa.Table) -> pa.Table:
        assert n_at_work("seeing") == 1
        return block

    with counted(ledger, doing="reading", part="part-a"):
        assert n_at_work("reading") == 1
    assert n_at_work("reading") == 0
    surviving(see, ledger, doing="seeing", timed_as="encode_s")(sealed(block_of("a", "b")))
    assert n_at_work("seeing") == 0


def test_an_unlucky_unit_is_gone_through_and_then_done_in_one_go() -> None:
    ledger = open_ledger()
    for _ in range(MAX_DEATHS + 1):  # as processes that died
        ray.get(ledger.begin.remote("counting part-a", 3))
    seen = []

    def count(block: pa.Table) -> pa.Table:
        seen.append(block["id"].to_pylist())
        return block

    block = with_errors(block_of("a", "failed", "b", "c"), {1: "missing"})
    counting = surviving(count, ledger, doing="counting", timed_as="encode_s")
    assert Envelope.open(counting(sealed(block))).block.equals(block)
    assert sorted(seen[:-1]) == [["a"], ["b"], ["c"]]
    assert seen[-1] == ["a", "failed", "b", "c"]


def test_a_unit_that_always_kills_ends_the_job() -> None:
    ledger = open_ledger()
    for _ in range(MAX_IN_VAIN):
        ray.get(ledger.begin.remote("reading part-a", 0))
    with (
        pytest.raises(RunError, match=f"reading part-a has killed {MAX_IN_VAIN} processes, .* lower --unit-rows"),
        counted(ledger, doing="reading", part="part-a"),
    ):
        pytest.fail("it was begun once more")


def test_records_on_which_a_task_fails_are_marked_but_not_for_what_others_did() -> None:
    def upper(block: pa.Table, *, fail: Callable[[list[str]], None]) -> pa.Table:
        fail([row["id"] for row in block.to_pylist() if row["error"] is None])
        return block.set_column(0, "id", pc.utf8_upper(block["id"]))

    def fail_on_b(ids: list[str]) -> None:
        if "b" in ids:
            raise KeyError("b")

    def fail_always(ids: list[str]) -> None:
        raise CheckpointError("no checkpoint folder at /none")

    stage = surviving(upper, open_ledger(), doing="shouting", timed_as="encode_s")
    result = Envelope.open(stage(sealed(block_of("a", "b", "c")), fail=fail_on_b)).block
    assert result["id"].to_pylist() == ["A", "B", "C"]
    assert result["error"].to_pylist() == [None, "shouting failed on this record: KeyError: 'b'", None]
    with pytest.raises(CheckpointError, match="no checkpoint folder at /none"):
        stage(sealed(block_of("a", "b", "c")), fail=fail_always)
