from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from pipelines import manifest
from pipelines.errors import OutputError
from pipelines.manifest import (
    Manifest,
    ShardEntry,
    by_group,
    differences,
    in_order,
    mark_success,
    read_manifest,
    total_reasons,
    unmark_success,
    version_of,
    write_manifest,
)
from pipelines.storage import locate
from pipelines.write import Part
from tests.fault_proxy import FaultProxy

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
    with pytest.raises(OutputError, match=r"_manifest\.json .*(cannot be read .*put back|format 99).*another --output"):
        read_manifest(locate(str(tmp_path)))


def test_a_store_that_refuses_to_show_the_manifest_has_not_said_that_there_is_none(s3: FaultProxy) -> None:
    output = locate("s3://bucket/manifest")
    assert read_manifest(output) is None
    write_manifest(output, MANIFEST)
    with (
        s3.next_faults("denied"),
        pytest.raises(
            OutputError, match=r"bucket/manifest/_manifest\.json cannot be read .*: check the address, rights"
        ),
    ):
        read_manifest(output)
    assert read_manifest(output) == MANIFEST


@pytest.mark.parametrize("pattern", ["part-{}.parquet", "_units/part-{}.index"])
def test_parts_are_in_the_order_of_their_units_beyond_five_digits_too(pattern: str) -> None:
    stems = ["a-0123456789abcdef", "a.b-0123456789abcdef", "b-00123456789abcde"]
    units = [f"{stem}-{n:05d}" for stem in stems for n in (0, 9_999, 10_000, 10_001, 99_999, 100_000, 1_000_000)]
    made = [Part(pattern.format(unit), 1, 0, 1) for unit in units]
    assert in_order(reversed(made)) == made
    assert by_group(reversed(made)) == {"0123456789abcdef": made[:14], "00123456789abcde": made[14:]}


def test_reasons_add_up_and_the_first_example_of_each_is_told() -> None:
    each = [
        Part("a", 9, 3, 0, reasons={"null": 1, "odd": 2}, examples={"null": "a1", "odd": "a2"}),
        Part("b", 9, 4, 0, reasons={"null": 3, "rare": 1}, examples={"null": "b1", "rare": "b2"}),
        Part("c", 9, 1, 0, reasons={"odd": 1}),  # an earlier version told no examples
    ]
    assert total_reasons(each, 2) == ({"null": 4, "odd": 3}, {"null": "a1", "odd": "a2"})
    assert total_reasons(each[2:], 2) == ({"odd": 1}, {})


def test_differences_are_told_in_words() -> None:
    assert differences({"a": 1, "b": [1]}, {"a": 2, "b": [1], "c": "x"}) == ["a was 1, now 2", 'c was null, now "x"']
    before, now = ({"heads": [{"name": "x", "task": "t", "threshold": value}]} for value in (0.5, 0.7))
    assert differences(before, now) == ["head x threshold was 0.5, now 0.7"]
    more = {"heads": [{"name": "y", "task": "t", "threshold": 0.5}, *now["heads"]]}
    assert differences(before, more) == ["head y is new", "head x threshold was 0.5, now 0.7"]
    assert differences(more, before) == ["head y is gone", "head x threshold was 0.7, now 0.5"]


def test_what_runs_from_its_source_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster that is sent the code with the job."""

    def nothing(package: str) -> str:
        raise PackageNotFoundError(package)

    assert version_of("torch") == version("torch")
    monkeypatch.setattr(manifest, "version", nothing)
    assert set(manifest.versions().values()) == {platform.python_version(), "not installed"}
