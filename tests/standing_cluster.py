"""A Ray head with token authentication, as users keep one standing: a process group of its own on free ports."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
START_S = 180
WAIT_READY = "SUBPROCESS_MODULE_WAIT_READY_TIMEOUT"
SECRET = secrets.token_hex(16)  # the tests' store takes any


@dataclass(frozen=True)
class Cluster:
    """A head node of its own.

    Attributes:
        url: of its dashboard, which takes jobs.
        address: where drivers join it.
        token: that it asks for.
        folder: where it keeps logs and packages.
    """

    url: str
    address: str
    token: str
    folder: Path

    def call(self, method: str, path: str) -> None:
        """The dashboard's own interface."""
        headers = {"Authorization": f"Bearer {self.token}"}
        urllib.request.urlopen(
            urllib.request.Request(self.url + path, method=method, headers=headers), timeout=5
        ).close()

    def ray(
        self, *arguments: object, token: str | None = None, timeout_s: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """Ray's command line, as from a machine that knows nothing but the URL and the token."""
        environment = bare_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token or self.token, COLUMNS="200")
        command = [str(RAY), "job", str(arguments[0]), "--address", self.url, *map(str, arguments[1:])]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=timeout_s, cwd=ROOT
        )

    def submit(
        self, night: str, *flags: object, token: str | None = None, before: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """The job under the night's id, behind ``before``, with the store's credentials in its runtime environment."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
        store = {name: os.environ[name] for name in names} | {"AWS_SECRET_ACCESS_KEY": SECRET}
        runtime = json.dumps({"env_vars": store})
        options = ["--submission-id", night, "--working-dir", ".", "--runtime-env-json", runtime]
        command = [*before, "python", "jobs/classify_corpus.py", *flags]
        return self.ray("submit", *options, "--", *command, token=token)


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


@contextmanager
def standing_cluster() -> Iterator[Cluster]:
    """A head that runs until the block ends."""
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["runtime-env-agent-port", "metrics-export-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's own are too long for sockets
    dashboard, gcs = (f"127.0.0.1:{ports[name]}" for name in ("dashboard-port", "port"))
    found = Cluster(f"http://{dashboard}", gcs, secrets.token_hex(32), folder)
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
