"""Workers of cluster.yaml's types come up for a job and go away after it: real Ray nodes on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy.fake_cloud import CPUS_OF_ONE, IDLE_S, fake_cloud
from tests.deploy.node_types import NODE_TYPES

CORPUS = "examples/spam/corpus"
CPUS = NODE_TYPES["cpu"]["resources"]["CPU"] // CPUS_OF_ONE
GONE_S = IDLE_S + 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cpu_workers_come_for_a_job_and_go_after_it(tmp_path: Path) -> None:
    job = ["jobs/classify_corpus.py", "--input", CORPUS, "--output", str(tmp_path), "--unit-rows", "100"]
    job += ["--model", "examples/spam/checkpoint", "--device", "cpu", "--actor-cpus", str(CPUS), "--max-actors", "2"]
    with fake_cloud() as cloud:
        assert not cloud.nodes()
        run = cloud.run(*job, timeout_s=420)
        assert run.returncode == 0, run.stdout
        assert json.loads((tmp_path / "_manifest.json").read_text())["rows_out"] == 955
        assert set(cloud.seen) == {"cpu"}  # and no GPU machine
        assert (
            cloud.seen["cpu"] <= 3
        )  # two would do, and one may be rounded up; six without a cap on what Ray Data asks for
        assert not cloud.wait_until_empty(GONE_S)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpu_workers_come_for_the_models_and_cpu_workers_for_the_rest(tmp_path: Path) -> None:
    with fake_cloud(gpu_spot=1) as cloud:
        run = cloud.run("-m", "tests.deploy.stand_in_job", CORPUS, str(tmp_path), "2", timeout_s=420)
        assert "rows: 955" in run.stdout.splitlines(), run.stdout
        assert cloud.seen["gpu-spot"] == 1
        assert cloud.seen["gpu-on-demand"] == 1  # since there is no second spot machine
        assert cloud.seen["cpu"] >= 1
        assert not cloud.wait_until_empty(GONE_S)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_does_not_say_what_it_needs_is_refused_at_once(tmp_path: Path) -> None:
    job = ["jobs/classify_corpus.py", "--input", CORPUS, "--output", str(tmp_path)]
    job += ["--model", "examples/spam/checkpoint"]
    with fake_cloud() as cloud:
        run = cloud.run(*job, timeout_s=180)
        assert run.returncode == 2
        assert "error: --device auto: the cluster has no workers yet; say cuda or cpu" in run.stdout
        run = cloud.run(*job, "--device", "cpu", timeout_s=180)
        assert run.returncode == 2
        assert "error: the cluster has no CPUs yet to share out: give --actor-cpus, such as 8" in run.stdout
        assert not cloud.seen
