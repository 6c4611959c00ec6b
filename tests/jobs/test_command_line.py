from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.command_line import import_at_once, main, parse, prepare_environment
from jobs.serve_online import parse as serving_spec_of
from pipelines.errors import SpecError
from pipelines.spec import JobSpec, flag
from pipelines.storage import put
from tests.pipelines.nights import SUMMARY


def spec_of(*arguments: str) -> JobSpec:
    return parse("test", task="text-classification", arguments=["--output", "out", *arguments])


def test_flags_become_fields() -> None:
    arguments = ["--input", "a", "--input", "b", "--head", "x=u1", "--head", "y=u2=z", "--keep-column", "c"]
    spec = spec_of(*arguments, "--unit-rows", "7", "--precision", "bf16", "--dry-run", "--max-failed-fraction", "0.2")
    assert (spec.input, spec.head, spec.keep_column) == (["a", "b"], {"x": "u1", "y": "u2=z"}, ["c"])
    assert (spec.unit_rows, spec.precision, spec.dry_run, spec.overwrite) == (7, "bf16", True, False)
    assert spec.max_failed_fraction == 0.2


def test_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: [a]\nmodel: m\nunit_rows: 5\ntext_column: body\n")
    spec = spec_of("--config", str(tmp_path / "job.yaml"), "--unit-rows", "9")
    assert (spec.unit_rows, spec.text_column) == (9, "body")


def test_the_file_may_lie_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ``~`` in --config=~/job.yaml as it is."""
    (tmp_path / "job.yaml").write_text("input: [a]\nmodel: m\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert spec_of("--config=~/job.yaml").input == ["a"]


def test_a_flag_takes_back_what_the_file_turns_on(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: [a]\nmodel: m\nprune: true\noverwrite: true\n")
    spec = spec_of("--config", str(tmp_path / "job.yaml"), "--no-prune")
    assert (spec.prune, spec.overwrite) == (False, True)


def test_a_flag_overrides_the_files_other_way_to_name_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("input: [a]\nmodel: m\n")
    (tmp_path / "many.yaml").write_text("input: [a]\nhead: {topic: t, mood: m}\n")
    assert spec_of("--config", str(tmp_path / "one.yaml"), "--head", "topic=u").head == {"topic": "u"}
    assert spec_of("--config", str(tmp_path / "many.yaml"), "--model", "u").head == {"prediction": "u"}


@pytest.mark.parametrize("head", ["topic", "topic=", "=u"])
def test_heads_need_a_name_and_a_url(head: str) -> None:
    for option in ("--head", "--embed"):
        with pytest.raises(
            SpecError, match=f"{option} {head}: give NAME=URL, such as {option} topic=checkpoints/topic"
        ):
            serving_spec_of([option, head])


def test_a_head_that_is_given_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="--head topic is given twice"):
        spec_of("--input", "a", "--head", "topic=a", "--head", "other=a", "--head", "topic=b")


def test_a_default_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("test", task="text-classification", arguments=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "makes no entity; may be repeated (default: O) --max-answer-tokens" in text


def test_an_address_of_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the job, which then starts a cluster of its own."""
    environment = {"RAY_ADDRESS": ""}
    monkeypatch.setattr(os, "environ", environment)
    prepare_environment()
    assert re.fullmatch("[0-9a-f]{64}", environment["RAY_AUTH_TOKEN"])


@pytest.mark.parametrize("variable", [None, "RAY_ADDRESS", "RAY_AUTH_MODE"])
def test_a_cluster_of_the_jobs_own_gets_a_token(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {} if variable is None else {variable: "given"}
    monkeypatch.setattr(os, "environ", environment)
    prepare_environment()
    token = environment.pop("RAY_AUTH_TOKEN", None)
    if variable is None:
        assert re.fullmatch("[0-9a-f]{64}", token or "")
        assert environment == {"RAY_AUTH_MODE": "token", "TOKENIZERS_PARALLELISM": "false"}
    else:
        assert token is None
        assert environment == {variable: "given", "TOKENIZERS_PARALLELISM": "false"}


def test_a_removed_working_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with pytest.raises(SpecError, match="has been removed: cd to one that is there"):
        prepare_environment()


@pytest.mark.parametrize(
    ("job", "arguments"), [("classify_corpus", "--input=in --output=out --model=m"), ("serve_online", "--head=x=m")]
)
def test_python_without_docstrings_is_refused(job: str, arguments: str) -> None:
    command = [sys.executable, "-OO", "-m", f"jobs.{job}", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refusal = "error: Ray needs docstrings: start without python -OO or PYTHONOPTIMIZE=2\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", refusal)


def test_large_imports_are_no_work_for_the_garbage_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_library.py").write_text(
        "import gc\nis_collected = gc.isenabled()\nobjects = [[] for _ in range(9999)]"
    )
    (tmp_path / "a_broken_one.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    gc.unfreeze()  # what an earlier job in this process has left
    try:
        import_at_once("a_library")
        assert not sys.modules["a_library"].is_collected
        assert gc.get_freeze_count() >= 9999
        with pytest.raises(ZeroDivisionError):
            import_at_once("a_broken_one")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
    import_at_once("a_library")
    assert gc.get_freeze_count() == 0


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("test", task="text-classification", arguments=["--help"])
    text = capsys.readouterr().out
    assert [name for name in JobSpec.model_fields if name != "task" and flag(name) not in text] == []


def start(tmp_path: Path, *arguments: str) -> int:
    model = ["--model", str(tmp_path / "none")]
    given = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), *model, *arguments]
    return main("test", task="text-classification", arguments=given)


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out/_result.json").read_text())


def test_a_failure_before_the_start_leaves_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path) == 1
    error = capsys.readouterr().err
    ended = result(tmp_path)
    assert (ended["status"], ended["exit_code"], ended["error_type"]) == ("failed", 1, "ModelError")
    assert error == f"error: {ended['error']}\n"
    assert "no checkpoint folder at" in error
    assert ended["started"] <= ended["finished"]


def test_a_dry_run_and_a_wrong_command_line_leave_none(tmp_path: Path) -> None:
    assert start(tmp_path, "--dry-run") == 1
    assert start(tmp_path, "--stride", "-1") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("end", "exit_code", "error_type"),
    [(KeyboardInterrupt(), 130, "Interrupted"), (SystemExit(15), 143, "Terminated")],
)
def test_a_run_that_is_stopped_says_so(
    end: BaseException, exit_code: int, error_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(spec: JobSpec) -> None:
        assert result(tmp_path)["status"] == "running"
        raise end

    monkeypatch.setattr("pipelines.run.run", stopped)
    assert start(tmp_path) == exit_code
    assert (result(tmp_path)["status"], result(tmp_path)["error_type"]) == ("interrupted", error_type)


def test_sigterm_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.run", lambda spec: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert start(tmp_path) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_disturb_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def stopped(spec: JobSpec) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("tidied up")

    monkeypatch.setattr("pipelines.run.run", stopped)
    assert start(tmp_path) == 143
    assert done == ["tidied up"]


@pytest.mark.parametrize(
    ("stop", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_before_the_work_begins_stops_it_too(
    stop: signal.Signals, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output's store may take long to answer."""
    stores = iter([lambda *given: signal.raise_signal(stop), put])
    monkeypatch.setattr("pipelines.outcome.put", lambda *given: next(stores)(*given))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert start(tmp_path) == exit_code
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result(tmp_path)["status"], result(tmp_path)["exit_code"]) == ("interrupted", exit_code)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_no_signal_disturbs_the_writing_of_the_result(
    stop: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(*given: Any) -> None:
        signal.raise_signal(stop)
        put(*given)

    stores = iter([put, disturbed])
    monkeypatch.setattr("pipelines.outcome.put", lambda *given: next(stores)(*given))
    monkeypatch.setattr("pipelines.run.run", lambda spec: SUMMARY)
    assert start(tmp_path) == 0
    assert result(tmp_path)["status"] == "succeeded"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_summary_is_shown_in_whatever_encoding(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.run", lambda spec: replace(SUMMARY, output="ausgäbe"))
    with (tmp_path / "printed").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert start(tmp_path) == 0
    shown = "rows in ausgäbe,".encode(encoding, "backslashreplace")
    assert shown in (tmp_path / "printed").read_bytes()
    assert result(tmp_path)["status"] == "succeeded"


@pytest.mark.parametrize("where", ["a full disk", "a pipe that nobody reads"])
def test_a_summary_that_nobody_can_read_fails_no_run(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if where == "a full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    monkeypatch.setattr("pipelines.run.run", lambda spec: SUMMARY)
    with open(descriptor, "w", encoding="utf-8") as file:  # closing it writes what is left, as Python does at its end
        monkeypatch.setattr(sys, "stdout", file)
        assert start(tmp_path) == 0
    assert "standard output cannot be written" in caplog.text
    assert (result(tmp_path)["status"], result(tmp_path)["exit_code"]) == ("succeeded", 0)


def test_a_fault_of_ours_shows_its_trace_and_leaves_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.run", lambda spec: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(tmp_path)
    ended = result(tmp_path)
    assert (ended["status"], ended["exit_code"], ended["error"]) == (
        "failed",
        1,
        "ZeroDivisionError: division by zero",
    )
