"""The three ways of docs/serving.md to start the service, as their users type them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.standing_cluster import Cluster, bare_environment, free_ports, standing_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
SERVE = Path(sys.executable).with_name("serve")
SPAM = "examples/spam/checkpoint"
START_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with standing_cluster() as found:
        yield found


def label(port: int, head: str = "spam") -> str:
    """The best label of a text, as soon as the service is ready."""
    until_s = time.monotonic() + START_S
    while True:
        try:
            if requests.get(f"http://127.0.0.1:{port}/ready", timeout=5).ok:
                break
        except requests.RequestException:
            pass
        assert time.monotonic() < until_s, "the service is not ready in time"
        time.sleep(0.5)
    body = {"inputs": "Lose 10 pounds in 30 days, guaranteed!"}
    response = requests.post(f"http://127.0.0.1:{port}/{head}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()[0]
    return str(max(rows, key=lambda row: row["score"])["label"])


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own."""
    # or it would ignore Ctrl-C, as a shell's background jobs do and all that they start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
            )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # where the command has ended, what it started may still run
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serve_online(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The script, once it waits for Ctrl-C."""
    command = [sys.executable, "jobs/serve_online.py", "--head", f"spam={SPAM}", "--port", str(port)]
    with running(command, bare_environment(), log) as process:
        assert label(port) == "spam"
        until_s = time.monotonic() + START_S
        while "Ctrl-C stops" not in log.read_text():
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.2)
        yield process


def test_serve_online_stops_at_ctrl_c(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with serve_online(port, tmp_path / "log") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


def test_serve_online_ends_with_its_ray(tmp_path: Path) -> None:
    """Or nothing would start it again."""
    (port,) = free_ports(1)
    with serve_online(port, tmp_path / "log") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (raylet,) = (int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet")
        os.kill(raylet, signal.SIGKILL)
        assert process.wait(120) == 1, (tmp_path / "log").read_text()
        assert "error: Ray has died, and the service with it: start it again" in (tmp_path / "log").read_text()


def test_serve_deploy_and_serve_run(cluster: Cluster, tmp_path: Path) -> None:
    """A file is deployed, then deployed again with another head; ``serve run`` takes its place."""
    (port,) = free_ports(1)
    environment = bare_environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=cluster.token, RAY_ADDRESS=cluster.address, COLUMNS="200"
    )

    def serve(*arguments: str) -> str:
        command = [str(SERVE), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(**arguments: Any) -> None:
        application = {"name": "convbert", "route_prefix": "/", "import_path": "pipelines.serving:build"}
        config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [{**application, "args": {"threads": 1, **arguments}}],
        }
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        serve("deploy", "--address", cluster.url, str(tmp_path / "serve.yaml"))

    checkpoint = str(ROOT / SPAM)
    deploy(head={"spam": checkpoint})
    assert label(port) == "spam"
    assert "RUNNING" in serve("status", "--address", cluster.url)
    deploy(head={"spam": checkpoint, "again": checkpoint})
    until_s = time.monotonic() + START_S
    while requests.post(f"http://127.0.0.1:{port}/again", json={"inputs": "the"}, timeout=60).status_code != 200:
        assert time.monotonic() < until_s, "the second head does not come"
        time.sleep(0.5)
    assert label(port) == "spam"
    command = [str(SERVE), "run", "--name", "convbert", "pipelines.serving:build", f"head.mail={checkpoint}"]
    with running(command, environment, tmp_path / "log") as process:
        until_s = time.monotonic() + START_S
        while requests.post(f"http://127.0.0.1:{port}/mail", json={"inputs": "the"}, timeout=60).status_code != 200:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until_s, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert label(port, "mail") == "spam"
        process.send_signal(signal.SIGINT)
        process.wait(90)
