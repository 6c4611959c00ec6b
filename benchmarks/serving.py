"""Our service against the plain recipe of Ray Serve's documentation, under the same traffic, one after the other.

The recipe is what most people write: one deployment that takes HTTP requests, ``@serve.batch``, and in it
Transformers' tokenizer with padding to the batch's longest, and Transformers' ConvBERT in fp32, or in bf16 on a GPU.
Both have one replica, the same checkpoint and as many threads; ours runs in each of the given precisions, one after
the other.

Both run in this environment: with Ray's settings for less latency (docs/serving.md), the recipe has them too.

Traffic comes from a process of its own at a fixed rate with exponential gaps, whatever becomes of the answers
(benchmarks/load.py): the same texts at the same times for both. The rate rises until the 99th percentile of the
latency exceeds a bound, and then one between the highest that kept within it and the next is tried; what counts is the
highest that did. A lone request, for which no other has to wait, is compared with the bare engine on its token ids in
this process, a few of one and a few of the other in turn; what the service's mere presence costs the engine is told
by the engine's times before there was one. The same is done with two deployments that hold nothing but the engine,
which tells what Serve itself takes.

With as many threads as cores, Serve's own processes take their time from the model's threads. ``--threads`` below that
leaves them cores, as a cluster would. On a GPU the rates are higher by far, and fewer seconds at each say as much.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import multiprocessing
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ray
import transformers
from ray import serve

from benchmarks.inputs import SIZES, docstrings, make_model, save
from benchmarks.load import Reply, send
from benchmarks.machine import describe, device_line
from benchmarks.rows import Row
from benchmarks.serving_peers import HEAD, MAX_TOKENS, N_WARM_UP, bare, free_port, recipe, run_ms, warm_engine
from convbert.engine import PRECISIONS, Engine
from pipelines import serving
from pipelines.serve_spec import ServeSpec

MIN_TOKENS = 20
N_TEXTS = 2000
N_LONE = 100
TURN = 5  # lone requests before it is the engine's turn
STEP = 2**0.25  # from rate to rate
FIRST_LOAD = 0.5  # at the lowest rate, of what lone requests would make full
MOST_MISSES = 2  # rates beyond the bound that end a sweep: one alone may be bad luck
BOUND_OVER_LOWEST = 2.0
GOAL, GOAL_MS = 3.0, 5.0
MOST_DIFFERENCE = 1e-3  # of a score from the recipe's, where both compute in fp32
MOST_DIFFERENCE_OTHERWISE = 0.1


class Rate(NamedTuple):
    """What became of the traffic at a rate.

    Attributes:
        per_s: requests that were sent.
        n_failed: that were not answered with status 200.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    n_failed: int


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base", help="model size, random weights (default: base)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of traffic at each rate (default: 40)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (default: all cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of each side (default: cpu)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="of ours (default: fp32)")
    parser.add_argument("--batch-size", type=int, default=8, help="of the recipe (default: 8)")
    parser.add_argument("--p99-ms", type=float, help="bound (default: twice the recipe's at its lowest rate)")
    options = parser.parse_args()
    print(f"# benchmarks/serving.py, {describe()}{device_line(options.device)}")
    for row in measure(
        options.size,
        seconds=options.seconds,
        n_threads=options.threads,
        max_batch_size=options.batch_size,
        p99_ms=options.p99_ms,
        device=options.device,
        precisions=options.precision,
    ):
        print(f"{row.work} | {row.against} | {row.measured:.3g} | {row.note}")


def measure(
    size: str = "base",
    *,
    seconds: float = 40.0,
    n_threads: int | None = None,
    max_batch_size: int = 8,
    p99_ms: float | None = None,
    device: str = "cpu",
    precisions: Sequence[str] = ("fp32",),
) -> list[Row]:
    """For each precision: requests/s at the same p99 latency, and what a lone request costs beyond the engine."""
    how: dict[str, Any] = {"device": device, "n_threads": n_threads or os.cpu_count() or 1}
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = str(save(make_model("ConvBertForSequenceClassification", size, num_labels=2), Path(scratch)))
        texts, ids = texts_within(checkpoint)
        lengths = [len(one) for one in ids]
        print(
            f"{size} size, {how['n_threads']} threads, recipe's batches of {max_batch_size}; "
            f"texts of {min(lengths)} to {max(lengths)} tokens, mean {statistics.mean(lengths):.0f}, "
            f"median {statistics.median(lengths):.0f}; {seconds:g} s at each rate"
        )
        settings = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("RAY_SERVE_", "OMP_"))]
        print(f"environment: {', '.join(sorted(settings)) or 'as it is by default'}")
        with cluster(), recipe(checkpoint, **how, max_batch_size=max_batch_size) as url:
            send(url, texts[-N_WARM_UP:])
            their_lone = send(url, texts[:N_LONE])
            _print_lone("recipe", their_lone)
            lowest = FIRST_LOAD * 1000 / statistics.mean(reply.ms for reply in their_lone)
            their_rates = sweep("recipe", url, texts, lowest, seconds=seconds, p99_ms=p99_ms)
        bound_ms = p99_ms or BOUND_OVER_LOWEST * their_rates[0].p99_ms
        rows = []
        for precision in precisions:
            engine_of = partial(warm_engine, checkpoint, ids, **how, precision=precision)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # no length has run in it yet
                alone_ms = fresh.submit(engine_times, engine_of, ids[:N_LONE]).result()
            known = dict(zip(texts, ids, strict=True))
            with cluster(), bare(checkpoint, known, **how, precision=precision) as url:
                send(url, texts[-N_WARM_UP:])
                bare_lone, bare_ms = in_turns(url, engine_of(), texts[:N_LONE], ids[:N_LONE])
                _print_lone("bare", bare_lone)
            with cluster(), ours(checkpoint, **how, precision=precision) as url:
                send(url, texts[-N_WARM_UP:])
                our_lone, engine_ms = in_turns(url, engine_of(), texts[:N_LONE], ids[:N_LONE])
                _print_lone(precision, our_lone)
                lowest = sustained(their_rates, bound_ms) or their_rates[0].per_s
                our_rates = sweep(precision, url, texts, lowest, seconds=seconds, p99_ms=bound_ms)
            difference = largest_difference(our_lone, their_lone)
            most = MOST_DIFFERENCE if (device, precision) == ("cpu", "fp32") else MOST_DIFFERENCE_OTHERWISE
            assert difference <= most, f"in {precision} the answers differ by {difference}"
            work = f"online, {size} size, {precision}"
            rows += [
                throughput(work, our_rates, their_rates, bound_ms),
                beyond_engine(
                    f"{work}: ms of a lone request",
                    our_lone,
                    engine_ms,
                    note=f"; goal: at most {GOAL_MS:g}; engine without Ray {statistics.median(alone_ms):.1f} ms, "
                    f"recipe {p50(their_lone):.1f} ms",
                ),
                beyond_engine(f"{work}: ms of Serve with the engine alone", bare_lone, bare_ms),
            ]
    return rows


def throughput(work: str, our: Sequence[Rate], their: Sequence[Rate], bound_ms: float) -> Row:
    """How many times the recipe's rate ours is."""
    our_rate, their_rate = sustained(our, bound_ms), sustained(their, bound_ms)
    ratio = our_rate / their_rate if their_rate else math.nan
    note = f"{our_rate:.1f} and {their_rate:.1f} requests/s with a p99 of at most {bound_ms:.0f} ms"
    return Row(f"{work}: requests/s at the same p99", "Serve's recipe", GOAL, ratio, note)


def beyond_engine(work: str, replies: Sequence[Reply], engine_ms: Sequence[float], *, note: str = "") -> Row:
    """Milliseconds of a lone request beyond the engine's for the same text."""
    beyond_ms = p50(replies) - statistics.median(engine_ms)
    each_ms = statistics.median(reply.ms - ms for reply, ms in zip(replies, engine_ms, strict=True))
    times = f"p50 {p50(replies):.1f} ms, engine in turn {statistics.median(engine_ms):.1f} ms"
    return Row(
        f"{work} beyond", "our engine", None, beyond_ms, f"{times}, text by text {each_ms:.1f} ms beyond it{note}"
    )


def p50(replies: Sequence[Reply]) -> float:
    """Half of the replies took no longer, in milliseconds."""
    return statistics.median(reply.ms for reply in replies)


def texts_within(checkpoint: str) -> tuple[list[str], list[list[int]]]:
    """Distinct real texts of 20 to 512 tokens as they come, shuffled, and their ids."""
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint, model_max_length=10**6)
    found = list(dict.fromkeys(docstrings(2 * N_TEXTS)))
    random.Random(0).shuffle(found)
    pairs = zip(found, tokenizer(found)["input_ids"], strict=True)
    kept = [(text, ids) for text, ids in pairs if MIN_TOKENS <= len(ids) <= MAX_TOKENS][:N_TEXTS]
    return [text for text, _ in kept], [ids for _, ids in kept]


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray of its own: a second Serve in the same one may come up with the settings of none."""
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def ours(checkpoint: str, *, device: str, n_threads: int, precision: str) -> Iterator[str]:
    """The URL at which our service answers."""
    how = {"threads": n_threads, "device": device, "precision": precision}
    spec = ServeSpec.of({"head": {HEAD: checkpoint}, "port": free_port(), **how})
    try:
        yield f"{serving.start(spec)}/{HEAD}"
    finally:
        serve.shutdown()


def in_turns(
    url: str, engine: Engine, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> tuple[list[Reply], list[float]]:
    """Replies to texts that come one by one, and the engine's milliseconds for each: a few of these, a few of those."""
    replies: list[Reply] = []
    engine_ms: list[float] = []
    for first in range(0, len(texts), TURN):
        engine_ms += [run_ms(engine, one) for one in ids[first : first + TURN]]
        replies += send(url, texts[first : first + TURN])
    return replies, engine_ms


def sweep(
    name: str, url: str, texts: Sequence[str], lowest_per_s: float, *, seconds: float, p99_ms: float | None
) -> list[Rate]:
    """What became of the traffic at each rate of a climb."""

    def at(per_s: float) -> Rate:
        times_s = arrivals(per_s, seconds)
        replies = send(url, list(itertools.islice(itertools.cycle(texts), len(times_s))), times_s)
        rate = rate_of(per_s, replies)
        print(f"{name:>6}: {_line(rate)} ({len(replies)} requests)", flush=True)
        return rate

    return climb(at, lowest_per_s, p99_ms)


def climb(at: Callable[[float], Rate], lowest_per_s: float, p99_ms: float | None) -> list[Rate]:
    """Rates upwards until they miss the bound, and then the one half a step above the highest that held.

    The bound is by default twice the p99 at the lowest rate.
    """
    steps = rates_from(lowest_per_s)
    rates = [at(next(steps))]
    bound_ms = p99_ms or BOUND_OVER_LOWEST * rates[0].p99_ms
    while sum(not holds(rate, bound_ms) for rate in rates) < MOST_MISSES:
        rates.append(at(next(steps)))
    if highest := sustained(rates, bound_ms):
        rates.append(at(highest * math.sqrt(STEP)))
    return rates


def _print_lone(name: str, replies: Sequence[Reply]) -> None:
    assert all(reply.status == 200 for reply in replies), "a lone request failed"
    print(f"{name:>6}: lone requests: p50 {p50(replies):.1f} ms", flush=True)


def _line(rate: Rate) -> str:
    return f"{rate.per_s:6.1f}/s: p50 {rate.p50_ms:7.1f} ms, p99 {rate.p99_ms:7.1f} ms, {rate.n_failed} failed"


def engine_times(make: Callable[[], Engine], texts: Sequence[Sequence[int]]) -> list[float]:
    """Milliseconds that the bare engine takes for each text, after the same warm-up as a service.

    Each runs once, as in a service: the first batch of a new length costs oneDNN some milliseconds more.
    """
    engine = make()
    return [run_ms(engine, ids) for ids in texts]


def rates_from(lowest_per_s: float) -> Iterator[float]:
    """Powers of ``STEP`` from the last below a rate upwards: the same ones for every service."""
    return (STEP**power for power in itertools.count(math.floor(math.log(lowest_per_s, STEP))))


def arrivals(per_s: float, seconds: float) -> list[float]:
    """Seconds at which requests of this rate leave: exponential gaps, scaled so that no more nor fewer fit."""
    draw = random.Random(0)
    ends = list(itertools.accumulate(draw.expovariate(1) for _ in range(max(1, round(per_s * seconds)) + 1)))
    return [seconds * end / ends[-1] for end in ends[:-1]]


def rate_of(per_s: float, replies: Sequence[Reply]) -> Rate:
    """Percentiles over all replies, failed ones too."""
    times_ms = [reply.ms for reply in replies]
    n_failed = sum(reply.status != 200 for reply in replies)
    return Rate(per_s, percentile(times_ms, 50), percentile(times_ms, 99), n_failed)


def percentile(values: Sequence[float], percent: int) -> float:
    """The least value that so many percent of all do not exceed."""
    return sorted(values)[-(-percent * len(values) // 100) - 1]


def holds(rate: Rate, bound_ms: float) -> bool:
    """Whether all were answered, and in time."""
    return rate.n_failed == 0 and rate.p99_ms <= bound_ms


def sustained(rates: Sequence[Rate], bound_ms: float) -> float:
    """The highest rate that holds, in requests a second; 0 where none does."""
    return max((rate.per_s for rate in rates if holds(rate, bound_ms)), default=0.0)


def largest_difference(ours: Sequence[Reply], theirs: Sequence[Reply]) -> float:
    """Between the scores of the same label of the same text."""
    return max(
        abs(score - other[label])
        for our, their in zip(ours, theirs, strict=True)
        for other in [_scores(their)]
        for label, score in _scores(our).items()
    )


def _scores(reply: Reply) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in reply.body[0]}


if __name__ == "__main__":
    main()
