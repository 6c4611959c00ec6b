"""How a run ended in, _result.json in its output folder out: ``ray job submit`` passes on no more than 0 or 1."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Literal

from convbert.errors import one_line
from pipelines.errors import PipelineError
from pipelines.manifest import OURS, version_of
from pipelines.storage import locate, put, redacted
from pipelines.summary import Summary

logger = logging.getLogger(__name__)
RESULT_NAME = "_result.json"
FORMAT = 1
_RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray's job supervisor gives the driver

Status = Literal["running", "succeeded", "failed", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """What one start of the command came to.

    Attributes:
        status: ``running`` until the end: where no process runs any more, it was killed.
        started, finished: UTC, ISO 8601; finished is None while it runs.
        seconds: wall-clock time from start to end.
        exit_code: of the process; None while it runs.
        error: why it failed, in one line.
        error_type: class of the error, such as SourceError; TooManyFailed where every record came out and too many
            of them failed.
        rows, failed: records in the whole output, and those with an error; None where the run has not got so far.
        new_rows: records that this run labelled.
        submission_id: what ``ray job submit`` was given, or chose; None for a command without it.
        version: of this package.
    """

    status: Status
    started: str
    submission_id: str | None
    version: str
    finished: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    error: str | None = None
    error_type: str | None = None
    rows: int | None = None
    failed: int | None = None
    new_rows: int | None = None

    @classmethod
    def begun(cls, now: datetime, environment: Mapping[str, str] = os.environ) -> Outcome:
        """A run that has just been started."""
        return cls("running", _iso(now), submission_id(environment), version_of(OURS))

    def ended(
        self,
        now: datetime,
        status: Status,
        exit_code: int,
        *,
        error: str | None = None,
        error_type: str | None = None,
        summary: Summary | None = None,
    ) -> Outcome:
        """The same run at its end; secrets in the error are blotted out."""
        figures = {} if summary is None else {name: getattr(summary, name) for name in ("rows", "failed", "new_rows")}
        return replace(
            self,
            status=status,
            finished=_iso(now),
            seconds=round((now - datetime.fromisoformat(self.started)).total_seconds(), 3),
            exit_code=exit_code,
            error=None if error is None else one_line(redacted(error)),
            error_type=error_type,
            **figures,
        )

    def to_json(self) -> str:
        """The text of _result.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def write_outcome(output: str, outcome: Outcome) -> bool:
    """Put the result into the output folder, where that can be: a run does not fail for it. False where it cannot."""
    try:
        put(locate(output).child(RESULT_NAME), outcome.to_json().encode("utf-8"))
    except PipelineError as error:
        logger.log(logging.DEBUG if outcome.status == "running" else logging.WARNING, "no result file: %s", error)
        return False
    return True


def utc_now() -> datetime:
    """The present moment, with its time zone."""
    return datetime.now(timezone.utc)


def submission_id(environment: Mapping[str, str]) -> str | None:
    """The id under which ``ray job submit`` runs this process; None where nobody submitted it."""
    try:
        found = json.loads(environment.get(_RAY_JOB_CONFIG, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        found = environment.get("RAY_JOB_SUBMISSION_ID")  # of launchers that start the job in another way
    return found or None


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
