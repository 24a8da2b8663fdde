"""Ratios of paired runs, with their doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
ENOUGH = 6  # pairs; of fewer, the lowest and the highest are all that a bootstrap can tell


@dataclass(frozen=True)
class Ratio:
    """The median over pairs, and the bounds of its 95 % interval by the percentile bootstrap over pairs. With fewer
    than ENOUGH pairs these are the lowest and the highest, which hold the median in 15 cases of 16 for five pairs."""

    median: float
    low: float
    high: float


def intervals(pairs: int) -> str:
    """What the bounds of a ratio are with so many pairs."""
    if pairs >= ENOUGH:
        return "95 % intervals of a bootstrap over pairs"
    return f"the lowest and the highest, which hold the median with {1 - 2 * 0.5**pairs:.0%}"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of two runs in the same pair, pair by pair: what both met (heat, neighbours) cancels."""
    ratios_P = np.asarray(above) / np.asarray(below)
    if len(ratios_P) < ENOUGH:
        return Ratio(float(np.median(ratios_P)), float(ratios_P.min()), float(ratios_P.max()))
    drawn_BP = np.random.default_rng(0).choice(ratios_P, (_RESAMPLES, len(ratios_P)))
    low, high = np.percentile(np.median(drawn_BP, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios_P)), float(low), float(high))
