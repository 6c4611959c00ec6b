from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines import nights
from pipelines.figures import Figures, lengths
from pipelines.nights import Meter, Timeline, with_night
from tests.pipelines.nights import head, night, part, plan_of


def test_a_timeline_spreads_work_over_the_time_that_it_took() -> None:
    timeline = Timeline()
    timeline.add(0.5, 2.5, rows=20, tokens=200)
    timeline.add(-3.0, 0.25, rows=1, tokens=1)
    values = timeline.to_values(3.2)
    assert values["slot_s"] == 1
    assert values["rows"] == [6, 10, 5, 0]
    assert values["tokens"] == [51, 100, 50, 0]
    assert Timeline().to_values(0.0)["rows"] == [0]


def test_a_long_run_has_longer_slots_and_loses_nothing() -> None:
    timeline, rng = Timeline(), np.random.default_rng(1)
    ends = np.cumsum(rng.exponential(7, 5000))
    for end in ends:
        timeline.add(end - 5, end, rows=3, tokens=7)
    values = timeline.to_values(ends[-1])
    assert 30 <= len(values["rows"]) <= 60
    assert values["slot_s"] * (len(values["rows"]) - 1) <= ends[-1] <= values["slot_s"] * len(values["rows"])
    assert sum(values["rows"]) == pytest.approx(15_000, rel=1e-4)
    assert sum(values["tokens"]) == pytest.approx(35_000, rel=1e-4)


def test_a_meter_adds_up_stages_and_does_not_grow() -> None:
    meter = Meter()
    parts = [part(n, {"spam": {"ham": 10}}) for n in range(100)]
    meter.add(parts)
    values = meter.to_values(1.5)
    assert (values["rows"], values["n_actors"]) == (1000, 0)
    assert values["tokens"] == sum(each.tokens for each in parts) > 0
    assert values["stages_s"]["model"] == pytest.approx(150)
    assert values["stages_s"]["waiting"] == pytest.approx(10)
    assert len(json.dumps(values)) < 1000


def test_a_meter_tells_how_busy_the_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"monotonic": 100.0, "process_time": 50.0}
    for name in clock:
        monkeypatch.setattr(f"pipelines.nights.time.{name}", lambda name=name: clock[name])
    meter = Meter()
    assert meter.driver_busy == 0
    for seconds, cpu_s in ((30, 9), (10, 7), (10, 8)):  # its start does not count
        clock["monotonic"] += seconds
        clock["process_time"] += cpu_s
        meter.add([])
    assert meter.driver_busy == pytest.approx(0.75)
    assert meter.to_values(50)["driver_busy"] == 0.75


def test_a_night_holds_what_its_parts_tell_together() -> None:
    first, second = (
        part(1, {"spam": {"ham": 70, "spam": 30}}, failed=2),
        part(2, {"spam": {"ham": 10}}, failed=1, seed=1),
    )
    manifest = night(None, [first, second])
    [found] = manifest.nights
    assert (found["rows"], found["failed"], found["rows_of_output"]) == (113, 3, 113)
    details = found["details"]
    assert details["labels"] == {"spam": {"ham": 80, "spam": 30}}
    assert (details["reasons"], details["examples"]) == ({"text is null": 3}, {"text is null": "a.jsonl@1"})
    tokens = np.concatenate([np.random.default_rng(seed).integers(3, 300, n) for seed, n in ((0, 100), (1, 10))])
    assert Figures.of_values(details["figures"]).lengths == lengths(tokens)
    assert (details["before"], details["everything_before"], found["drift"]) == (None, {}, {})
    assert details["job"]["shards"] == 2
    assert "SECRET" not in json.dumps(found)


def test_settings_name_every_head_whatever_it_is_called() -> None:
    urls = {"model": "/m", "input": "s3://u:SECRET@b/i"}
    plan = plan_of(None, model=None, head=urls, keep_column=["lang"])
    [found] = with_night(night(None, []), plan, Meter())
    assert found["details"]["job"]["settings"] == {
        "head": {"model": "/m", "input": "s3://u:***@b/i"},
        "keep_column": ["lang"],
    }


def test_a_night_is_compared_with_the_one_before_which_is_then_shortened() -> None:
    first = night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})])
    second = night(first, [part(2, {"spam": {"ham": 200, "spam": 800}})])
    third = night(second, [part(3, {"spam": {"ham": 190, "spam": 810}})])
    assert [sorted({"details"} & its.keys()) for its in third.nights] == [[], [], ["details"]]
    assert [its["drift"]["spam"]["verdict"] for its in third.nights[1:]] == ["changed", "steady"]
    assert third.nights[:2] == [{k: v for k, v in its.items() if k != "details"} for its in second.nights]
    details = third.nights[-1]["details"]
    assert details["before"]["started"] == second.nights[-1]["started"]
    assert details["before"]["labels"] == {"spam": {"ham": 200, "spam": 800}}
    assert details["job"]["shards"] == 1  # those before are not new
    assert details["before"]["figures"] == second.nights[-1]["details"]["figures"]
    assert details["everything_before"] == {"spam": {"ham": 1000, "spam": 1000}}
    assert details["labels"] == {"spam": {"ham": 190, "spam": 810}}


def test_another_model_is_not_compared() -> None:
    first = night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})])
    other = night(first, [part(2, {"spam": {"ham": 200, "spam": 800}})], [head(fingerprint="0" * 64)])
    assert other.nights[-1]["drift"] == {}
    assert (other.nights[-1]["details"]["before"], other.nights[-1]["details"]["everything_before"]) == (None, {})


def test_an_output_of_an_earlier_version_is_compared_as_a_whole() -> None:
    first = replace(night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})]), nights=[])
    second = night(first, [part(2, {"spam": {"ham": 200, "spam": 800}})])
    assert len(second.nights) == 1
    assert second.nights[-1]["details"]["before"] is None
    assert second.nights[-1]["drift"]["spam"]["verdict"] == "changed"


def test_a_night_that_only_drops_records_leaves_the_one_before_to_compare_with() -> None:
    first = night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})])
    second = night(first, [part(2, {"spam": {"ham": 790, "spam": 210}})])
    pruned = night(second, [])
    assert pruned.nights[-1]["rows"] == 0
    last = night(pruned, [part(3, {"spam": {"ham": 795, "spam": 205}})])
    assert last.nights[-1]["details"]["before"]["started"] == first.nights[-1]["started"]
    assert last.nights[-1]["drift"]["spam"]["verdict"] == "steady"


def test_a_night_in_which_every_record_failed_leaves_the_one_before_to_compare_with() -> None:
    first = night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})])
    broken = night(first, [part(2, {"spam": {}}, failed=50)])
    assert broken.nights[-1]["drift"] == {}
    last = night(broken, [part(3, {"spam": {"ham": 200, "spam": 800}})])
    assert last.nights[-1]["details"]["before"]["labels"] == {"spam": {"ham": 800, "spam": 200}}
    assert last.nights[-1]["drift"]["spam"]["verdict"] == "changed"


def test_lengths_are_compared_where_all_heads_are_the_same() -> None:
    heads = [head("spam"), head("topic")]
    first = night(None, [part(1, {"spam": {"ham": 10}})], heads[:1])
    more = night(first, [part(2, {"spam": {"ham": 10}, "topic": {"a": 10}})], heads)
    before = Figures.of_values(more.nights[-1]["details"]["before"]["figures"])
    assert (before.lengths.n, list(before.scores)) == (0, ["spam"])
    same = night(more, [part(3, {"spam": {"ham": 10}, "topic": {"a": 10}})], heads)
    assert Figures.of_values(same.nights[-1]["details"]["before"]["figures"]).lengths.n == 10


def test_another_model_is_not_compared_behind_a_night_that_only_drops_records() -> None:
    pruned = night(night(None, [part(1, {"spam": {"ham": 800, "spam": 200}})]), [])
    other = night(pruned, [part(2, {"spam": {"ham": 200, "spam": 800}})], [head(fingerprint="0" * 64)])
    assert other.nights[-1]["drift"] == {}
    assert other.nights[-1]["details"]["before"] is None


def test_a_manifest_keeps_so_many_nights_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nights, "MOST_NIGHTS", 5)
    labels = {"spam": {f"label {n:04}": 10 for n in range(1000)}}
    manifest = None
    for n in range(8):
        manifest = night(manifest, [part(n, labels)])
    assert manifest is not None
    assert len(manifest.nights) == 5
    sizes = [len(json.dumps(its)) for its in manifest.nights]
    assert max(sizes[:-1]) < 1000  # whatever the number of labels
    assert sizes[-1] < 100_000
