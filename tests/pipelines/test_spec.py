from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SpecError
from pipelines.spec import JobSpec, read_config


def values(**changes: Any) -> dict[str, Any]:
    return {"input": ["corpus"], "output": "out", "model": "checkpoint", **changes}


def test_model_is_short_for_a_head_called_prediction() -> None:
    assert JobSpec.of(values()).head == {"prediction": "checkpoint"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit_rows": 0}, r"--unit-rows \(0\)"),
        ({"input": [""]}, r"--input \(\): .* at least 1 character"),
        ({"input": ""}, r"--input \(\): .* at least 1 character"),
        ({"model": None, "head": {"topic": ""}}, r"--head \(\): .* at least 1 character"),
        ({"head": {"topic": "other"}}, "not both"),
        ({"model": None}, "give --model URL or --head NAME=URL"),
        ({"model": None, "head": {"a b": "x"}}, "--head a b=.*letters, digits"),
        ({"model": None, "head": 5, "partition_by": "lang"}, r"--head \(5\): .* valid dictionary"),
        ({"keep_column": ["error"]}, "two output columns would be called 'error'"),
        ({"keep_column": ["prediction"]}, "two output columns would be called 'prediction'"),
        ({"keep_column": ["__unit"]}, "'__unit'.*begin with two underscores"),
        ({"min_actors": 3, "max_actors": 2}, r"--min-actors \(3\) is above --max-actors \(2\)"),
        ({"actor_nodes": ["zone"]}, "--actor-nodes zone: give KEY=VALUE,"),
        ({"partition_by": "_hidden"}, "--partition-by _hidden: readers pass over folders that begin with '_'"),
        ({"partition_by": "prediction"}, "--partition-by prediction: give a column of the input, or a head's field"),
        ({"long_text": "maybe"}, "--long-text"),
        ({"colour": "red"}, "unknown setting 'colour'"),
        ({"max_failed_fraction": 1.5}, r"--max-failed-fraction \(1.5\)"),
        ({"max_failed_fraction": True}, r"--max-failed-fraction \(True\): a number is wanted, not true or false"),
        ({"unit_rows": True}, r"--unit-rows \(True\): a number is wanted"),
        ({"partition_by": ""}, r"--partition-by \(\): .* at least 1 character"),
        ({"output": "s3://k:secret@bucket", "unit_rows": "s3://k:secret@bucket"}, r"--unit-rows \(s3://k:\*\*\*@"),
    ],
)
def test_what_no_job_can_have_is_named_with_its_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        JobSpec.of(values(**changes))
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("min_actors", 1, None),
        ("max_actors", 1, None),
        ("actor_cpus", 1, None),
        ("unit_rows", 1, None),
        ("max_batch_tokens", 1, None),
        ("max_length", 1, None),
        ("stride", 0, None),
        ("top_k", 1, None),
        ("threshold", 0, 1),
        ("max_answer_tokens", 1, None),
        ("max_failed_fraction", 0, 1),
    ],
)
def test_the_bounds_of_numbers(field: str, least: int, most: int | None) -> None:
    for value in (least, *([] if most is None else [most])):
        assert getattr(JobSpec.of(values(**{field: value})), field) == value
    for value in (least - 1, *([] if most is None else [most + 1])):
        with pytest.raises(SpecError, match=rf"^--{field.replace('_', '-')} \({value}\): Input should be "):
            JobSpec.of(values(**{field: value}))


def test_missing_settings_are_named_as_flags() -> None:
    with pytest.raises(SpecError, match="--output is missing"):
        JobSpec.of({"input": ["corpus"], "model": "checkpoint"})


def test_yaml_has_the_same_fields(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: [a, b]\noutput: out\nhead: {topic: there}\nunit-rows: 7\n", encoding="utf-8")
    spec = JobSpec.of(read_config(path))
    assert (spec.input, spec.head, spec.unit_rows) == (["a", "b"], {"topic": "there"}, 7)


def test_a_lone_string_is_a_list_of_one() -> None:
    given = values(input="s3://bucket/in", keep_column="body", ignore_label="X", actor_nodes="zone=a", partition_by="n")
    spec = JobSpec.of(given)
    assert (spec.input, spec.keep_column) == (["s3://bucket/in"], ["body", "n"])
    assert (spec.ignore_label, spec.actor_nodes) == (["X"], ["zone=a"])
    assert given["input"] == "s3://bucket/in"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("output", "out\udcff", r"--output ('out\udcff')"),  # as Python reads a byte of no UTF-8
        ("text_column", "\ud800", r"--text-column ('\ud800')"),
        ("ignore_label", ["O", "\ud800"], r"--ignore-label ('\ud800')"),
    ],
)
def test_what_no_manifest_could_hold_is_refused(field: str, value: Any, told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"{told} holds what is no character")):
        JobSpec.of(values(**{field: value}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("input: [a]\noutput: b\ninput: [c]\n", "'input' is given twice in what begins at line 1: leave one out"),
        ("head:\n  a: x\n  a: y\n", "'a' is given twice in what begins at line 2"),
        ("keep_column: [a]\nkeep-column: [b]\n", "gives a field twice, with dashes and with underscores"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, told: str, tmp_path: Path) -> None:
    """The last one would win in silence, and a part of the corpus stay without labels."""
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SpecError, match=rf"--config .*job\.yaml .*{told}"):
        read_config(tmp_path / "job.yaml")


@pytest.mark.parametrize("text", [None, "- a list", "a: [", "\xff"])
def test_yaml_that_cannot_be_read_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(SpecError, match=r"--config .*job\.yaml"):
        read_config(path)


def test_the_recipe_leaves_out_what_does_not_change_a_part() -> None:
    one = JobSpec.of(values(max_actors=2, max_batch_tokens=100, output="here"))
    other = JobSpec.of(values(max_actors=5, max_batch_tokens=900, output="there", input=["else"]))
    assert one.recipe() == other.recipe()
    assert one.recipe() != JobSpec.of(values(keep_column=["body"])).recipe()
