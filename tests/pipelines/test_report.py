from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines import manifest as manifest_module
from pipelines import report as report_module
from pipelines.drift import SHIFTED
from pipelines.errors import OutputError
from pipelines.figures import numbers
from pipelines.manifest import Manifest
from pipelines.report import FIGURES_NAME, REPORT_NAME, report_of, write_report
from pipelines.report_page import page_of
from pipelines.storage import Location, locate
from pipelines.write import Part
from tests.pipelines.nights import head, night, part


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    first = night(None, [part(1, {"spam": {"ham": 700, "spam": 300}})])
    return night(first, [part(2, {"spam": {"ham": 200, "spam": 300}}, failed=10, seed=1)])


def test_labels_have_counts_shares_and_shares_before(manifest: Manifest) -> None:
    [head] = report_of(manifest)["heads"]
    assert head["labels"] == [
        {"label": "spam", "count": 300, "share": 0.6, "share_before": 0.3, "count_in_output": 600},
        {"label": "ham", "count": 200, "share": 0.4, "share_before": 0.7, "count_in_output": 900},
    ]
    assert [(each["against"], each["n_before"], each["n_now"]) for each in head["drift"]] == [
        ("the night before", 1000, 500)  # which was all before
    ]
    third = night(manifest, [part(3, {"spam": {"ham": 100, "spam": 50}})])
    assert [(each["against"], each["n_before"], each["n_now"]) for each in report_of(third)["heads"][0]["drift"]] == [
        ("the night before", 500, 150),
        ("all before", 1500, 150),
    ]
    assert head["drift"][0]["psi"] == pytest.approx(0.3761, abs=2e-3)  # 0.3 ln(0.6/0.3) + 0.3 ln(0.7/0.4)


def test_counts_are_those_of_the_night_and_of_the_output(manifest: Manifest) -> None:
    report = report_of(manifest)
    assert (report["night"]["rows"], report["night"]["failed"]) == (510, 10)
    assert (report["output"]["rows"], report["output"]["failed"], report["output"]["parts"]) == (1510, 10, 2)
    assert report["failures"] == [{"reason": "text is null", "records": 10, "example_id": "a.jsonl@2"}]
    assert [its["rows"] for its in report["nights"]] == [510, 1000]
    assert sum(each["count"] for each in report["lengths"]["bins"]) == 500
    assert sum(each["share"] for each in report["lengths"]["bins"]) == pytest.approx(1, abs=1e-4)
    assert sum(each["share_before"] for each in report["lengths"]["bins"]) == pytest.approx(1, abs=1e-4)
    scores = report["heads"][0]["scores"]["score"]
    assert [each["from"] for each in scores["bins"]] == pytest.approx([n / 20 for n in range(20)])
    assert sum(each["count"] for each in scores["bins"]) == scores["n"] == 500


def test_scores_are_compared_by_the_bins_of_the_wider_night() -> None:
    narrow, wide = numbers(np.linspace(10, 12, 1000)), numbers(np.linspace(10, 20, 1000))
    assert narrow.exponent < wide.exponent
    found = report_module._histogram(wide, narrow)
    assert sum(each["count"] for each in found["bins"]) == 1000
    assert found["drift"]["verdict"] == "changed"
    rng = np.random.default_rng(0)
    nights = [numbers(rng.normal(15, 1, 1000)) for _ in range(100)]
    for before, now in pairwise(nights):
        assert report_module._histogram(now, before)["drift"]["psi"] < SHIFTED
    assert report_module._histogram(numbers([]), wide)["drift"] is None


@pytest.mark.parametrize(
    ("stages", "busy", "waiting", "other", "driver", "expected"),
    [
        ({"reading": 1, "tokenising": 2}, 80, 5, 15, 0.9, "model"),
        ({"reading": 9, "tokenising": 2}, 30, 60, 10, 0.5, "reading"),
        ({"reading": 9, "tokenising": 2}, 30, 60, 10, 0.9, "driver"),
        ({"reading": 1, "tokenising": 50}, 30, 60, 10, 0.1, "tokenising"),
        ({"reading": 1, "writing": 50}, 30, 60, 10, 0.1, "writing"),
        ({"reading": 1}, 10, 10, 80, 0.9, "starting"),
        ({}, 0, 0, 50, 0.0, "nothing"),
    ],
)
def test_what_held_a_run_back(
    stages: dict[str, float], busy: float, waiting: float, other: float, driver: float, expected: str
) -> None:
    found = report_module._held_back_by(stages, busy_s=busy, waiting_s=waiting, other_s=other, driver_busy=driver)
    assert found == expected
    assert expected in report_module._HELD_BACK


def test_a_run_has_its_rates_and_its_course() -> None:
    run = {
        "rows": 30,
        "tokens": 300,
        "stages_s": {"reading": 2.0, "model": 30.0, "waiting": 5.0},
        "n_actors": 2,
        "hardware": "2 actors",
        "timeline": {"slot_s": 10.0, "rows": [5, 15, 10], "tokens": [50, 150, 100]},
    }
    found = report_module._run(run, 25.0)
    assert (found["rows_per_s"], found["tokens_per_s"]) == (1.2, 12)
    assert found["actors"] == {"computing": 0.6, "waiting": 0.1, "starting_and_ending": 0.3}
    assert found["stages_s"] == {"reading": 2.0, "model": 30.0}
    assert found["throughput"] == [
        {"from_s": 0, "to_s": 10, "rows_per_s": 0.5, "tokens_per_s": 5},
        {"from_s": 10, "to_s": 20, "rows_per_s": 1.5, "tokens_per_s": 15},
        {"from_s": 20, "to_s": 25, "rows_per_s": 2, "tokens_per_s": 20},
    ]


def test_the_report_is_json_and_made_of_the_manifest_alone(manifest: Manifest) -> None:
    report = report_of(manifest)
    again = report_of(replace(manifest, nights=json.loads(json.dumps(manifest.nights))))
    assert json.loads(json.dumps(report)) == report == again


def test_parts_are_totalled_once_however_many_heads_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    names, n_calls = [f"head{n}" for n in range(20)], 0
    manifest = night(None, [part(1, {name: {"ham": 7} for name in names})], [head(name) for name in names])

    def total_labels(parts: list[Part]) -> dict[str, dict[str, int]]:
        nonlocal n_calls
        n_calls += 1
        return manifest_module.total_labels(parts)

    monkeypatch.setattr(report_module, "total_labels", total_labels)
    assert [each["labels"][0]["count_in_output"] for each in report_of(manifest)["heads"]] == [7] * 20
    assert n_calls == 1


def test_both_files_are_written_once(manifest: Manifest, tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    write_report(output, manifest)
    report = json.loads((tmp_path / FIGURES_NAME).read_text())
    assert report == report_of(manifest)
    assert (tmp_path / REPORT_NAME).read_text() == page_of(report)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_report(output, manifest)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_report_that_is_not_of_the_newest_night_is_written_anew(manifest: Manifest, tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    for left in ("", "{broken", '{"night": {"started": "2001-01-01T00:00:00Z"}}', "[]"):
        (tmp_path / FIGURES_NAME).write_text(left)
        write_report(output, manifest)
        assert json.loads((tmp_path / FIGURES_NAME).read_text()) == report_of(manifest)


def test_a_failure_is_a_warning_and_leaves_no_half_file(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(target: Location, data: bytes) -> None:
        raise OutputError(f"{target.url}?sig=SECRET cannot be written")

    monkeypatch.setattr(report_module, "put", refuse)
    with caplog.at_level(logging.WARNING):
        write_report(locate(str(tmp_path)), manifest)
    [record] = caplog.records
    assert "the labels are all there, but report.html could not be written (OutputError: " in record.getMessage()
    assert "SECRET" not in record.getMessage()
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_an_earlier_version_gets_no_report_until_something_is_labelled(
    manifest: Manifest, tmp_path: Path
) -> None:
    write_report(locate(str(tmp_path)), replace(manifest, nights=[]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="tells of no night"):
        report_of(replace(manifest, nights=[]))
