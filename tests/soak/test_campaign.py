from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_campaign() -> None:
    """Each kind of process killed at least once; ``make soak`` runs the long one, in a spoilt store too."""
    command = [
        sys.executable,
        "-m",
        "tests.soak.campaign",
        "--kills",
        "6",
        "--texts",
        "120",
        "--seed",
        "1",
        "--no-store",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    kills = {kind: int(n) for n, kind in re.findall(r"^ *(\d+) (\w+) killed$", run.stdout, re.MULTILINE)}
    assert sum(kills.values()) >= 6
    assert all(kills[kind] for kind in ("driver", "actor", "worker", "node"))
    assert run.stdout.endswith("every part as in the undisturbed run\n")
