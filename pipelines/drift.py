"""Two distributions in, how far they are apart and what that means out: the population stability index."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Verdict = Literal["steady", "unclear", "shifted", "changed"]
SHIFTED, CHANGED = 0.1, 0.25  # the thresholds of credit scoring, where the index comes from (Siddiqi 2006)
_SMOOTHING = 0.5  # added to each count, so that a category that one side lacks makes no infinity
_NORMAL_QUANTILE = 2.326  # 99 %

IN_WORDS: dict[Verdict, str] = {
    "steady": "about the same",
    "unclear": "too few records to tell a shift from chance",
    "shifted": "shifted, have a look",
    "changed": "changed, find out why before you rely on them",
}

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Drift:
    """How far a distribution has moved.

    Attributes:
        psi: population stability index.
        chance: what chance alone exceeds in one of a hundred cases with so few values.
        n_before, n_now: values on each side.
        verdict: ``steady`` below 0.1; from there ``unclear`` where chance does as much, else ``shifted``, from
            0.25 ``changed``.
    """

    psi: float
    chance: float
    n_before: int
    n_now: int
    verdict: Verdict

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "psi": round(self.psi, 4),
            "chance": round(self.chance, 4),
            "n_before": self.n_before,
            "n_now": self.n_now,
            "verdict": self.verdict,
            "in_words": IN_WORDS[self.verdict],
        }


def drift(before: Mapping[_Key, int], now: Mapping[_Key, int]) -> Drift | None:
    """Of counts by category; None where a side has none, or there is one category at all."""
    categories = [key for key in dict.fromkeys([*before, *now]) if before.get(key) or now.get(key)]
    n_before, n_now = sum(before.values()), sum(now.values())
    if not n_before or not n_now or len(categories) < 2:
        return None
    index = psi(before, now)
    chance = (1 / n_before + 1 / n_now) * chi_square_99(len(categories) - 1)
    return Drift(index, chance, n_before, n_now, _verdict(index, chance))


def psi(before: Mapping[_Key, int], now: Mapping[_Key, int]) -> float:
    """Σ (q - p) ln(q / p) over categories, p and q their smoothed shares before and now; 0 where they are equal."""
    categories = [key for key in dict.fromkeys([*before, *now]) if before.get(key) or now.get(key)]
    more = _SMOOTHING * len(categories)
    n_before, n_now = sum(before.values()) + more, sum(now.values()) + more
    index = 0.0
    for key in categories:
        p = (before.get(key, 0) + _SMOOTHING) / n_before
        q = (now.get(key, 0) + _SMOOTHING) / n_now
        index += (q - p) * math.log(q / p)
    return index


def chi_square_99(degrees: int) -> float:
    """About the value that a chi-square variable exceeds in one of a hundred cases (Wilson and Hilferty 1931).

    Without a shift the index of B categories and n and m values is distributed like (1/n + 1/m) times such a variable
    with B - 1 degrees of freedom (Yurdakul and Naranjo 2020).
    """
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + _NORMAL_QUANTILE * math.sqrt(spread)) ** 3


def _verdict(index: float, chance: float) -> Verdict:
    if index < SHIFTED:
        return "steady"
    if index <= chance:
        return "unclear"
    return "shifted" if index < CHANGED else "changed"
