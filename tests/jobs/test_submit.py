"""A night as docs/nightly.md describes it: ``ray job submit`` to a cluster with token authentication, corpus in S3.

The cluster is a process group of its own, on free ports and in a folder of its own; nothing else is touched.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.storage import locate, names_in
from pipelines.verify import verify
from tests.fault_proxy import FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 180
WAIT_READY = "SUBPROCESS_MODULE_WAIT_READY_TIMEOUT"
SECRET = secrets.token_hex(16)  # the tests' store takes any


@dataclass(frozen=True)
class Cluster:
    """A head node of its own.

    Attributes:
        url: of its dashboard, which takes jobs.
        token: that it asks for.
        folder: where it keeps logs and packages.
    """

    url: str
    token: str
    folder: Path

    def call(self, method: str, path: str) -> None:
        """The dashboard's own interface."""
        headers = {"Authorization": f"Bearer {self.token}"}
        urllib.request.urlopen(
            urllib.request.Request(self.url + path, method=method, headers=headers), timeout=5
        ).close()

    def ray(
        self, *arguments: object, token: str | None = None, timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """Ray's command line, as from a machine that knows nothing but the URL and the token."""
        environment = bare_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token or self.token, COLUMNS="200")
        command = [str(RAY), "job", str(arguments[0]), "--address", self.url, *map(str, arguments[1:])]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=timeout_s, cwd=ROOT
        )

    def submit(
        self, night: str, *flags: object, token: str | None = None, wait: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The job under the night's id, with the store's credentials in its runtime environment."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
        store = {name: os.environ[name] for name in names} | {"AWS_SECRET_ACCESS_KEY": SECRET}
        runtime = json.dumps({"env_vars": store})
        options = ["--submission-id", night, "--working-dir", ".", "--runtime-env-json", runtime]
        command = ["python", "jobs/classify_corpus.py", *flags]
        return self.ray("submit", *options, *([] if wait else ["--no-wait"]), "--", *command, token=token)


def bare_environment(**more: str) -> dict[str, str]:
    """A user's: without the test session's settings of Ray, Python and the store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "PYTHONPATH"))}
    kept.pop("FSSPEC_S3", None)
    return {**kept, "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}", **more}


def free_ports(n: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["runtime-env-agent-port", "metrics-export-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's own are too long for sockets
    found = Cluster(f"http://127.0.0.1:{ports['dashboard-port']}", secrets.token_hex(32), folder)
    command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "true"]
    command += ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--temp-dir", str(folder)]
    command += ["--object-store-memory", str(200 * 2**20), "--min-worker-port", "0", "--max-worker-port", "0"]
    command += [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    patience = {f"RAY_DASHBOARD_{name}": str(START_S) for name in ("STARTUP_TIMEOUT_S", WAIT_READY)}
    environment = bare_environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=found.token, RAY_JOB_STOP_WAIT_TIME_S="60", **patience
    )
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder)
    try:
        wait_until_up(found, head)
        yield found
    finally:
        head.send_signal(signal.SIGTERM)  # Ray then ends what it has started
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_up(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            cluster.call("GET", "/api/jobs/")
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no head: {(cluster.folder / 'head.log').read_text()[-2000:]}")


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
    assert cluster.submit("night-4", *flags, wait=False).returncode == 0
    again = cluster.submit("night-4", *flags)
    assert again.returncode == 1
    assert "night-4 already exists" in again.stdout + again.stderr
    wait_for(lambda: any(name.startswith("part-") for name in names_in(locate(f"{bucket}/out"))), timeout_s=250)
    assert result(bucket)["status"] == "running"
    cluster.call("POST", "/api/jobs/night-4/stop")  # as ray job stop, which itself takes seconds to start
    wait_for(lambda: result(bucket)["status"] != "running", timeout_s=60)
    ended = result(bucket)
    assert (ended["status"], ended["exit_code"], ended["submission_id"]) == ("interrupted", 143, "night-4")
    resumed = cluster.submit("night-5", *flags)
    assert resumed.returncode == 0
    assert 0 < result(bucket)["new_rows"] < result(bucket)["rows"] == 400
