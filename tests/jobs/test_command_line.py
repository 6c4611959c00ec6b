from __future__ import annotations

from pathlib import Path

import pytest

from jobs.command_line import parse
from pipelines.errors import SpecError
from pipelines.spec import JobSpec, flag


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


@pytest.mark.parametrize("head", ["topic", "topic=", "=u"])
def test_heads_need_a_name_and_a_url(head: str) -> None:
    with pytest.raises(SpecError, match="--head"):
        spec_of("--input", "a", "--head", head)


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("test", task="text-classification", arguments=["--help"])
    text = capsys.readouterr().out
    assert [name for name in JobSpec.model_fields if name != "task" and flag(name) not in text] == []
