from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.estimate import (
    DRIVER_S,
    Estimate,
    Sample,
    Timing,
    Work,
    count_rows,
    duration_s,
    size_in_words,
    stratum_of,
    time_in_words,
)
from pipelines.resources import Hardware
from pipelines.units import Shard, Stream, Unit
from tests.pipelines.nights import plan_of

TIMING = Timing(records=200, tokens=20_000, seconds=10.0, ready_s=3.0)  # 0.0005 s a token
SAMPLE = Sample(
    records=400, shards=4, failed=2, tokens=40_000, rows_per_byte={}, tokens_per_row={}, beside_s=2.0, timing=TIMING
)  # 0.00005 s a token beside the model
ON_CPUS = Work(
    units=7,
    rows=100_000,
    is_exact=True,
    tokens=10_000_000,
    n_cpus=8,
    grown_cpus=8,
    fewest=2,
    most=2,
    gpus=0,
    actor_cpus=2,
)
ON_GPUS = replace(ON_CPUS, gpus=1, actor_cpus=1)


def shard(name: str, size: int) -> Shard:
    return Shard(f"in/{name}", size, "1")


def test_on_cpus_the_works_add_up() -> None:
    assert duration_s(ON_CPUS, SAMPLE, TIMING, n_actors=2) == pytest.approx(
        3 + 10_000_000 * 0.0005 / 2 + 10_000_000 * 0.00005 / 8
    )


def test_a_cluster_grows_with_its_actors() -> None:
    grown = replace(ON_CPUS, grown_cpus=80, fewest=1, most=10, actor_cpus=4)
    assert [grown.cpus_of(n_actors) for n_actors in (1, 2, 10)] == [8, 16, 80]
    seconds = 3 + 10_000_000 * 0.0005 / 10 + 10_000_000 * 0.00005 / 80
    assert duration_s(grown, SAMPLE, TIMING, n_actors=10) == pytest.approx(seconds)
    most, fewest = replace(ESTIMATE, work=grown).lines()[-2:]
    assert f"with 10 actors, {seconds * 80 / 3600:.2f} CPU-hours" in most
    assert f"with 1 actor, {(3 + 10_000_000 * (0.0005 + 0.00005 / 8)) * 8 / 3600:.2f} CPU-hours" in fewest


@pytest.mark.parametrize(
    ("hardware", "present", "grown"),
    [
        (Hardware(1, 10, 4, 0, 8, 0.5, max_cpus=80), {"CPU": 8}, 80),
        (Hardware(2, 2, 2, 0, 4, 0.5, max_cpus=8), {"CPU": 8}, 8),
        (Hardware(1, 8, 0, 1, None, 0.5, max_cpus=64), {"CPU": 4, "GPU": 1}, 64),
        (Hardware(1, 1, 0, 1, None, 0.5, max_cpus=8), {"CPU": 4, "GPU": 1}, 4),  # one that is there may be all
    ],
)
def test_a_cluster_without_room_for_all_actors_is_one_that_grows(
    hardware: Hardware, present: dict[str, float], grown: float
) -> None:
    work = Estimate.of(plan_of(None), hardware, SAMPLE, present=present).work
    assert (work.n_cpus, work.grown_cpus) == (present["CPU"], grown)


def test_short_records_take_as_long_for_each_token() -> None:
    short = replace(ON_CPUS, rows=10 * ON_CPUS.rows)
    assert duration_s(short, SAMPLE, TIMING, n_actors=2) == duration_s(ON_CPUS, SAMPLE, TIMING, n_actors=2)


@pytest.mark.parametrize(("beside_s", "busy_s"), [(2.0, 10_000_000 * 0.0005 / 2), (400.0, 10_000_000 * 0.01 / (8 - 2))])
def test_on_gpus_the_slower_decides(beside_s: float, busy_s: float) -> None:
    sample = replace(SAMPLE, beside_s=beside_s)
    assert duration_s(ON_GPUS, sample, TIMING, n_actors=2) == pytest.approx(3 + busy_s)


def test_no_number_of_actors_is_faster_than_the_driver() -> None:
    work = replace(ON_GPUS, units=50_000, fewest=1, most=16)  # of 0.1 s in an actor
    lines = replace(ESTIMATE, work=work).lines()
    assert lines[-3].startswith(f"estimate: 42 min with 16 actors, {16 * (3 + 50_000 * DRIVER_S) / 3600:.2f} GPU-hours")
    assert lines[-2].startswith("estimate: 83 min with 1 actor, ")
    assert lines[-1].startswith("the driver, which hands out about 20 units a second, is slower than the actors")
    assert "give a new output a higher --unit-rows" in lines[-1]
    short = replace(work, units=1000, tokens=1000)
    assert replace(ESTIMATE, work=short).lines()[-1].startswith("estimate: 53 s with 1 actor, ")


def test_rows_are_counted_where_they_are_known_and_estimated_from_bytes_elsewhere() -> None:
    big, small, lines = shard("a.parquet", 9000), shard("b.parquet", 50), shard("c.jsonl", 4000)
    packed = shard("d.jsonl.gz", 1000)
    exact = (Unit("a0", (big,), 0, 70), Unit("a1", (big,), 70, 100))
    of_big, of_small = stratum_of(big, in_group=False), stratum_of(small, in_group=True)
    of_lines, in_group = stratum_of(lines, in_group=False), stratum_of(lines, in_group=True)
    of_packed = stratum_of(packed, in_group=False)
    densities = {of_small: 0.2, of_lines: 0.01, in_group: 0.03, of_packed: 0.5}
    assert count_rows([exact], {}) == ({of_big: 100}, True)
    group = (Unit("b", (small, lines)),)
    assert count_rows([exact, group], densities) == ({of_big: 100, of_small: 10, in_group: 120}, False)
    assert count_rows([(Unit("c1", (lines,), 1000, 3000),)], densities) == ({of_lines: 20}, False)
    stream = Stream(packed, "d", unit_rows=9, unit_bytes=400)  # 4000 plain bytes, about 10 units
    assert count_rows([stream], densities) == ({of_packed: 500}, False)
    assert count_rows([replace(stream, present=frozenset(range(5)))], densities) == ({of_packed: 250}, False)


def test_the_longest_suffix_is_the_kind() -> None:
    shards = [shard(f"x{suffix}", 1) for suffix in (".jsonl", ".jsonl.gz", ".parquet")]
    assert [stratum_of(its, in_group=True)[0] for its in shards] == [".jsonl", ".jsonl.gz", ".parquet"]


def test_sizes_in_a_stratum_differ_by_a_factor_of_four_at_most() -> None:
    def strata(*sizes: int) -> int:
        return len({stratum_of(shard("x.parquet", size), in_group=True) for size in sizes})

    assert (strata(512, 2047), strata(512, 2048), strata(511, 512)) == (1, 2, 2)


ESTIMATE = Estimate(
    shards=3,
    n_bytes=1_234_567,
    all_shards=5,
    kept_units=2,
    sharing="one encoder pass: spam (text-classification)",
    hardware="2 model actors with 4 CPU threads each",
    tasks="an actor reserves 2 of 8 CPUs, a task beside it 0.5",
    precision="fp32",
    work=ON_CPUS,
    sample=SAMPLE,
    seen_columns=3,
)


def test_a_dry_run_says_what_is_left_and_what_it_takes() -> None:
    seconds = 3 + 2500 + 62.5
    assert ESTIMATE.lines() == [
        "dry run: 7 units to label, 2 already there; nothing was written",
        "input: 100,000 rows, about 10,000,000 tokens, 1.23 MB in 3 of 5 shards",
        "one encoder pass: spam (text-classification)",
        "2 model actors with 4 CPU threads each, fp32; an actor reserves 2 of 8 CPUs, a task beside it 0.5",
        "checked: models, columns of 3 of 5 shards, rights to write the output",
        "sample: 400 records of 4 shards read and tokenised, 2 of them cannot be labelled",
        f"estimate: 43 min with 2 actors, {seconds * 8 / 3600:.2f} CPU-hours "
        "(200 of them labelled, 2,000 tokens a second in one actor)",
    ]


def test_a_pool_that_grows_has_two_estimates() -> None:
    work = replace(ON_GPUS, is_exact=False, fewest=1, most=4)
    lines = replace(ESTIMATE, work=work).lines()
    assert lines[1].startswith("input: about 100,000 rows")
    slow, fast = 3 + 10_000_000 * 0.0005, 3 + 10_000_000 * 0.0005 / 4
    assert lines[-2].startswith(f"estimate: 21 min with 4 actors, {4 * fast / 3600:.2f} GPU-hours (")
    assert lines[-1].startswith(f"estimate: 83 min with 1 actor, {slow / 3600:.2f} GPU-hours (")


def test_without_a_process_there_is_no_time() -> None:
    sample = replace(SAMPLE, timing=None, why_not="no GPU is up yet")
    assert replace(ESTIMATE, sample=sample).lines()[-1] == "no estimate of the time: no GPU is up yet"


@pytest.mark.parametrize(("seconds", "words"), [(89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_times_have_few_digits(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(12, "12 B"), (1500, "1.5 kB"), (999_400, "999 kB"), (999_500, "1 MB"), (2.5e9, "2.5 GB"), (3e15, "3,000 TB")],
)
def test_sizes_have_few_digits(n_bytes: float, words: str) -> None:
    assert size_in_words(n_bytes) == words
