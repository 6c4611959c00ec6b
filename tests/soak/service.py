"""A service on several nodes of this machine, while it grows under load, loses processes, and shrinks to nothing.

python -m tests.soak.service

Prints what happened as JSON on its last line; tests/soak/test_service.py says what must.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ray
import requests
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipelines import serving
from pipelines.serve_spec import ServeSpec
from tests.standing_cluster import free_ports

CHECKPOINT = Path(__file__).parents[2] / "examples/spam/checkpoint"
TEXTS = ["Lose 10 pounds in 30 days, guaranteed!", "The meeting is moved to Thursday.", "cheap meds", "see you at noon"]
N_NODES = 3  # each has room for one replica
N_CLIENTS = 8
PATIENCE_S = 120.0


@dataclass
class Phase:
    """What clients saw in a part of the service's life.

    Attributes:
        statuses: of HTTP, how often; 0 where the connection broke.
        n_wrong: answers with status 200 that were not the first answer to the same text.
        most_nodes: with a replica at the same time.
        n_gone, n_new: processes of the troubled deployment that ended and that came.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    n_wrong: int = 0
    most_nodes: int = 0
    n_gone: int = 0
    n_new: int = 0


class Clients:
    """Threads that ask without a pause, and compare answers."""

    def __init__(self, url: str, expected: dict[str, Any]) -> None:
        self._url, self._expected = url, expected
        self._is_done = threading.Event()
        self._lock = threading.Lock()
        self._statuses: Counter[int] = Counter()
        self._n_wrong = 0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(N_CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        for thread in self._threads:
            thread.join()

    def phase(self, **more: int) -> Phase:
        """What has been seen since the phase before."""
        with self._lock:
            seen = Phase(dict(self._statuses), self._n_wrong, len(nodes_with("Model")), **more)
            self._statuses.clear()
            self._n_wrong = 0
        return seen

    def _ask(self, number: int) -> None:
        texts = list(self._expected)
        while not self._is_done.is_set():
            text = texts[number % len(texts)]
            status, body = ask(self._url, text)
            with self._lock:
                self._statuses[status] += 1
                self._n_wrong += status == 200 and not agree(body, self._expected[text])


def ask(url: str, text: str, timeout_s: float = 60.0) -> tuple[int, Any]:
    """Status and answer; status 0 where the connection broke."""
    try:
        response = requests.post(f"{url}/spam", json={"inputs": text}, timeout=timeout_s)
        return response.status_code, response.json() if response.ok else None
    except requests.RequestException:
        return 0, None


def agree(rows: Any, expected: Any) -> bool:
    """Whether two answers have the same labels, and scores that differ by no more than rounding."""
    scores, wanted = ({row["label"]: row["score"] for row in one[0]} for one in (rows, expected))
    return scores.keys() == wanted.keys() and all(abs(scores[name] - wanted[name]) < 1e-4 for name in scores)


def replicas(deployment: str) -> dict[str, str]:
    """Node by id of each running replica's actor."""
    found = actors().items()
    return {
        actor: one["Address"]["NodeID"]
        for actor, one in found
        if f"#{deployment}#" in one["Name"] and one["State"] == "ALIVE"
    }


def nodes_with(deployment: str) -> set[str]:
    """Nodes that a running replica is on."""
    return set(replicas(deployment).values())


def n_ready(deployment: str) -> int:
    """Replicas that take requests: one that is still loading does not, though its actor runs."""
    service = serve.status().applications[serving.APPLICATION]
    return service.deployments[deployment].replica_states.get("RUNNING", 0)


def kill(deployment: str) -> None:
    """End the process of one replica at once."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    ray.kill(ray.get_actor(next(name for name in names if f"#{deployment}#" in name), namespace="serve"))


def replaced(deployment: str, trouble: Callable[[], object], *, n_left: int) -> dict[str, int]:
    """How many replicas the trouble ended, and how many came in their place until so many took requests again."""
    before = replicas(deployment).keys()
    trouble()
    wait_for(
        lambda: before - replicas(deployment).keys() and min(len(replicas(deployment)), n_ready(deployment)) >= n_left
    )
    time.sleep(5)  # of requests to those that are there now
    after = replicas(deployment).keys()
    return {"n_gone": len(before - after), "n_new": len(after - before)}


def wait_for(condition: Callable[[], object]) -> bool:
    """Whether it came true in time."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        if condition():
            return True
        time.sleep(0.2)
    return False


@contextmanager
def several_nodes() -> Iterator[Cluster]:
    """A head for Serve's own actors, and nodes with a CPU each."""
    fast = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": fast, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(N_NODES):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def life() -> dict[str, Any]:
    """From nothing to many replicas and back."""
    (port,) = free_ports(1)
    scaling = {
        "min_replicas": 0,
        "max_replicas": N_NODES,
        "target_ongoing_requests": 0.5,  # well below what the clients keep under way: it calls for all nodes throughout
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 20,  # a busy machine leaves the controller without figures while replicas start
    }
    spec = ServeSpec.of({"head": {"spam": str(CHECKPOINT)}, "port": port, "threads": 1, "timeout_s": 60, **scaling})
    seen: dict[str, Any] = {}
    with several_nodes() as cluster:
        # or the nodes' proxies would share the port, and a lost node take its clients' connections with it
        serve.start(proxy_location="HeadOnly", http_options={"host": spec.host, "port": spec.port})
        url = serving.start(spec)
        expected = {text: ask(url, text)[1] for text in TEXTS}
        with Clients(url, expected) as clients:
            wait_for(lambda: n_ready("Model") == N_NODES)
            seen["grown"] = asdict(clients.phase())
            change = replaced("Model", lambda: kill("Model"), n_left=N_NODES)
            seen["replica killed"] = asdict(clients.phase(**change))
            behind = nodes_with("Model") - nodes_with("Ingress")
            worker = next(node for node in cluster.worker_nodes if node.node_id in behind)
            change = replaced("Model", lambda: cluster.remove_node(worker, allow_graceful=False), n_left=N_NODES - 1)
            seen["node lost"] = asdict(clients.phase(**change))
            change = replaced("Ingress", lambda: kill("Ingress"), n_left=len(replicas("Ingress")))
            seen["ingress killed"] = asdict(clients.phase(**change))
        seen["shrunk to nothing"] = wait_for(lambda: not nodes_with("Model"))
        status, answer = ask(url, TEXTS[0])
        seen["woken"] = status == 200 and agree(answer, expected[TEXTS[0]])
        seen["long texts"] = asdict(long_texts(spec, url))
    return seen


def long_texts(spec: ServeSpec, url: str) -> Phase:
    """Texts of which some four are all that may wait, at a service that counts to a thousand for another replica."""
    text = " ".join(TEXTS * 100)
    expected = {text: ask(url, text)[1]}
    started_s = time.monotonic()
    ask(url, text)
    few = {"timeout_s": 8 * (time.monotonic() - started_s), "min_replicas": 1, "target_ongoing_requests": 1000}
    serving.start(ServeSpec.of({**spec.model_dump(), **few}))
    wait_for(lambda: len(nodes_with("Model")) == 1)
    with Clients(url, expected) as clients:
        wait_for(lambda: len(nodes_with("Model")) > 1)
        return clients.phase()


if __name__ == "__main__":
    print(json.dumps(life()))
