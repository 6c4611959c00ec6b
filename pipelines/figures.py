"""Values in, small histograms out that can be added to each other: what a part tells of lengths and scores."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Scale = Literal["share", "number", "length"]
N_SHARES = 20  # bins from 0 to 1, so that a unit of every other scale is the same 0.05
_MOST_BINS = 32  # of numbers; adding histograms keeps to it
_RELATIVE_BITS = 20  # numbers are told apart to a millionth of the largest


@dataclass(frozen=True)
class Histogram:
    """How often values fall into bins; the same whatever pieces it was put together from, and in whatever order.

    Attributes:
        scale: ``share``: bin i holds [i / 20, (i + 1) / 20), the last one 1 too. ``number``: bin i holds
            [i w, (i + 1) w) with w = 0.05 · 2^exponent, the least that takes at most 32 bins. ``length``: bins 2e and
            2e + 1 hold the whole numbers from 2^e and from 1.5 · 2^e; -1 holds 0.
        counts: values by bin; bins without any are left out.
        exponent: of ``number``.
        total: sum of the values.
        low, high: the least and the greatest; 0 where there is none.
    """

    scale: Scale
    counts: dict[int, int] = field(default_factory=dict)
    exponent: int = 0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def n(self) -> int:
        """Values in it."""
        return sum(self.counts.values())

    def __add__(self, other: Histogram) -> Histogram:
        """Of the values of both.

        Raises:
            ValueError: the scales differ.
        """
        total = _Sum(self.scale)
        total.add(self)
        total.add(other)
        return total.histogram()

    def widened(self, exponent: int) -> Histogram:
        """With bins of this exponent, which is not below its own."""
        counts: Counter[int] = Counter()
        for index, count in self.counts.items():
            counts[index >> (exponent - self.exponent)] += count
        return Histogram(self.scale, dict(counts), exponent, self.total, self.low, self.high)

    def bins(self) -> list[tuple[float, float]]:
        """Where each bin begins and ends, from the first that holds a value to the last; shares have all of theirs.

        The end of a ``length`` belongs to its bin, that of the others to the next one.
        """
        return [self.edges(index) for index in self.indices()]

    def indices(self) -> list[int]:
        """Bins from the first that holds a value to the last."""
        if self.scale == "share":
            return list(range(N_SHARES))
        if not self.counts:
            return []
        return [i for i in range(min(self.counts), max(self.counts) + 1) if self.scale == "number" or i != 1]

    def edges(self, index: int) -> tuple[float, float]:
        """Where a bin begins and ends."""
        if self.scale == "length":
            return _length(index), _length(index + 1 + (index == 0)) - 1
        width = math.ldexp(1 / N_SHARES, self.exponent)
        return index * width, (index + 1) * width

    def quantile(self, share: float) -> float:
        """End of the bin in which this share of the values is reached, or the greatest value where that is less."""
        reached = 0
        for index, count in sorted(self.counts.items()):
            reached += count
            if reached >= share * self.n:
                return min(self.edges(index)[1], self.high)
        return 0.0

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        first = min(self.counts, default=0)
        counts = [self.counts.get(index, 0) for index in range(first, max(self.counts, default=-1) + 1)]
        values: dict[str, Any] = {"scale": self.scale, "first": first, "counts": counts}
        if self.exponent:
            values["exponent"] = self.exponent
        return {**values, "total": self.total, "low": self.low, "high": self.high}

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Histogram:
        """From JSON."""
        own = {name: value for name, value in values.items() if name != "first"}
        return cls(**{**own, "counts": {i: n for i, n in enumerate(values["counts"], values["first"]) if n}})


class _Sum:
    """A histogram to which others are added, fast enough for those of 100,000 parts."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._counts: dict[int, int] = {}
        self._exponent = 0
        self._total = 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, other: Histogram) -> None:
        """Count its values too.

        Raises:
            ValueError: the scales differ.
        """
        if self._scale != other.scale:
            raise ValueError(f"a histogram of {self._scale} and one of {other.scale} cannot be added")
        if not other.counts:
            return
        low, high = min(self._low, other.low), max(self._high, other.high)
        if self._scale == "number" and (low, high) != (self._low, self._high):
            self._counts = self.histogram().widened(exponent := _exponent(low, high)).counts
            self._exponent = exponent
        self._low, self._high = low, high
        self._total += other.total
        shift, counts = self._exponent - other.exponent, self._counts
        for index, count in other.counts.items():
            counts[index >> shift] = counts.get(index >> shift, 0) + count

    def histogram(self) -> Histogram:
        """What was added."""
        if not self._counts:
            return Histogram(self._scale)
        counts = dict(sorted(self._counts.items()))
        return Histogram(self._scale, counts, self._exponent, self._total, self._low, self._high)


def _length(index: int) -> int:
    """The first whole number of a bin of lengths."""
    if index < 0:
        return 0
    power = 1 << (index // 2)
    return power + (power // 2 if index % 2 else 0)


def _exponent(low: float, high: float) -> int:
    """The least that takes at most so many bins; it never falls when the range grows."""
    largest = max(abs(low), abs(high)) * N_SHARES
    exponent = max(-_RELATIVE_BITS, math.frexp(largest)[1] - _RELATIVE_BITS)
    while _index(high, exponent) - _index(low, exponent) >= _MOST_BINS:
        exponent += 1
    return exponent


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value * N_SHARES, -exponent))


def shares(values: ArrayLike) -> Histogram:
    """Of probabilities."""
    found = np.asarray(values, np.float64)
    return _histogram("share", np.clip(found * N_SHARES, 0, N_SHARES - 1).astype(np.int64), found)


def numbers(values: ArrayLike) -> Histogram:
    """Of any numbers; what is not finite does not count."""
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Histogram("number")
    exponent = _exponent(float(found.min()), float(found.max()))
    return _histogram("number", np.floor(np.ldexp(found * N_SHARES, -exponent)).astype(np.int64), found, exponent)


def lengths(values: ArrayLike) -> Histogram:
    """Of whole numbers from 0."""
    found = np.asarray(values, np.int64)
    mantissas, exponents = np.frexp(found.astype(np.float64))
    indices = np.where(found > 0, 2 * (exponents - 1) + (mantissas >= 0.75), -1)
    return _histogram("length", indices, found)


def _histogram(scale: Scale, indices: Any, values: Any, exponent: int = 0) -> Histogram:
    if not len(values):
        return Histogram(scale)
    found, counts = np.unique(indices, return_counts=True)
    by_bin = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return Histogram(scale, by_bin, exponent, float(values.sum()), float(values.min()), float(values.max()))


@dataclass(frozen=True)
class Figures:
    """Histograms of some records.

    Attributes:
        lengths: tokens of each record that did not fail, over all encoder passes.
        scores: for each head what it gives, by name.
    """

    lengths: Histogram = field(default_factory=lambda: Histogram("length"))
    scores: dict[str, dict[str, Histogram]] = field(default_factory=dict)

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lengths": self.lengths.to_values(),
            "scores": {
                head: {name: histogram.to_values() for name, histogram in its.items()}
                for head, its in self.scores.items()
            },
        }

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Figures:
        """From JSON."""
        return cls(
            Histogram.of_values(values["lengths"]),
            {
                head: {name: Histogram.of_values(histogram) for name, histogram in its.items()}
                for head, its in values["scores"].items()
            },
        )

    def to_text(self) -> str:
        """A few hundred characters, the same for the same records."""
        return json.dumps(self.to_values(), separators=(",", ":"), ensure_ascii=False)


def total_figures(texts: Iterable[str]) -> Figures:
    """What parts tell, put together; a part that an earlier version of this package wrote tells nothing."""
    lengths_ = _Sum("length")
    scores: dict[str, dict[str, _Sum]] = {}
    for text in filter(None, texts):
        figures = Figures.of_values(json.loads(text))
        lengths_.add(figures.lengths)
        for head, its in figures.scores.items():
            sums = scores.setdefault(head, {})
            for name, histogram in its.items():
                sums.setdefault(name, _Sum(histogram.scale)).add(histogram)
    return Figures(
        lengths_.histogram(),
        {head: {name: total.histogram() for name, total in sums.items()} for head, sums in scores.items()},
    )
