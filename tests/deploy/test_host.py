"""The Dockerfile by hadolint, systemd's units by systemd, the line for cron by a shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
SYSTEMD = ROOT / "deploy/systemd"
UNITS = sorted(SYSTEMD.iterdir())
NIGHT = "2026-11-26"  # of the stand-in for `date`
SUBMIT = ["job", "submit", "--submission-id", f"corpus-{NIGHT}", "--working-dir", "/etc/convbert/job"]
DEADLINE = ["timeout", "--foreground", "--kill-after=1m", "10h"]
JOB = ["--", *DEADLINE, "python", "-m", "jobs.classify_corpus", "--config", "job.yaml"]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_image_is_pinned_complete_and_not_roots() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert ray is not None
    assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == [f"rayproject/ray:{ray[1]}-py311-cpu"]
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["0", "1000:100"]
    copied = [name for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert sorted(f"!{name}" for name in copied) == sorted(line for line in ignored if line.startswith("!"))
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_every_folder_that_the_image_makes_at_home_is_the_users() -> None:
    """`install -d` gives those on the way to root: with ~/.cache nothing else could keep anything there."""
    made = re.search(r"install -d -o ray -g users ([^\\\n]+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert made is not None
    folders = {Path(name) for name in made[1].split()}
    assert Path("/home/ray/.cache/convbert") in folders
    on_the_way = {parent for folder in folders for parent in folder.parents if Path("/home/ray") in parent.parents}
    assert on_the_way <= folders


def test_the_image_can_compile_and_start_workers_on_aws() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    as_root = re.search(r"^USER 0$(.+?)^USER ", text, re.MULTILINE | re.DOTALL)
    assert as_root is not None
    assert re.search(r"apt-get install [^&]*\bg\+\+(?= )", as_root[1])  # which brings gcc: convbert/engine/compiler.py
    assert re.findall(r"pip install .* -r requirements\.txt (.+)$", text, re.MULTILINE) == ["boto3"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    )
    assert pinned["boto3"] == pinned["botocore"]


@pytest.mark.parametrize(
    ("extras", "stores"), [(None, {"s3fs>=2025.10"}), ("s3,gcs", {"s3fs>=2025.10", "gcsfs>=2025.10"})]
)
def test_the_layer_of_dependencies_installs_what_the_project_names(extras: str | None, stores: set[str]) -> None:
    """The program in RUN, run here up to pip."""
    pytest.importorskip("tomllib")
    program = re.search(r"python -c '(.+?)'", DOCKERFILE.read_text(encoding="utf-8"), re.DOTALL)
    assert program is not None
    source = program[1].replace("\\\n", "")
    default = re.search(r"^ARG EXTRAS=(.+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert default is not None
    command, env = [sys.executable, "-c", source], {**os.environ, "EXTRAS": extras or default[1]}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    installed = set(run.stdout.splitlines())
    assert {"ray[data,serve]>=2.60,<2.64", "torch>=2.8"} <= installed
    assert {line for line in installed if "fs>=" in line} - {"fsspec>=2025.10"} == stores


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
    assert "OnCalendar=*-*-* 01:30:00" in (SYSTEMD / "convbert-nightly.timer").read_text(encoding="utf-8")


def started(command: str, tmp_path: Path, *, status: int) -> tuple[int, list[str]]:
    """Run a command line with a `ray` that notes its arguments and ends with a status, in a night of its own."""
    ray = program(tmp_path / "ray", f'printf "%s\\n" "$@" > {tmp_path}/arguments\nexit {status}')
    program(tmp_path / "date", f'test "$*" = +%F && echo {NIGHT}')
    line = command.replace("/opt/convbert/.venv/bin/ray", str(ray))
    run = subprocess.run(["/bin/sh", "-c", line], env=environment(tmp_path))
    return run.returncode, (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}


def settings_of(unit: str) -> dict[str, list[str]]:
    """Every value of each setting of a unit."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / unit).read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def crontab() -> tuple[dict[str, str], str]:
    """Settings, and the command as the shell gets it."""
    lines = (ROOT / "deploy/crontab").read_text(encoding="utf-8").splitlines()
    (entry,) = (line for line in lines if re.match(r"[\d*]", line))
    *when, command = entry.split(maxsplit=5)
    assert when == ["30", "1", "*", "*", "*"]
    assert "%" not in command.replace(r"\%", "")  # cron would end the command there
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line)), command.replace(r"\%", "%")


@pytest.mark.parametrize("status", [0, 1])
def test_cron_submits_with_the_nights_id_and_hands_the_status_on(tmp_path: Path, status: int) -> None:
    settings, command = crontab()
    assert settings == {"SHELL": "/bin/sh", "RAY_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}
    assert started(command, tmp_path, status=status) == (status, [*SUBMIT, *JOB])


def test_cron_starts_no_night_while_one_lasts(tmp_path: Path) -> None:
    ray = program(tmp_path / "ray", f"echo night >> {tmp_path}/nights\nread line < {tmp_path}/morning")
    os.mkfifo(tmp_path / "morning")
    line = ["/bin/sh", "-c", crontab()[1].replace("/opt/convbert/.venv/bin/ray", str(ray))]
    first = subprocess.Popen(line, env=environment(tmp_path), start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "nights").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert subprocess.run(line, env=environment(tmp_path)).returncode == 1
        (tmp_path / "morning").write_text("up\n", encoding="utf-8")
        assert first.wait(timeout=60) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    assert (tmp_path / "nights").read_text(encoding="utf-8") == "night\n"


@pytest.mark.parametrize("status", [0, 1])
def test_systemd_submits_the_same(tmp_path: Path, status: int) -> None:
    (command,) = settings_of("convbert-nightly.service")["ExecStart"]
    assert "%" not in command.replace("%%", "")  # which systemd would take for its own
    assert started(command.replace("%%", "%"), tmp_path, status=status) == (status, [*SUBMIT, *JOB])


def test_the_nights_deadline_ends_the_job_and_shows_in_the_status(tmp_path: Path) -> None:
    """What Ray starts as the job, with a driver that does as ours at SIGTERM."""
    driver = program(tmp_path / "driver", f"trap 'echo $$ > {tmp_path}/ended; exit 143' TERM\nsleep 60 & wait")
    run = subprocess.run([*DEADLINE[:-1], "1", driver], timeout=60)
    assert run.returncode == 124  # which Ray takes for a failure
    assert (tmp_path / "ended").exists()


def test_a_night_ends_before_systemd_waits_no_longer_and_before_the_next() -> None:
    (waits,) = settings_of("convbert-nightly.service")["TimeoutStartSec"]
    assert int(DEADLINE[-1].removesuffix("h")) < int(waits.removesuffix("h")) < 24


def test_systemds_ray_finds_our_python_and_is_up_when_it_takes_jobs(tmp_path: Path) -> None:
    unit = settings_of("convbert-ray.service")
    variables = dict(pair.split("=", 1) for line in unit["Environment"] for pair in line.split())
    assert variables["PATH"].split(os.pathsep)[0] == "/opt/convbert/.venv/bin"
    assert variables["RAY_AUTH_TOKEN_PATH"] == "/run/credentials/convbert-ray.service/ray-token"  # %d wants systemd 251
    assert "ENV TZ=Etc/UTC PYTHONUNBUFFERED=1\n" in DOCKERFILE.read_text("utf-8")
    assert unit["LoadCredential"] == settings_of("convbert-nightly.service")["LoadCredential"]
    assert f"ENV RAY_JOB_STOP_WAIT_TIME_S={variables['RAY_JOB_STOP_WAIT_TIME_S']}\n" in DOCKERFILE.read_text("utf-8")
    assert "convbert-ray.service" in settings_of("convbert-nightly.service")["After"][0].split()
    port = re.findall(r"--metrics-export-port=\d+", (ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    assert unit["ExecStart"] == [f"/opt/convbert/.venv/bin/ray start --head --block {port[0]}"]
    (wait,) = unit["ExecStartPost"]
    program(tmp_path / "sleep", f"touch {tmp_path}/slept")
    ray = program(tmp_path / "ray", f'printf "%s\\n" "$@" > {tmp_path}/arguments\ntest -e {tmp_path}/slept')
    command = shlex.split(wait.replace("/opt/convbert/.venv/bin/ray", str(ray)))
    assert subprocess.run(command, env=environment(tmp_path), timeout=60).returncode == 0
    asked = (tmp_path / "arguments").read_text(encoding="utf-8").split()
    assert asked == ["job", "list", "--address", crontab()[0]["RAY_ADDRESS"]]


def test_what_the_units_need_is_made_as_the_page_says(tmp_path: Path) -> None:
    """Its commands in a folder, with stand-ins for what only a real machine lets one do."""
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(cd /opt/convbert\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    opt, etc = tmp_path / "opt", tmp_path / "etc"
    for folder in (opt / "deploy", etc / "systemd/system", tmp_path / "bin", tmp_path / "venv/bin"):
        folder.mkdir(parents=True)
    (opt / "deploy/systemd").symlink_to(SYSTEMD)
    (opt / "job.yaml").write_text("{input: [corpus], output: labelled, model: checkpoint}\n", encoding="utf-8")
    program(tmp_path / "bin/sudo", 'exec "$@"')
    program(tmp_path / "bin/python3", f'test "$*" = "-m venv .venv" && cp -r {tmp_path}/venv .venv')
    program(tmp_path / "venv/bin/pip", "true")
    program(tmp_path / "venv/bin/ray", 'test "$*" = "get-auth-token --generate" && printf token')
    for name in ("useradd", "systemctl"):
        program(tmp_path / f"bin/{name}", f'echo {name} "$@" >> {tmp_path}/done')
    script = block[1].replace("/opt/convbert", str(opt)).replace("/etc/", f"{etc}/")
    subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", script], env=environment(tmp_path / "bin"), check=True)

    done = (tmp_path / "done").read_text(encoding="utf-8").splitlines()
    ray, night = settings_of("convbert-ray.service"), settings_of("convbert-nightly.service")
    assert done == [
        f"useradd --system --home-dir /var/lib/{ray['StateDirectory'][0]} {ray['User'][0]}",
        "systemctl enable --now convbert-ray.service convbert-nightly.timer",
    ]
    token = Path(ray["LoadCredential"][0].split(":")[1].replace("/etc/", f"{etc}/"))
    assert (token.read_text(encoding="utf-8"), token.stat().st_mode & 0o777) == ("token", 0o600)
    variables = Path(night["EnvironmentFile"][0].replace("/etc/", f"{etc}/")).read_text(encoding="utf-8")
    assert variables == f"RAY_ADDRESS={crontab()[0]['RAY_ADDRESS']}\n"
    assert (etc / "convbert/job/job.yaml").stat().st_mode & 0o004
    assert {path.name for path in (etc / "systemd/system").iterdir()} == {unit.name for unit in UNITS}
