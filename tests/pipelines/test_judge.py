from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.errors import RunError
from pipelines.judge import Judge
from pipelines.manifest import Manifest
from pipelines.units import Shard, Stream, Unit
from pipelines.write import Part
from tests.pipelines.nights import UNITS, made, plan_of, state


def judge(kept: list[Part] | None = None, previous: Manifest | None = None, n_units: int = 20) -> Judge:
    plan = plan_of(previous, max_failed_fraction=0.1)
    return Judge(replace(plan, parts=kept or [], pending=[UNITS[:n_units]]))


def test_a_bad_start_goes_on_while_the_rest_could_still_make_up_for_it() -> None:
    judging = judge()
    for n in range(20):
        judging.add([made(n, failed=2 if n < 10 else 0)])  # 20 of 200 at the end, which is what the job takes


def test_a_run_is_stopped_at_the_first_record_too_many() -> None:
    judging = judge()
    judging.add([made(n, failed=2) for n in range(10)])
    with pytest.raises(
        RunError, match=r"since 21 of 110 records have failed, too many .* 0\.1 .*text is null \(21, such as r0\)"
    ):
        judging.add([made(10, failed=1)])


def test_fewer_than_ten_units_tell_too_little_and_the_last_one_tells_at_the_end() -> None:
    judging = judge()
    judging.add([made(n, failed=10) for n in range(9)])
    judge(n_units=10).add([made(n, failed=10) for n in range(10)])  # all are out: the run's end tells
    with pytest.raises(RunError, match="since 90 of 100 records have failed"):
        judging.add([made(9)])


OTHER = "part-s-fedcba9876543210"
TEN_FAILED = [made(n, failed=1) for n in range(10)]


def before(*to_come: Unit, limit: float) -> Judge:
    """The judge of ten units, and of these that come after them."""
    return Judge(replace(plan_of(None, max_failed_fraction=limit), pending=[UNITS[:10], to_come]))


def other(*shards: str, size: int = 300, start: int = 0, stop: int | None = None) -> Unit:
    return Unit(f"{OTHER}-00000", tuple(Shard(url, size, "1") for url in shards), start, stop)


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        (other("/in/p.parquet", stop=900), 900),  # far larger than those before it, as behind groups of small shards
        (other("/in/j.jsonl", size=4800, start=1200, stop=2400), 1 + 1200 // len('{"text":""}\n')),
        (other(*(f"/in/{n}.json" for n in range(9)), size=47), 9 + 9 * 47 // 12),
    ],
    ids=["rows", "a range of bytes", "small shards"],
)
def test_all_the_good_records_that_may_still_come_are_counted_in(unit: Unit, most: int) -> None:
    sure = 10 / (100 + most)
    before(unit, limit=sure + 1e-9).add(TEN_FAILED)
    with pytest.raises(RunError, match="since 10 of 100 records have failed"):
        before(unit, limit=sure - 1e-9).add(TEN_FAILED)


@pytest.mark.parametrize("url", ["/in/s.parquet", "/in/s.jsonl.gz"])
def test_while_only_reading_tells_how_many_records_come_a_run_goes_on(url: str) -> None:
    judging = before(other("/in/s.jsonl", url), UNITS[10], limit=1e-9)
    judging.add(TEN_FAILED)
    with pytest.raises(RunError, match="since 10 of 110 records have failed"):
        judging.add([made(0, stem=OTHER)])
    with pytest.raises(RunError, match="since 10 of 100 records have failed"):
        before(other(url), limit=0).add(TEN_FAILED)  # whatever comes


def test_units_of_streams_that_are_still_to_come_may_be_any_number() -> None:
    stream = Stream(Shard("/in/z.jsonl.gz", 10**9, "1"), OTHER, 10, 100)
    plan = replace(plan_of(None, max_failed_fraction=1e-9), pending=[UNITS[:11], stream])
    Judge(plan).add([*TEN_FAILED, *(made(n, stem=OTHER, failed=10) for n in range(1000))])


def test_parts_of_an_interrupted_run_count_and_those_of_earlier_nights_make_up_for_nothing() -> None:
    old = [made(n, stem="part-b-fedcba9876543210") for n in range(1000)]
    left = made(19, failed=10)
    judging = judge([*old, left], state(old), n_units=19)
    judging.add([made(n, failed=1) for n in range(10)])  # with the nine to come 20 of 200
    with pytest.raises(RunError, match="since 21 of 120 new records have failed"):
        judging.add([made(10, failed=1)])


def test_a_column_s_name_is_as_short_as_json_can_write_it() -> None:
    sure = 10 / (100 + 1 + 1200 // len('{"größe":""}\n'.encode()))
    plan = replace(
        plan_of(None, max_failed_fraction=sure + 1e-9), pending=[UNITS[:10], (other("/in/j.jsonl", stop=1200),)]
    )
    Judge(replace(plan, columns=replace(plan.columns, texts=("größe",)))).add(TEN_FAILED)
