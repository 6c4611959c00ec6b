"""A cluster's resources in, the job's share of them out: device, precision, actors, threads, kinds of nodes."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from convbert.stores import reason, redacted
from pipelines.errors import RunError, SpecError
from pipelines.spec import JobSpec, node_labels

logger = logging.getLogger(__name__)
MAX_THREADS_PER_ACTOR = 8  # a base model's products gain little from more
CPUS_PER_GPU = 8  # that may be started to feed one
UNIT_ROWS = {"cpu": 5_000, "cuda": 20_000}
"""By device: a unit should take an actor seconds, since the driver hands out some 20 a second (docs/performance.md)."""


@dataclass(frozen=True)
class Hardware:
    """Resources of the job's stages.

    Attributes:
        min_actors, max_actors: size of the pool of model actors.
        actor_cpus, actor_gpus: what Ray reserves for each; no CPU beside a GPU, so that GPU nodes may say that they
            have none and take no other work.
        n_threads: threads each computes with; None leaves torch's choice.
        max_cpus: all that the job may use: Ray Data else asks for more nodes than its actors can keep busy.
        task_cpus: what Ray reserves for a tokenising or writing task. It differs from ``actor_cpus``, or
            else Ray would fuse these tasks into the actors.
        actor_nodes: labels of the nodes for the actors, the most wanted first; none: any node.
        takes_all_cpus: all CPUs of a cluster that others may use, too: they have to be free (``admission``).
    """

    min_actors: int
    max_actors: int
    actor_cpus: float
    actor_gpus: float
    n_threads: int | None
    task_cpus: float
    max_cpus: float = math.inf
    actor_nodes: tuple[dict[str, str], ...] = ()
    takes_all_cpus: bool = False

    @property
    def placement(self) -> dict[str, Any]:
        """Where Ray may put the actors, as ``map_batches`` takes it."""
        if not self.actor_nodes:
            return {}
        wanted, *others = self.actor_nodes
        return {
            "label_selector": wanted,
            "fallback_strategy": [{"label_selector": labels} for labels in others] or None,
        }

    @property
    def read_cpus(self) -> float:
        """What Ray reserves for a reading task, which waits more than it works: unequal again, so that the
        units of one stretch are tokenised beside each other."""
        return self.task_cpus / 2

    @property
    def first_cpus(self) -> float:
        """What the actors, a reading task and another one reserve, without which nothing comes to an end."""
        return self.min_actors * self.actor_cpus + self.read_cpus + self.task_cpus

    def describe(self) -> str:
        """The pool in words."""
        size = str(self.max_actors) if self.min_actors == self.max_actors else f"{self.min_actors} to {self.max_actors}"
        place = "a GPU each" if self.actor_gpus else f"{self.n_threads} CPU threads each"
        return f"{size} model actor{'s' if self.max_actors > 1 else ''} with {place}"


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; nothing where one is joined.

    Raises:
        RunError: the cluster is not there, or refuses the token; or none can be started.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        try:
            with _own_sigterm():
                start = partial(ray.init, "local", logging_level=logging.WARNING, include_dashboard=False)
                start()
                if ray.cluster_resources().get("CPU", 0) < 1:  # of a container's half a CPU Ray makes none
                    ray.shutdown()
                    start(num_cpus=1)
        except Exception as error:  # Ray's own are of many kinds, some of none
            raise RunError(
                f"Ray cannot be started on this machine ({reason(error)}): see that its temporary folder "
                "($RAY_TMPDIR, else $TMPDIR or /tmp) can be written, has room and a short path, and look at ulimit -a "
                "and ray/session_latest/logs there"
            ) from error
        return
    try:
        _check_answers(address)
        with _own_sigterm():
            ray.init(address, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise RunError(
            f"RAY_ADDRESS {redacted(address)} cannot be joined ({reason(error)}): see that the cluster is up and that "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN are its own, or submit the job with ray job submit"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler that the process has: Ray's own kills the local cluster under the driver, which then aborts."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_answers(address: str) -> None:
    """Ray itself would try for many minutes.

    Raises:
        OSError: nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def choose_device(device: str) -> str:
    """What ``auto`` means: GPUs where the cluster, or without one this machine, has them.

    Raises:
        SpecError: GPUs are asked for on a machine that has none, or ``auto`` on a cluster that has no workers yet:
            Ray does not tell which nodes it could start.
    """
    joins = ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))
    if device == "cpu" or (device == "cuda" and joins):
        return device  # a cluster may start its GPU nodes when they are asked for
    if joins:
        connect()
        present = ray.cluster_resources()
        if present.get("GPU", 0) >= 1:
            return "cuda"
        if present.get("CPU", 0) > 0:
            return "cpu"
        raise SpecError("--device auto: the cluster has no workers yet; say cuda or cpu, and it starts nodes for that")
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise SpecError(
            "--device cuda: this machine has no GPU that torch can use; choose auto or cpu, or set RAY_ADDRESS"
        )
    return "cpu"


def choose_precision(precision: str, device: str, *, kept: str | None) -> str:
    """What ``auto`` means: what the output was begun with, else fp32 on a CPU and bf16 on a GPU.

    It is fp16 where this machine has a GPU older than bf16; a cluster's GPUs are not known before its actors run.

    Raises:
        SpecError: int8 on a GPU.
    """
    if precision == "auto":
        precision = kept or ("fp32" if device == "cpu" else _half_precision(device))
    if precision == "int8" and device == "cuda":
        raise SpecError("--precision int8 is for CPUs: on a GPU use bf16 or fp16, or choose --device cpu")
    return precision


def choose_unit_rows(unit_rows: int | None, device: str, *, kept: int | None) -> int:
    """What None means: what the output was begun with, else as many as keep such a device busy for seconds."""
    return unit_rows or kept or UNIT_ROWS[device]


def _half_precision(device: str) -> str:
    import torch

    from convbert.engine.precision import computes_bf16

    is_old = torch.cuda.is_available() and not computes_bf16(torch.device(device))
    return "fp16" if is_old else "bf16"


def nodes_alive() -> list[dict[str, float]]:
    """What each node of the connected cluster has, by resource."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_out(spec: JobSpec, device: str, *, n_units: int) -> Hardware:
    """Pool sizes and reservations on the connected cluster, never more actors than units.

    A cluster that starts its nodes when they are asked for begins with the actors for which it has room, at least
    one, and grows to ``--max-actors``.

    Raises:
        SpecError: no CPU is there to be shared out, and nothing says how many an actor gets; or this machine alone has
            fewer than are asked for.
    """
    nodes = tuple(node_labels(labels) for labels in spec.actor_nodes)
    node_cpus = [int(node.get("CPU", 0)) for node in nodes_alive()]
    if device == "cuda":
        present = max(1, int(ray.cluster_resources().get("GPU", 1)))
        fewest, most = _pool(spec, present, n_units)
        n_cpus = most * (spec.actor_cpus or CPUS_PER_GPU)
        shares: dict[str, Any] = {"actor_cpus": 0, "actor_gpus": 1, "n_threads": None, "task_cpus": 0.5}
    else:
        if spec.actor_cpus:
            fewest, most = _pool(spec, max(1, sum(cpus // spec.actor_cpus for cpus in node_cpus)), n_units)
            each: float = spec.actor_cpus
            threads, n_cpus = spec.actor_cpus, most * spec.actor_cpus
            _check_room(fewest, spec.actor_cpus, node_cpus)
        elif any(node_cpus):
            per_node = [-(-cpus // MAX_THREADS_PER_ACTOR) for cpus in node_cpus if cpus]
            most = min(spec.max_actors or max(sum(per_node), spec.min_actors or 1), n_units)
            fewest = min(spec.min_actors or most, most)
            n_cpus = sum(node_cpus)
            each = min(n_cpus / most, max(node_cpus))  # few actors on many nodes: none finds more than a node has
            threads = max(1, min(MAX_THREADS_PER_ACTOR, int(each)))
        else:
            raise SpecError("the cluster has no CPUs yet to share out: give --actor-cpus, such as 8, and --max-actors")
        actor_cpus = each / 2  # actors that reserved every CPU would wait for tasks for ever
        task_cpus = min(0.5, n_cpus / 8)  # where Ray Data cannot set a task of each stage aside, the last ones starve
        if task_cpus == actor_cpus:
            task_cpus *= 0.8
        shares = {
            "actor_cpus": actor_cpus,
            "actor_gpus": 0,
            "n_threads": threads,
            "task_cpus": task_cpus,
            "takes_all_cpus": not spec.actor_cpus and bool(os.environ.get("RAY_ADDRESS")),
        }
    return Hardware(fewest, most, max_cpus=max(sum(node_cpus), n_cpus), actor_nodes=nodes, **shares)


def free_and_present(name: str) -> tuple[float, float]:
    """How much of a resource the connected cluster has left, and has in all."""
    return ray.available_resources().get(name, 0), ray.cluster_resources().get(name, 0)


def why_stalled(hardware: Hardware, n_encoding: int) -> str:
    """Why no model actor of a run may be at work: what one asks for, what of it is free, and what goes on meanwhile.

    Args:
        n_encoding: units that are being tokenised.
    """
    name, asked = ("GPU", hardware.actor_gpus) if hardware.actor_gpus else ("CPU", hardware.actor_cpus)
    free, present = free_and_present(name)
    where = " or ".join(",".join(f"{key}={value}" for key, value in labels.items()) for labels in hardware.actor_nodes)
    if name == "CPU" and present < hardware.max_cpus < math.inf:
        hint = f"the run was planned for {hardware.max_cpus:g}: if actors hold all that is left, start it again"
    elif n_encoding:
        hint = f"{n_encoding} units are being tokenised"
    else:
        hint = "ray status shows what is held and asked for; jobs and services that hold all CPUs wait for each other"
    return (
        f"no model actor is at work: one reserves {asked:g} {name}{where and ' of nodes with '}{where}, "
        f"and of the cluster's {present:g} {free:g} are free ({hint})"
    )


def _check_room(n_actors: int, actor_cpus: int, node_cpus: Sequence[int]) -> None:
    """Warn where actors would wait for nodes, or hold all CPUs while the tasks that feed them wait.

    Raises:
        SpecError: the Ray is the job's own and never grows.
    """
    present = sum(node_cpus)
    n_fitting = sum(2 * cpus // actor_cpus for cpus in node_cpus)  # by what Ray reserves for each
    if n_actors <= n_fitting and n_actors * actor_cpus <= present:
        return
    asked = f"{n_actors} model actor{'s' if n_actors > 1 else ''} of --actor-cpus {actor_cpus}"
    if present and not os.environ.get("RAY_ADDRESS"):
        raise SpecError(f"{asked}: this machine has {present} CPUs: lower --actor-cpus or --min-actors")
    most = f", {max(node_cpus)} at most on a node" if len(node_cpus) > 1 else ""
    logger.warning("%s: the cluster has %d CPUs%s, and the job waits until it has grown", asked, present, most)


def _pool(spec: JobSpec, present: int, n_units: int) -> tuple[int, int]:
    """Fewest and most actors where so many find room now."""
    most = min(spec.max_actors or max(present, spec.min_actors or 1), n_units)
    return min(spec.min_actors or present, most), most
