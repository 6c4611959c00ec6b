from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def life() -> dict[str, Any]:
    """A service on several nodes, from nothing to many replicas, through deaths, and back to nothing."""
    command = [sys.executable, "-m", "tests.soak.service"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=560)
    assert run.returncode == 0, run.stdout + run.stderr
    seen: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return seen


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_load_brings_a_replica_to_every_node(life: dict[str, Any]) -> None:
    assert life["grown"]["most_nodes"] == 3
    assert set(life["grown"]["statuses"]) == {"200"}


@pytest.mark.parametrize("trouble", ["replica killed", "node lost"])
def test_trouble_behind_the_ingress_reaches_no_client(life: dict[str, Any], trouble: str) -> None:
    assert set(life[trouble]["statuses"]) == {"200"}
    assert life[trouble]["statuses"]["200"] > 10


@pytest.mark.parametrize(("trouble", "n_new"), [("replica killed", 1), ("node lost", 0), ("ingress killed", 1)])
def test_each_trouble_was_one_and_what_finds_room_again_comes_again(
    life: dict[str, Any], trouble: str, n_new: int
) -> None:
    assert (life[trouble]["n_gone"], life[trouble]["n_new"]) == (1, n_new)


@pytest.mark.parametrize("phase", ["grown", "replica killed", "node lost", "ingress killed"])
def test_no_answer_is_wrong(life: dict[str, Any], phase: str) -> None:
    assert life[phase]["n_wrong"] == 0


def test_an_ingress_is_replaced(life: dict[str, Any]) -> None:
    """The requests that it had are lost with it, a few for each client; the others are answered."""
    lost = sum(n for status, n in life["ingress killed"]["statuses"].items() if status != "200")
    assert life["ingress killed"]["statuses"]["200"] > lost


def test_long_texts_bring_another_replica_however_few_they_are(life: dict[str, Any]) -> None:
    seen = life["long texts"]
    assert seen["most_nodes"] > 1
    assert set(seen["statuses"]) <= {"200", "503", "504"}
    assert seen["statuses"]["200"] > 5
    assert seen["n_wrong"] == 0


def test_an_idle_service_holds_nothing_and_wakes(life: dict[str, Any]) -> None:
    assert life["shrunk to nothing"]
    assert life["woken"]
