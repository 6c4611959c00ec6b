"""A night as docs/nightly.md describes it: ``ray job submit`` to a cluster with token authentication, corpus in S3.

The cluster is a process group of its own, on free ports and in a folder of its own; nothing else is touched.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.storage import listed, locate
from pipelines.verify import verify
from tests.fault_proxy import FaultProxy
from tests.standing_cluster import SECRET, Cluster, standing_cluster

DEADLINE = ["timeout", "--foreground", "--kill-after=1m", "10h"]  # as deploy/ has it
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with standing_cluster() as found:
        yield found


def wait_for(what: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)  # the store runs in this process


@pytest.fixture
def bucket(s3: FaultProxy, checkpoint: Path) -> Iterator[str]:
    """A folder of the store with a corpus of two shards and a checkpoint."""
    fs = fsspec.filesystem("s3")
    url = f"s3://bucket/{secrets.token_hex(4)}"
    for shard in ("a", "b"):
        lines = "".join(json.dumps({"id": f"{shard}{n}", "text": f"free mail {n}"}) + "\n" for n in range(200))
        fs.pipe_file(f"{url}/in/{shard}.jsonl", lines.encode())
    fs.put(f"{checkpoint}/", f"{url}/model/", recursive=True)
    yield url
    fs.rm(url, recursive=True)


def result(bucket: str) -> dict[str, Any]:
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    return json.loads(fs.cat_file(f"{bucket}/out/_result.json"))


def parts(bucket: str) -> int:
    return sum(name.startswith("part-") for name in listed(locate(f"{bucket}/out")).files)


def test_nights_on_a_cluster_with_a_token(cluster: Cluster, bucket: str) -> None:
    flags = ["--input", f"{bucket}/in", "--output", f"{bucket}/out", "--model", f"{bucket}/model", "--unit-rows", 50]

    refused = cluster.submit("night-0", *flags, token="f" * 64)
    assert refused.returncode == 1
    assert "Invalid authentication token" in refused.stdout + refused.stderr

    first = cluster.submit("night-1", *flags)
    log = first.stdout + first.stderr
    assert first.returncode == 0, log
    assert "400 rows labelled" in log
    assert " of 8 units: " in log
    assert "'night-1' succeeded" in log
    ended = result(bucket)
    assert (ended["status"], ended["exit_code"], ended["submission_id"]) == ("succeeded", 0, "night-1")
    assert (ended["rows"], ended["failed"], ended["new_rows"], ended["error"]) == (400, 0, 400, None)
    assert SECRET not in log + json.dumps(ended)

    travelled = list(cluster.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/*"))
    assert {"convbert", "jobs", "pipelines"} <= {path.name for path in travelled}
    assert not {".git", ".venv", ".mypy_cache", "benchmarks", "docs", "tests"} & {path.name for path in travelled}
    n_bytes = sum(path.stat().st_size for top in travelled for path in [top, *top.rglob("*")] if path.is_file())
    assert n_bytes < 64 * 2**20

    again = cluster.submit("night-1", *flags)
    assert again.returncode == 1
    assert "night-1 already exists" in again.stdout + again.stderr

    failed = cluster.submit("night-2", *flags, "--id-column", "name")
    log = failed.stdout + failed.stderr
    assert failed.returncode == 1
    assert "'night-2' failed" in log
    stopped = result(bucket)
    assert (stopped["status"], stopped["exit_code"], stopped["submission_id"]) == ("failed", 1, "night-2")
    assert f"error: {stopped['error']}" in log
    assert stopped["started"] > ended["finished"]

    third = cluster.submit("night-3", *flags)
    assert third.returncode == 0
    assert "nothing to do: all 400 rows are labelled" in third.stdout + third.stderr
    assert (result(bucket)["new_rows"], result(bucket)["status"]) == (0, "succeeded")
    assert verify(f"{bucket}/out").faults == []


def test_a_night_that_runs_is_locked_and_can_be_stopped(cluster: Cluster, bucket: str) -> None:
    flags = ["--input", f"{bucket}/in", "--output", f"{bucket}/out", "--model", f"{bucket}/model", "--unit-rows", 2]
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(cluster.submit, "night-4", *flags, before=DEADLINE)
        wait_for(lambda: parts(bucket) > 0, timeout_s=250)
        again = cluster.submit("night-4", *flags)
        assert again.returncode == 1
        assert "night-4 already exists" in again.stdout + again.stderr
        assert result(bucket)["status"] == "running"
        stopped = cluster.ray("stop", "night-4")
        assert stopped.returncode == 0
        assert "Job 'night-4' was stopped" in stopped.stdout + stopped.stderr
        wait_for(lambda: result(bucket)["status"] != "running", timeout_s=60)
        assert waits.result().returncode == 0  # Ray counts as failed only what ended by itself
    ended = result(bucket)
    assert (ended["status"], ended["exit_code"], ended["submission_id"]) == ("interrupted", 143, "night-4")
    resumed = cluster.submit("night-5", *flags)
    assert resumed.returncode == 0
    assert 0 < result(bucket)["new_rows"] < result(bucket)["rows"] == 400


def test_a_night_whose_time_is_over_ends(cluster: Cluster, bucket: str) -> None:
    flags = ["--input", f"{bucket}/in", "--output", f"{bucket}/out", "--model", f"{bucket}/model", "--unit-rows", 2]
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(cluster.submit, "night-6", *flags, before=DEADLINE)
        wait_for(lambda: parts(bucket) > 0, timeout_s=250)
        (clock,) = (
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if (words := command_line(folder))[:1] == ["timeout"] and f"{bucket}/out" in words
        )
        os.kill(clock, signal.SIGALRM)  # as its timer does
        assert waits.result().returncode == 1
    ended = result(bucket)
    assert (ended["status"], ended["exit_code"], ended["submission_id"]) == ("interrupted", 143, "night-6")


def command_line(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:  # it has ended
        return []
