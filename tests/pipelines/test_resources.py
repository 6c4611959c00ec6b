from __future__ import annotations

from typing import Any

import pytest

from pipelines import resources
from pipelines.errors import RunError, SpecError
from pipelines.resources import choose_device, choose_precision, share_out
from pipelines.spec import JobSpec


def spec(**changes: Any) -> JobSpec:
    return JobSpec.of({"input": ["in"], "output": "out", "model": "m", **changes})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let Ray report nodes with these resources."""

    def report(*nodes: dict[str, float]) -> None:
        totals: dict[str, float] = {}
        for node in nodes:
            for name, amount in node.items():
                totals[name] = totals.get(name, 0) + amount
        monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        monkeypatch.setattr(resources.ray, "cluster_resources", lambda: totals)
        monkeypatch.setattr(resources.ray, "is_initialized", lambda: True)

    return report


@pytest.mark.parametrize(
    ("nodes", "changes", "actors", "threads", "actor_cpus"),
    [
        ([{"CPU": 2}], {}, (1, 1), 2, 1),
        ([{"CPU": 1}], {}, (1, 1), 1, 0.5),
        ([{"CPU": 2}], {"max_actors": 4}, (4, 4), 1, 0.25),
        ([{"CPU": 64}], {}, (8, 8), 8, 4),
        ([{"CPU": 16}, {"CPU": 16}], {}, (4, 4), 8, 4),
        ([{"CPU": 16}], {"max_actors": 4}, (4, 4), 4, 2),
        ([{"CPU": 16}], {"min_actors": 1, "max_actors": 4}, (1, 4), 4, 2),
        ([{"CPU": 0}, {"CPU": 12}], {}, (2, 2), 6, 3),
    ],
)
def test_cpu_threads_are_shared_out(
    cluster: Any, nodes: Any, changes: Any, actors: Any, threads: int, actor_cpus: float
) -> None:
    cluster(*nodes)
    hardware = share_out(spec(**changes), "cpu", n_units=100)
    assert (hardware.min_actors, hardware.max_actors) == actors
    assert (hardware.n_threads, hardware.actor_cpus, hardware.actor_gpus) == (threads, actor_cpus, 0)
    assert hardware.task_cpus != hardware.actor_cpus


def test_gpu_actors_take_one_each(cluster: Any) -> None:
    cluster({"CPU": 16, "GPU": 4})
    hardware = share_out(spec(), "cuda", n_units=100)
    assert (hardware.min_actors, hardware.max_actors, hardware.actor_gpus) == (4, 4, 1)
    assert hardware.task_cpus != hardware.actor_cpus
    growing = share_out(spec(min_actors=1, max_actors=16), "cuda", n_units=100)
    assert growing.describe() == "1 to 16 model actors with a GPU each"


def test_there_are_never_more_actors_than_units(cluster: Any) -> None:
    cluster({"CPU": 64})
    assert share_out(spec(min_actors=4), "cpu", n_units=2).max_actors == 2


def test_auto_follows_the_cluster(cluster: Any) -> None:
    cluster({"CPU": 2})
    assert choose_device("auto") == "cpu"
    cluster({"CPU": 2, "GPU": 1})
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(SpecError, match="--device cuda: this machine has no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "kept", "meant"),
    [
        ("auto", "cpu", None, "fp32"),
        ("auto", "cuda", None, "bf16"),
        ("auto", "cuda", "fp32", "fp32"),
        ("bf16", "cpu", "fp32", "bf16"),
    ],
)
def test_auto_precision_follows_the_device_or_what_was_begun(
    asked: str, device: str, kept: str | None, meant: str
) -> None:
    assert choose_precision(asked, device, kept=kept) == meant


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=f"RAY_ADDRESS {address} cannot be joined .*RAY_AUTH_TOKEN"):
        resources.connect()
