from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import OutputError
from pipelines.manifest import (
    Manifest,
    ShardEntry,
    differences,
    mark_success,
    read_manifest,
    unmark_success,
    write_manifest,
)
from pipelines.storage import locate
from pipelines.write import Part

MANIFEST = Manifest(
    recipe={"unit_rows": 5},
    heads=[{"name": "prediction", "task": "text-classification", "labels": ["a"], "fingerprint": "f"}],
    passes=[["prediction"]],
    shards=[ShardEntry("/in/a.jsonl", "0123", 2, "0123")],
    parts=[
        Part("part-a-0123-00000.parquet", 3, 1, 12, 99, {"prediction": {"a": 2}}),
        Part("part-a-0123-00001.parquet", 4, 0, 8, 70, copied_tokens=4, busy_s=0.75),
    ],
    seconds=1.5,
    versions={"torch": "2"},
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    assert read_manifest(output) is None
    write_manifest(output, MANIFEST)
    assert read_manifest(output) == MANIFEST


def test_what_parts_tell_in_detail_is_left_to_the_nights(tmp_path: Path) -> None:
    detailed = [replace(part, figures='{"lengths":[]}', stages_s={"reading": 1.0}) for part in MANIFEST.parts]
    night = {"started": "2026-11-26T00:00:00Z", "rows": 7}
    manifest = replace(MANIFEST, parts=detailed, nights=[night])
    text = manifest.to_json()
    assert "lengths" not in text
    assert "stages_s" not in text
    write_manifest(locate(str(tmp_path)), manifest)
    found = read_manifest(locate(str(tmp_path)))
    assert found is not None
    assert found.nights == [night]
    assert found.is_same_state(manifest)


def test_a_manifest_of_an_earlier_version_has_no_nights(tmp_path: Path) -> None:
    values = json.loads(MANIFEST.to_json())
    del values["nights"]
    (tmp_path / "_manifest.json").write_text(json.dumps(values))
    assert read_manifest(locate(str(tmp_path))) == MANIFEST


def test_the_marker_comes_and_goes(tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    for change, there in [(unmark_success, False), (mark_success, True), (mark_success, True), (unmark_success, False)]:
        change(output)
        assert (tmp_path / "_SUCCESS").exists() == there


def test_the_contract_is_kept() -> None:
    values = json.loads(MANIFEST.to_json())
    totals = {
        "rows_in": 7,
        "rows_out": 7,
        "rows_failed": 1,
        "units": 2,
        "tokens": 20,
        "copied_tokens": 4,
        "seconds": 1.5,
        "busy_s": 0.75,
    }
    assert {name: values[name] for name in totals} == totals
    assert values["parts"][0]["name"] == "part-a-0123-00000.parquet"
    assert {"rows", "bytes"} <= values["parts"][0].keys()
    assert values["heads"] == MANIFEST.heads
    assert values["labels"] == {"prediction": {"a": 2}}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 2}', '{"format": 2, "parts": 3}'])
def test_a_manifest_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "_manifest.json").write_text(text)
    with pytest.raises(OutputError, match=r"_manifest\.json .*(cannot be read|has format 99)"):
        read_manifest(locate(str(tmp_path)))


def test_differences_are_told_in_words() -> None:
    assert differences({"a": 1, "b": [1]}, {"a": 2, "b": [1], "c": "x"}) == ["a was 1, now 2", 'c was null, now "x"']
    before, now = ({"heads": [{"name": "x", "task": "t", "threshold": value}]} for value in (0.5, 0.7))
    assert differences(before, now) == ["head x threshold was 0.5, now 0.7"]
