from __future__ import annotations

from typing import Any

import pytest

from pipelines import resources
from pipelines.errors import RunError, SpecError
from pipelines.resources import choose_device, choose_precision, choose_unit_rows, share_out
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
        monkeypatch.setenv("RAY_ADDRESS", "auto")

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


@pytest.mark.parametrize("changes", [{}, {"max_actors": 4}, {"min_actors": 1, "max_actors": 3}])
@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 5, 8, 16, 64])
def test_ray_data_can_set_a_task_of_every_stage_aside(cluster: Any, n_cpus: int, changes: Any) -> None:
    """Of half of all CPUs it gives each of five stages a fifth, or what it cannot do without, the first stage first."""
    cluster({"CPU": n_cpus})
    hardware = share_out(spec(**changes), "cpu", n_units=100)
    tasks, actors = hardware.task_cpus, hardware.min_actors * hardware.actor_cpus
    least = [hardware.read_cpus, tasks, actors, tasks, tasks]
    assert sum(max(0.5 * n_cpus / len(least), cpus) for cpus in least) <= n_cpus


def test_gpu_actors_take_one_each(cluster: Any) -> None:
    cluster({"CPU": 16, "GPU": 4})
    hardware = share_out(spec(), "cuda", n_units=100)
    assert (hardware.min_actors, hardware.max_actors, hardware.actor_gpus) == (4, 4, 1)
    assert hardware.task_cpus != hardware.actor_cpus
    growing = share_out(spec(min_actors=1, max_actors=16), "cuda", n_units=100)
    assert growing.describe() == "1 to 16 model actors with a GPU each"


@pytest.mark.parametrize(
    ("node_cpus", "changes", "n_units", "threads"),
    [([4] * 4, {}, 1, 4), ([8] * 3, {}, 2, 8), ([2] * 8, {"max_actors": 1}, 100, 2), ([16, 4, 4], {}, 1, 8)],
    ids=str,
)
def test_few_actors_on_many_nodes_find_room_on_one(
    cluster: Any, node_cpus: list[int], changes: Any, n_units: int, threads: int
) -> None:
    """A night of one unit would else wait for ever for a node with half of the cluster's CPUs."""
    cluster(*({"CPU": cpus} for cpus in node_cpus))
    hardware = share_out(spec(**changes), "cpu", n_units=n_units)
    assert hardware.actor_cpus <= max(node_cpus) / 2
    assert (hardware.n_threads, hardware.max_cpus) == (threads, sum(node_cpus))


def test_there_are_never_more_actors_than_units(cluster: Any) -> None:
    cluster({"CPU": 64})
    assert share_out(spec(min_actors=4), "cpu", n_units=2).max_actors == 2


def test_no_cpu_is_kept_for_a_gpu_and_eight_may_feed_it(cluster: Any) -> None:
    cluster({"CPU": 4, "GPU": 1}, {"CPU": 2})
    assert share_out(spec(), "cuda", n_units=100).actor_cpus == 0
    assert share_out(spec(), "cuda", n_units=100).max_cpus == 8
    assert share_out(spec(actor_cpus=2, max_actors=2), "cuda", n_units=100).max_cpus == 6  # those that are there


@pytest.mark.parametrize(
    ("nodes", "actors"), [([{}], (1, 5)), ([{"CPU": 16}], (2, 5)), ([{"CPU": 16}] * 4, (5, 5)), ([{"CPU": 4}], (1, 5))]
)
def test_a_cluster_grows_to_the_actors_that_are_asked_for(cluster: Any, nodes: Any, actors: Any) -> None:
    cluster(*nodes)
    hardware = share_out(spec(actor_cpus=8, max_actors=5), "cpu", n_units=100)
    assert (hardware.min_actors, hardware.max_actors) == actors
    assert (hardware.n_threads, hardware.actor_cpus) == (8, 4)  # half is for the tasks that feed it
    assert hardware.max_cpus == max(40, sum(node.get("CPU", 0) for node in nodes))


@pytest.mark.parametrize("changes", [{"actor_cpus": 8}, {"actor_cpus": 2, "min_actors": 3}])
def test_actors_that_leave_no_cpu_to_the_tasks_that_feed_them_are_refused_or_told(
    cluster: Any, changes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster({"CPU": 4})
    share_out(spec(actor_cpus=2, min_actors=2, max_actors=9), "cpu", n_units=100)
    assert caplog.messages == []
    share_out(spec(**changes), "cpu", n_units=100)
    (told,) = caplog.messages
    assert "the cluster has 4 CPUs, and the job waits until it has grown" in told
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SpecError, match=r"of --actor-cpus \d: this machine has 4 CPUs: lower --actor-cpus"):
        share_out(spec(**changes), "cpu", n_units=100)
    share_out(spec(actor_cpus=2, max_actors=9), "cpu", n_units=100)


def test_actors_for_which_no_node_is_large_enough_are_told(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    cluster(*[{"CPU": 4}] * 4)
    assert share_out(spec(actor_cpus=8), "cpu", n_units=100).actor_cpus == 4  # which a node has
    assert caplog.messages == []
    share_out(spec(actor_cpus=16), "cpu", n_units=100)
    (told,) = caplog.messages
    assert told.startswith(
        "1 model actor of --actor-cpus 16: the cluster has 16 CPUs, 4 at most on a node, and the job"
    )


@pytest.mark.parametrize(
    ("changes", "device", "address", "takes_all"),
    [
        ({}, "cpu", "auto", True),
        ({}, "cpu", "", False),  # a Ray of its own
        ({"actor_cpus": 2, "max_actors": 1}, "cpu", "auto", False),
        ({}, "cuda", "auto", False),
    ],
)
def test_cpus_are_taken_for_its_own_by_a_job_that_says_nothing_of_them(
    changes: dict[str, Any],
    device: str,
    address: str,
    takes_all: bool,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster({"CPU": 8, "GPU": 1})
    monkeypatch.setenv("RAY_ADDRESS", address)
    hardware = share_out(spec(**changes), device, n_units=9)
    assert hardware.takes_all_cpus == takes_all
    if takes_all:
        assert hardware.first_cpus == 4 + 0.25 + 0.5
        assert 2 * hardware.min_actors * hardware.actor_cpus + hardware.read_cpus > 8  # two of them would hold all


@pytest.mark.parametrize(
    ("changes", "device", "told"),
    [
        ({}, "cpu", "one reserves 4 CPU, and of the cluster's 8 0.5 are free"),
        ({"max_actors": 1}, "cuda", "one reserves 1 GPU, and of the cluster's 2 0 are free"),
        ({"actor_nodes": ["a=b,c=d", "e=f"]}, "cpu", "4 CPU of nodes with a=b,c=d or e=f, and of the cluster's 8"),
    ],
)
def test_what_an_actor_may_wait_for_is_told(
    changes: dict[str, Any], device: str, told: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 8, "GPU": 2})
    monkeypatch.setattr(resources.ray, "available_resources", lambda: {"CPU": 0.5})  # Ray leaves out what is all held
    hardware = share_out(spec(**changes), device, n_units=9)
    assert told in resources.why_stalled(hardware, 0)
    assert "ray status" in resources.why_stalled(hardware, 0)
    assert "(3 units are being tokenised)" in resources.why_stalled(hardware, 3)
    if device == "cpu":
        cluster({"CPU": 4})  # a node has gone
        assert "(the run was planned for 8: if actors hold all that is left" in resources.why_stalled(hardware, 3)


def test_actors_begin_where_there_is_room_on_growing_gpu_clusters(cluster: Any) -> None:
    cluster({})
    hardware = share_out(spec(max_actors=6), "cuda", n_units=100)
    assert (hardware.min_actors, hardware.max_actors) == (1, 6)


def test_what_cannot_be_shared_out_is_asked_for(cluster: Any) -> None:
    cluster({})
    with pytest.raises(SpecError, match="no CPUs yet to share out: give --actor-cpus, such as 8, and --max-actors"):
        share_out(spec(), "cpu", n_units=100)
    with pytest.raises(SpecError, match="--device auto: the cluster has no workers yet; say cuda or cpu"):
        choose_device("auto")


def test_nodes_are_wanted_in_the_order_given(cluster: Any) -> None:
    cluster({"CPU": 2})
    assert share_out(spec(), "cpu", n_units=9).placement == {}
    nodes = ["ray.io/accelerator-type=in(L4,A10G),zone=a", "zone=b", "zone=c"]
    assert share_out(spec(actor_nodes=nodes), "cpu", n_units=9).placement == {
        "label_selector": {"ray.io/accelerator-type": "in(L4,A10G)", "zone": "a"},
        "fallback_strategy": [{"label_selector": {"zone": "b"}}, {"label_selector": {"zone": "c"}}],
    }
    assert share_out(spec(actor_nodes=["zone=b"]), "cpu", n_units=9).placement["fallback_strategy"] is None


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


@pytest.mark.parametrize(
    ("has_gpu", "has_bf16", "meant"), [(True, False, "fp16"), (True, True, "bf16"), (False, False, "bf16")]
)
def test_auto_is_fp16_on_a_gpu_without_bf16(
    has_gpu: bool, has_bf16: bool, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0) if has_bf16 else (7, 5))
    assert choose_precision("auto", "cuda", kept=None) == meant
    assert choose_precision("auto", "cpu", kept=None) == "fp32"
    assert choose_precision("auto", "cuda", kept="bf16") == "bf16"


@pytest.mark.parametrize(
    ("asked", "device", "kept", "meant"),
    [(None, "cpu", None, 5000), (None, "cuda", None, 20_000), (None, "cuda", 5000, 5000), (7, "cuda", 5000, 7)],
)
def test_rows_of_a_unit_follow_the_device_or_what_was_begun(
    asked: int | None, device: str, kept: int | None, meant: int
) -> None:
    assert choose_unit_rows(asked, device, kept=kept) == meant


@pytest.mark.parametrize(("asked", "kept"), [("int8", None), ("auto", "int8")])
def test_int8_on_a_gpu_is_refused(asked: str, kept: str | None) -> None:
    with pytest.raises(
        SpecError, match="--precision int8 is for CPUs: on a GPU use bf16 or fp16, or choose --device cpu"
    ):
        choose_precision(asked, "cuda", kept=kept)
    assert choose_precision(asked, "cpu", kept=kept) == "int8"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=f"RAY_ADDRESS {address} cannot be joined .*RAY_AUTH_TOKEN"):
        resources.connect()


@pytest.mark.parametrize("error", [OSError("AF_UNIX path length cannot exceed 107 bytes: /x"), Exception("timed\nout")])
def test_a_ray_that_cannot_be_started_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(resources.ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = " ".join(str(error).split())
    with pytest.raises(RunError, match=rf"Ray cannot be started on this machine \({said}\): .*RAY_TMPDIR"):
        resources.connect()


def test_actors_that_together_compute_with_more_cpus_than_there_are_are_told(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cluster({"CPU": 8})
    share_out(spec(actor_cpus=4, min_actors=3), "cpu", n_units=100)
    (told,) = caplog.messages
    assert told.startswith("3 model actors of --actor-cpus 4: the cluster has 8 CPUs, and the job waits")
