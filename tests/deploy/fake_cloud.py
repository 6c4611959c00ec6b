"""cluster.yaml's node types in, a Ray cluster on this machine out, whose autoscaler starts and ends nodes of them.

Ray's own AutoscalingCluster first stops every Ray of the machine; this one leaves others alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.deploy.node_types import CONFIG, HEAD, NODE_TYPES

CPUS_OF_ONE = 8  # a fake CPU stands for so many: 16 would each get a worker process here
HEAD_ID = "f" * 51 + "00000"  # Ray's fake provider has no other
IDLE_S = 10
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_SCHEDULER_EVENTS": "0", "PYTHONPATH": str(ROOT)}


class FakeCloud:
    """A head without work, whose workers come and go.

    Attributes:
        address: for RAY_ADDRESS.
        seen: most nodes of each type that were up at a time.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: Counter[str] = Counter()

    def nodes(self) -> Counter[str]:
        """Workers that are up now, by type."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self.address)
        up = [node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes]]
        alive = Counter(name for name in up if name in NODE_TYPES)
        self.seen |= alive
        return alive

    def run(self, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a driver to its end, and watch the nodes meanwhile."""
        env = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": self.address}
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                deadline = time.monotonic() + timeout_s
                while process.poll() is None and time.monotonic() < deadline:
                    self.nodes()
                    time.sleep(0.5)
            finally:
                process.kill()
            log.seek(0)
            return subprocess.CompletedProcess(command, process.wait(), log.read())

    def wait_until_empty(self, timeout_s: float) -> Counter[str]:
        """The workers that are still up after so long."""
        deadline = time.monotonic() + timeout_s
        while (left := self.nodes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left


@contextmanager
def fake_cloud(**max_workers: int) -> Iterator[FakeCloud]:
    """The cluster; its types may have fewer workers than in cluster.yaml."""
    from ray._common.network_utils import find_free_port
    from ray._private.services import get_node_ip_address

    folder = Path(tempfile.mkdtemp(prefix="cloud", dir="/tmp"))  # a socket's path may have 107 characters
    address = f"{get_node_ip_address()}:{find_free_port()}"
    (folder / "cluster.json").write_text(json.dumps(_config(address, max_workers)), encoding="utf-8")
    port = address.rsplit(":", 1)[1]
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}", f"--temp-dir={folder}", "--include-dashboard=false"]
    command += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={find_free_port()}"]
    command[0] = str(Path(sys.executable).with_name("ray"))
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, **settings}, stdout=log, stderr=log)
    try:
        _wait_for("Ray runtime started", folder / "head.log", timeout_s=90)
        yield FakeCloud(address)
    finally:
        _end_processes_of(folder)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _config(address: str, max_workers: dict[str, int]) -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, node in NODE_TYPES.items():
        resources = {**node["resources"], "object_store_memory": 80_000_000}
        resources["CPU"] = resources.get("CPU", 0) // CPUS_OF_ONE
        most = max_workers.get(name.replace("-", "_"), node["max_workers"])
        types[name] = {**node, "resources": resources, "max_workers": most, "node_config": {}}
    types["ray.head.default"] = {**CONFIG["available_node_types"][HEAD], "node_config": {}, "max_workers": 0}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "gcs_address": address, "head_node_id": HEAD_ID}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        **{f"{name}_commands": [] for name in commands},  # for which this provider has no defaults
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
        "cluster_name": "fake",
        "provider": {**provider, "launch_multiple": True},
        "max_workers": CONFIG["max_workers"],
        "upscaling_speed": CONFIG["upscaling_speed"],
        "idle_timeout_minutes": IDLE_S / 60,
        "head_node_type": "ray.head.default",
        "available_node_types": types,
    }


def _wait_for(text: str, log: Path, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text(encoding="utf-8", errors="replace"):
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text(encoding="utf-8", errors="replace")[-2000:])
        time.sleep(0.5)


def _end_processes_of(folder: Path) -> None:
    """Every process of a Ray has the folder of its session in its command line."""
    for _ in range(3):  # a dying parent may still have started one
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.5)
