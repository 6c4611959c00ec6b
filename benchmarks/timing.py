"""Contenders in, seconds of each in turn out, and the ratio of two of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, patience_s: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after one run of each that does not count.

    All run within each round, so that what else the machine does strikes all of them. One that takes longer than
    ``patience_s`` drops out: where its precision is emulated, one number is enough.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            if max(seconds[name], default=0.0) <= patience_s:
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast as they we are: the median over the rounds that both ran in."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=False))
