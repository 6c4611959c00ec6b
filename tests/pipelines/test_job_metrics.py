from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from prometheus_client.samples import Sample

from pipelines import job_metrics
from pipelines.job_metrics import MAX_REASONS, OTHER, JobMetrics
from pipelines.run import run
from pipelines.write import Part
from tests.metrics import scrape, scraped
from tests.pipelines.labelling import whole_job as job

GAUGES = {"ray_convbert_job_actors", "ray_convbert_job_actors_at_work"}


def samples_of(output: Path, *, units: int, patience_s: float = 30) -> list[Sample]:
    """An output's samples once so many units of it are counted, or the last ones: other outputs' are there before."""
    deadline = time.monotonic() + patience_s
    while True:
        samples = [sample for sample in scrape() if sample.labels["output"] == str(output)]
        counted = {sample.name: sample.value for sample in samples}
        finished = (counted.get(f"ray_convbert_job_{name}") for name in ("units_total", "unit_seconds_count"))
        if set(finished) == {units} or time.monotonic() > deadline:
            return samples
        time.sleep(0.3)


@pytest.mark.slow
def test_a_run_is_on_rays_metrics_port(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_metrics, "BEAT_S", 0.2)
    lines = [json.dumps({"id": str(i), "text": "free mail"}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"id": "x", "text": 3}']))
    seen = set()
    count_parts = JobMetrics.add

    def add(metrics: JobMetrics, parts: list[Part]) -> None:
        count_parts(metrics, parts)
        if not seen:
            seen.update(sample.name for sample in scraped(GAUGES))

    monkeypatch.setattr(JobMetrics, "add", add)
    summary = run(job(tmp_path / "a.jsonl", tmp_path / "out", checkpoint, unit_rows=10))
    assert seen >= GAUGES  # while it runs
    units = len(list((tmp_path / "out").glob("part-*")))
    samples = samples_of(tmp_path / "out", units=units)
    values = {sample.name: sample.value for sample in samples}
    assert values["ray_convbert_job_rows_total"] == summary.rows == 21
    assert values["ray_convbert_job_units_total"] == values["ray_convbert_job_units_planned_total"] == units
    assert values["ray_convbert_job_tokens_total"] == summary.new_tokens
    assert values["ray_convbert_job_copied_tokens_total"] == summary.copied_tokens
    assert values["ray_convbert_job_unit_seconds_count"] == units
    assert values["ray_convbert_job_busy_seconds_total"] == pytest.approx(summary.busy_s, abs=1e-3)
    (failed,) = [sample for sample in samples if sample.name == "ray_convbert_job_failed_rows_total"]
    assert (failed.labels["reason"], failed.value) == ("text is a number, not a string", 1)


def test_ray_takes_every_reason_and_every_folder(ray_cluster: None) -> None:
    """Its tags are ASCII, and an error in counting would end the night."""
    metrics = JobMetrics(output="ausgänge/日", n_units=1, n_rows=None, n_actors=1, n_at_work=lambda: 0)
    reasons = {"n holds 'secret', not int64": 1, "größe is a number": 1}
    part = Part("part", rows=2, failed=2, tokens=0, reasons=reasons)
    metrics.add([part])
    assert dict(metrics._failures(part)) == {"n holds ..., not int64": 1, "gr\\xf6\\xdfe is a number": 1}


def test_reasons_are_few_and_hold_nothing_of_the_records(ray_cluster: None) -> None:
    metrics = JobMetrics(output="out", n_units=1, n_rows=None, n_actors=1, n_at_work=lambda: 0)

    def failures(failed: int, reasons: dict[str, int]) -> dict[str, int]:
        return dict(metrics._failures(Part("part", rows=99, failed=failed, tokens=0, reasons=reasons)))

    assert failures(5, {"n holds 'secret', not int64": 1, "n holds 'other', not int64": 2}) == {
        "n holds ..., not int64": 3,
        OTHER: 2,
    }
    many = failures(2 * MAX_REASONS, {f"reason {chr(97 + i)}": 1 for i in range(2 * MAX_REASONS)})
    assert len(many) == MAX_REASONS
    assert sum(many.values()) == 2 * MAX_REASONS
