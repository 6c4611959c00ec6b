"""Every command that a page shows is run, or it is named here with what checks it in its place.

Jobs run in a folder that looks like a user's: the repository's rooms, a small corpus, checkpoints, and a bucket.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest

from jobs.command_line import parse
from pipelines.outcome import Outcome, utc_now

ROOT = Path(__file__).parents[2]
READERS = ROOT / "docs/reading.md"  # whose Python tests/pipelines/test_readers.py runs with each reader
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *ROOT.glob("examples/*/*.md"),
]
SHELL = ("", "sh", "bash", "console")  # languages of blocks with commands; pictures say text
SPAM = ROOT / "examples/spam/checkpoint"
POS, PROSE = ROOT / "examples/brown/pos", ROOT / "examples/brown/prose"
CHECKPOINTS = {"sentiment": SPAM, "topic": PROSE, "entities": POS, "pos": POS}
RECORDS = [
    {"id": "a", "text": "Lose 10 pounds in 30 days, guaranteed!", "label": "spam", "lang": "en"},
    {"id": "b", "text": "Bis morgen!", "label": "ham", "lang": "de"},
]

ELSEWHERE = {
    r"make (demo|demo-tags|serve|test|lint|docs|soak|bench|setup)\b.*": "CI, a fresh clone or a night runs it",
    r"\.venv/bin/python -m pytest .*": "CI runs all of them",
    r"pip install .*": "the packages are those of pyproject.toml, which CI installs",
    r"python -m (benchmarks|examples)\..*": "minutes to hours; tests/benchmarks and tests/examples run their parts",
    r"python jobs/serve_online\.py .*|serve run .*": "tests/pipelines/test_serve_commands.py",
    r"ray (up|down|exec|dashboard) cluster\.yaml.*": "needs AWS; tests/deploy run Ray's launcher on the same file",
    r"ray get-auth-token .*|RAY_AUTH_MODE=token .* ray start --head .*": "tests/jobs/test_submit.py starts such a head",
    r"sudo .*|cd /opt/convbert|\.venv/bin/ray get-auth-token .*": "tests/deploy/test_host.py runs them with stand-ins",
    r"aws .*|for role in head worker; do|done": "needs AWS; tests/deploy check the policies",
    r"jq .*": "test_the_alert_tells_a_good_night_from_every_other",
    r"docker .*": "tests/deploy check the Dockerfile with hadolint",
    r"kubectl .*": "tests/deploy check every manifest by its schema",
    r"(mkdir|echo|export) .*": "test_simple_lines_are_shell",
    r"\d\d:\d\d:\d\d INFO .*": "no command but what a job logs",
}
"""Pattern of a command, and who runs it."""


def commands(page: Path) -> list[str]:
    """The commands of a page, continued lines joined and remarks left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for language, body in blocks if language in SHELL for line in _joined(body)]
    return [line for line in (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines) if line]


def yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _joined(body: str) -> list[str]:
    return re.sub(r"\s*\\\n\s*", " ", body).splitlines()


def job_in(command: str) -> tuple[str, ...] | None:
    """A job's script and its arguments, whether or not it goes through ``ray job submit``."""
    words = shlex.split(command)
    for place, word in enumerate(words):
        if re.fullmatch(r"(\S*/)?python", word):
            script, *arguments = words[place + 1 :]
            if script == "-m":
                script, *arguments = arguments
                script = script.replace(".", "/") + ".py"
            return (script, *arguments) if re.fullmatch(r"jobs/\w+_(corpus|masks)\.py", script) else None
    return None


ALL = sorted({one for page in PAGES for one in commands(page)})
JOBS = sorted({job for one in ALL if (job := job_in(one))})
OTHERS = [one for one in ALL if not job_in(one)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder."""
    for room in ("jobs", "pipelines", "convbert", "examples", "benchmarks"):
        (tmp_path / room).symlink_to(ROOT / room)
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps(record) + "\n" for record in RECORDS]
    (tmp_path / "corpus/mail.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "job.yaml").write_text("{input: [corpus], output: labelled, model: checkpoint}\n", encoding="utf-8")
    (tmp_path / "checkpoint").symlink_to(SPAM)
    (tmp_path / "checkpoints").mkdir()
    for name, folder in CHECKPOINTS.items():
        (tmp_path / "checkpoints" / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket(home: Path, ray_cluster: None) -> Iterator[None]:
    """What the pages have in s3://bucket."""
    store = fsspec.filesystem("s3")
    for source, target in ((home / "corpus", "bucket/corpus"), (SPAM, "bucket/checkpoint")):
        store.put(f"{source}/", f"{target}/", recursive=True)
    yield
    for folder in ("corpus", "checkpoint", "labelled"):
        if store.exists(f"bucket/{folder}"):
            store.rm(f"bucket/{folder}", recursive=True)


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_flags_of_jobs_are_such(job: tuple[str, ...], home: Path) -> None:
    script, *arguments = job
    if "verify" not in script:
        parse("", task="text-classification", arguments=arguments)


@pytest.mark.parametrize("settings", yaml_blocks(ROOT / "docs/jobs.md"))
def test_settings_in_a_file_are_such(settings: str, home: Path) -> None:
    (home / "job.yaml").write_text(settings, encoding="utf-8")
    spec = parse("", task="text-classification", arguments=["--config", "job.yaml"])
    assert set(spec.head) <= set(CHECKPOINTS)
    assert spec.prune


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_jobs_run_as_they_are_shown(
    job: tuple[str, ...], home: Path, bucket: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for ``ray job submit`` without it: tests/jobs/test_submit.py submits one."""
    script, *arguments = job
    if "tag_corpus" in script and "checkpoint/" in arguments:
        (home / "checkpoint").unlink()
        (home / "checkpoint").symlink_to(POS)
    if "verify_corpus" in script:
        before = ["--input", "corpus", "--output", arguments[0], "--model", str(SPAM)]
        _run("jobs/classify_corpus.py", before, monkeypatch)
    _run(script, arguments, monkeypatch)


def _run(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(script, run_name="__main__")
    assert done.value.code == 0


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_are_checked_somewhere(command: str) -> None:
    assert [pattern for pattern in ELSEWHERE if re.fullmatch(pattern, command)], f"nothing runs {command!r}"


def test_make_has_every_target_that_a_page_names() -> None:
    targets = {words[1] for one in ALL if (words := one.split())[0] == "make"}
    for target in targets:
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr


def test_simple_lines_are_shell(home: Path) -> None:
    lines = [one for one in ALL if re.match(r"(mkdir|echo|export) ", one)]
    assert subprocess.run(["bash", "-eu"], input="\n".join(lines), text=True, cwd=home).returncode == 0


@pytest.mark.skipif(not shutil.which("jq"), reason="no jq here")
@pytest.mark.parametrize(
    ("hours_ago", "exit_code", "is_good"),
    [(0, 0, True), (11, 0, True), (23, 0, False), (47, 0, False), (1, 1, False), (1, 143, False), (1, None, False)],
)
def test_the_alert_tells_a_good_night_from_every_other(hours_ago: int, exit_code: int | None, is_good: bool) -> None:
    (command,) = (one for one in ALL if one.startswith("jq "))
    began = Outcome.begun(utc_now() - timedelta(hours=hours_ago), {})
    outcome = began if exit_code is None else began.ended(utc_now(), "failed" if exit_code else "succeeded", exit_code)
    run = subprocess.run(["sh", "-c", command], input=outcome.to_json(), capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == ((0, "true") if is_good else (1, "false"))


def test_every_pattern_is_of_some_command() -> None:
    assert [pattern for pattern in ELSEWHERE if not any(re.fullmatch(pattern, one) for one in OTHERS)] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != READERS and "```python" in page.read_text("utf-8")], ids=str
)
def test_python_runs_as_it_is_shown(
    page: Path, home: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"input_ids": np.array([2, 9, 3], np.int32), "offsets": np.array([0, 3])}  # what docs/api.md begins with
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if "out/spam" in block:
            job = ["--input", "corpus", "--output", "out/spam", "--head", f"spam={SPAM}", "--keep-column", "label"]
            _run("jobs/classify_corpus.py", job, monkeypatch)
        exec(compile(block, str(page), "exec"), dict(given))
        expected = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
        assert [line for line in expected if line not in capsys.readouterr().out.splitlines()] == []
