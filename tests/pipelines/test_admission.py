from __future__ import annotations

import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines import admission
from pipelines.admission import Admission
from pipelines.resources import Hardware

HARDWARE = Hardware(1, 1, actor_cpus=0.5, actor_gpus=0, n_threads=1, task_cpus=0.25, takes_all_cpus=True)
MOST_S = 60


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK_S", 0.05)


class Holder:
    """Holds what it reserves."""

    def is_up(self) -> bool:
        return True


def test_a_job_with_a_share_of_its_own_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "ray", None)
    with Admission() as own:
        assert not own.has_waited(replace(HARDWARE, takes_all_cpus=False))


def test_jobs_begin_one_after_the_other(ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as pool, Admission() as first, Admission() as second:
        assert not first.has_waited(HARDWARE)
        assert not first.has_waited(HARDWARE)  # planned again
        waiting = pool.submit(second.has_waited, HARDWARE)
        with pytest.raises(TimeoutError):
            waiting.result(1)
        first.release()
        assert waiting.result(MOST_S)
        first.release()  # nothing that is the other's
        assert not second.has_waited(HARDWARE)
    told = "waiting: another job is about to take the cluster's CPUs (--actor-cpus and --max-actors give a job a share"
    assert [message.startswith(told) for message in caplog.messages] == [True]


def test_a_job_waits_until_its_cpus_are_free(ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    holder: Any = ray.remote(Holder).options(num_cpus=1.5).remote()
    assert ray.get(holder.is_up.remote(), timeout=MOST_S)
    with ThreadPoolExecutor(1) as pool, Admission() as own:
        waiting = pool.submit(own.has_waited, HARDWARE)
        with pytest.raises(TimeoutError):
            waiting.result(1)
        ray.kill(holder)
        assert waiting.result(MOST_S)
    assert "of the cluster's 2 CPUs 0.5 are free, and this job begins with 0.875 (--actor-cpus" in caplog.text


def test_who_dies_lets_others_begin(ray_cluster: None) -> None:
    code = (
        "import sys, time, ray\n"
        "from pipelines.admission import Admission\n"
        "from tests.pipelines.test_admission import HARDWARE\n"
        "ray.init(sys.argv[1], log_to_driver=False)\n"
        "own = Admission()\n"
        "own.has_waited(HARDWARE)\n"
        "print('begins', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, ray.get_runtime_context().gcs_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other, Admission() as own:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "begins\n"
            is_in = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(lambda: (own.has_waited(HARDWARE), is_in.set()))
                assert not is_in.wait(1)
                other.kill()
                assert waiting.result(MOST_S)[0]
        finally:
            other.kill()


def test_a_line_a_minute_is_enough(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    slept: list[float] = []
    monkeypatch.setattr(admission, "LOOK_S", 2.0)
    monkeypatch.setattr(admission, "time", SimpleNamespace(sleep=slept.append))
    own = Admission()
    monkeypatch.setattr(own, "_lacks", lambda hardware: "no CPU is free" if sum(slept) < 150 else None)
    with caplog.at_level(logging.WARNING, "pipelines.admission"):
        assert own.has_waited(HARDWARE)
    assert len(caplog.messages) == 3
