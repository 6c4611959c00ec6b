"""The Dockerfile by hadolint, systemd's units by systemd, the line for cron by a shell."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
UNITS = [ROOT / f"deploy/systemd/convbert-nightly.{kind}" for kind in ("service", "timer")]
SUBMIT = ["job", "submit", "--submission-id", f"corpus-{datetime.date.today()}", "--working-dir", "/etc/convbert/job"]
JOB = ["--", "python", "-m", "jobs.classify_corpus", "--config", "job.yaml"]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_image_is_pinned_complete_and_not_roots() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert ray is not None
    assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == [f"rayproject/ray:{ray[1]}-py311-cpu"]
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "1000:100"
    copied = [name for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert sorted(f"!{name}" for name in copied) == sorted(line for line in ignored if line.startswith("!"))
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_layer_of_dependencies_installs_what_the_project_names() -> None:
    """The program in RUN, run here up to pip."""
    pytest.importorskip("tomllib")
    program = re.search(r"python -c '(.+?)'", DOCKERFILE.read_text(encoding="utf-8"), re.DOTALL)
    assert program is not None
    source = program[1].replace("\\\n", "")
    run = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"ray[data,serve]>=2.60,<2.64", "torch>=2.8", "s3fs>=2024.6"} <= set(run.stdout.splitlines())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With programs that exist here in place of those that an installation would have."""
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/convbert/.venv/bin/ray", "/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    run = subprocess.run(verify, capture_output=True, text=True)
    complaints = [line for line in run.stderr.splitlines() if "convbert" in line]
    assert (run.returncode, complaints) == (0, [])
    when = subprocess.run(["systemd-analyze", "calendar", "*-*-* 01:30:00"], capture_output=True, text=True)
    assert when.returncode == 0
    assert "OnCalendar=*-*-* 01:30:00" in UNITS[1].read_text(encoding="utf-8")


def started(command: str, tmp_path: Path, *, status: int) -> tuple[int, list[str]]:
    """Run a command line with a `ray` that notes its arguments and ends with a status."""
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nexit {status}\n', encoding="utf-8")
    ray.chmod(0o755)
    line = command.replace("/opt/convbert/.venv/bin/ray", str(ray))
    run = subprocess.run(["/bin/sh", "-c", line], env={"PATH": os.environ["PATH"]})
    return run.returncode, (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("status", [0, 1])
def test_cron_submits_with_the_nights_id_and_hands_the_status_on(tmp_path: Path, status: int) -> None:
    lines = (ROOT / "deploy/crontab").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    assert settings == {"SHELL": "/bin/sh", "RAY_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}
    (entry,) = (line for line in lines if re.match(r"[\d*]", line))
    *when, command = entry.split(maxsplit=5)
    assert when == ["30", "1", "*", "*", "*"]
    assert "%" not in command.replace(r"\%", "")  # cron would end the command there
    assert started(command.replace(r"\%", "%"), tmp_path, status=status) == (status, [*SUBMIT, *JOB])


@pytest.mark.parametrize("status", [0, 1])
def test_systemd_submits_the_same(tmp_path: Path, status: int) -> None:
    service = UNITS[0].read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(.+)$", service, re.MULTILINE)
    assert command is not None
    assert "%" not in command[1].replace("%%", "")  # which systemd would take for its own
    assert started(command[1].replace("%%", "%"), tmp_path, status=status) == (status, [*SUBMIT, *JOB])
