from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pipelines.outcome import Outcome, submission_id, write_outcome
from tests.pipelines.nights import SUMMARY

BEGAN = datetime(2026, 11, 26, 1, 2, 3, 4000, timezone.utc)
ENDED = BEGAN + timedelta(minutes=90, milliseconds=250)


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "_result.json").read_text())


def test_a_run_says_that_it_runs_and_then_how_it_ended(tmp_path: Path) -> None:
    begun = Outcome.begun(BEGAN, {"RAY_JOB_SUBMISSION_ID": "night-7"})
    assert write_outcome(str(tmp_path / "out"), begun)
    running = written(tmp_path / "out")
    assert (running["status"], running["exit_code"], running["finished"]) == ("running", None, None)
    assert (running["started"], running["submission_id"]) == ("2026-11-26T01:02:03.004+00:00", "night-7")
    write_outcome(str(tmp_path / "out"), begun.ended(ENDED, "succeeded", 0, summary=SUMMARY))
    ended = written(tmp_path / "out")
    assert (ended["status"], ended["exit_code"], ended["error"]) == ("succeeded", 0, None)
    assert (ended["seconds"], ended["finished"]) == (5400.25, "2026-11-26T02:32:03.254+00:00")
    assert (ended["rows"], ended["failed"], ended["new_rows"]) == (1000, 10, 500)


def test_an_error_is_one_line_without_secrets() -> None:
    error = "s3://key:hush@bucket/x?X-Amz-Signature=hush\ncannot be read"
    ended = Outcome.begun(BEGAN, {}).ended(ENDED, "failed", 1, error=error, error_type="SourceError")
    assert ended.error == "s3://key:***@bucket/x?X-Amz-Signature=***\\ncannot be read"
    assert (ended.rows, ended.error_type) == (None, "SourceError")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "night-8"}}'}, "night-8"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {}}', "RAY_JOB_SUBMISSION_ID": "night-9"}, "night-9"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "no JSON"}, None),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "[]"}, None),
        ({}, None),
    ],
)
def test_the_submission_id_is_rays(environment: dict[str, str], expected: str | None) -> None:
    assert submission_id(environment) == expected


def test_an_output_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    begun = Outcome.begun(BEGAN, {})
    assert not write_outcome(str(tmp_path / "file"), begun)
    assert not write_outcome("nosuch://out", begun)
    assert not caplog.messages
    assert not write_outcome(str(tmp_path / "file"), begun.ended(ENDED, "failed", 1))
    (message,) = caplog.messages
    assert message.startswith(f"no result file: {tmp_path}/file/_result.json cannot be written")
