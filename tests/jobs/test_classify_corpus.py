"""The job as a user starts it: a process of its own, its exit status and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.verify import verify

ROOT = Path(__file__).parents[2]


def classify(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the job without the test session's Ray settings, as from a user's shell."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | settings
    command = [sys.executable, str(ROOT / "jobs/classify_corpus.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def forty(checkpoint: Path, tmp_path: Path) -> list[object]:
    """Arguments of a job of forty texts."""
    corpus = tmp_path / "in.jsonl"
    corpus.write_text("".join(json.dumps({"id": i, "text": f"free mail {i}"}) + "\n" for i in range(40)))
    return ["--input", corpus, "--output", tmp_path / "out", "--model", checkpoint, "--unit-rows", 10]


def test_from_shell_to_parts_and_back(checkpoint: Path, tmp_path: Path) -> None:
    arguments = forty(checkpoint, tmp_path)
    home = tmp_path / "home"
    first = classify(*arguments, HOME=str(home))
    assert first.returncode == 0, first.stderr
    assert "40 rows labelled" in first.stdout
    assert "4 of 4 units" in first.stderr
    assert "Traceback" not in first.stderr
    ids = [i for path in sorted((tmp_path / "out").glob("*.parquet")) for i in pq.read_table(path)["id"].to_pylist()]
    assert ids == [str(i) for i in range(40)]
    night = json.loads((tmp_path / "out/_result.json").read_text())
    assert (night["status"], night["exit_code"], night["error"]) == ("succeeded", 0, None)
    assert (night["rows"], night["failed"], night["new_rows"], night["submission_id"]) == (40, 0, 40, None)
    assert verify(str(tmp_path / "out")).faults == []
    assert not (home / ".ray/auth_token").exists()  # where Ray leaves a token that it has made itself


@pytest.mark.slow
def test_the_night_after_has_nothing_to_do(checkpoint: Path, tmp_path: Path) -> None:
    arguments = forty(checkpoint, tmp_path)
    assert classify(*arguments).returncode == 0
    night = json.loads((tmp_path / "out/_result.json").read_text())
    second = classify(*arguments)
    assert second.returncode == 0
    assert second.stdout.startswith("nothing to do: all 40 rows are labelled")
    next_night = json.loads((tmp_path / "out/_result.json").read_text())
    assert (next_night["status"], next_night["rows"], next_night["new_rows"]) == ("succeeded", 40, 0)
    assert next_night["started"] >= night["finished"]
    assert verify(str(tmp_path / "out")).faults == []


@pytest.mark.slow
def test_too_many_failures_fail_the_job_after_everything_is_out(checkpoint: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "in.jsonl"
    corpus.write_text('{"text": "free"}\n{broken\n')
    result = classify("--input", corpus, "--output", tmp_path / "out", "--model", checkpoint)
    assert result.returncode == 1
    assert "error: 1 of 2 records failed, more than --max-failed-fraction 0.05" in result.stderr
    assert json.loads((tmp_path / "out/_manifest.json").read_text())["rows_out"] == 2
    assert not (tmp_path / "out/_SUCCESS").exists()
    tolerant = classify(
        "--input", corpus, "--output", tmp_path / "out", "--model", checkpoint, "--max-failed-fraction", 0.5
    )
    assert tolerant.returncode == 0
    assert (tmp_path / "out/_SUCCESS").exists()


def test_misuse_is_one_line(tmp_path: Path) -> None:
    result = classify("--input", tmp_path, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr == "error: no model: give --model URL or --head NAME=URL\n"
    missing = classify("--input", tmp_path, "--output", tmp_path / "out", "--model", tmp_path / "none")
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert "no checkpoint folder at" in missing.stderr
