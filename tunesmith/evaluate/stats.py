"""How sure a figure is: resampled intervals, paired tests and the number of rows that would be enough.

Base and tuned model answer the same rows, so everything is paired: rows are drawn, and both models' parts of a row come
with it. Suffixes: N rows, R resamples, K columns of what is summed. All draws come from one fixed seed.

Intervals are percentile bootstrap intervals with two repairs for few rows. The plain ones are too short by a factor of
sqrt((N - 1) / N) and take normal for t quantiles: the tails are expanded as in Hesterberg, "What teachers should know
about the bootstrap" (2015). And 3 right answers of 3 have no spread at all: two pseudo-pairs are resampled with the
rows, in one of which only the base is best and in the other only the tuned model. For a proportion that is one success
and one failure more, for a difference of paired proportions the adjustment of Bonett and Price (2012). A figure without
a worst value has no pseudo-pairs; it gets bounds once there are so many rows that chance would rarely better them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from tunesmith.core.records import Interval

FloatArray = NDArray[np.float64]

RESAMPLES = 10_000
PSEUDO_ROWS = 2
_SEED = 20_240_229
_CHUNK_CELLS = 1 << 20  # rows times resamples that are in memory at once: 8 MiB an array


@dataclass(frozen=True)
class Estimate:
    """A figure of the real rows, and the same figure of each resample of rows and pseudo-rows."""

    value: float
    draws_R: FloatArray
    rows: int
    pseudo_rows: int


def paired(
    base_NK: FloatArray,
    tuned_NK: FloatArray,
    extremes: tuple[FloatArray, FloatArray] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[FloatArray, FloatArray]:
    """Column sums of both systems over the same resamples of the rows, (R, K) each.

    `extremes`, the parts of a row at its best and at its worst, (K,) each, adds the two pseudo-pairs.
    """
    if extremes:
        best_K, worst_K = extremes
        base_NK = np.vstack([base_NK, worst_K, best_K])
        tuned_NK = np.vstack([tuned_NK, best_K, worst_K])
    both_KN = np.hstack([base_NK, tuned_NK]).T.copy()
    rows, generator = both_KN.shape[1], np.random.default_rng(_SEED)
    sums = np.empty((resamples, len(both_KN)))
    for chunk in _chunks(resamples, rows):
        count = chunk.stop - chunk.start
        drawn = generator.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        times_RN = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        sums[chunk] = _weighted_sums(times_RN, both_KN)
    return sums[:, : base_NK.shape[1]], sums[:, base_NK.shape[1] :]


def interval(estimate: Estimate, level: float = 0.95) -> Interval:
    """The two-sided interval of an estimate, infinite where so few rows can bound nothing.

    It contains the value even where the pseudo-rows draw the resamples away from it.
    """
    tail, drawn = (1 - level) / 2, estimate.rows + estimate.pseudo_rows
    if not estimate.pseudo_rows and estimate.rows < fewest_rows(tail):
        return Interval(estimate.value, -math.inf, math.inf)
    expanded = scipy.special.ndtr(math.sqrt(drawn / (drawn - 1)) * scipy.special.stdtrit(drawn - 1, tail))
    low, high = np.quantile(estimate.draws_R, [expanded, 1 - expanded])
    return Interval(estimate.value, min(float(low), estimate.value), max(float(high), estimate.value))


def fewest_rows(tail: float) -> int:
    """From how many rows on "all of them are better" has less than this probability under chance alone."""
    return math.floor(-math.log2(tail)) + 1


def rows_needed(gain: Estimate, margin: float, alpha: float, power: float = 0.8) -> int | None:
    """How many rows in all would tell the gain from the margin, if gain and spread stay as they are.

    ((z_alpha + z_power) sd / |gain - margin|)^2, sd being the spread of one row that the bootstrap's standard error
    implies; rounded up to two digits. None when the gain is the margin: no number would do.
    """
    distance = abs(gain.value - margin)
    if distance < 1e-12:
        return None
    sd = float(np.std(gain.draws_R, ddof=1)) * math.sqrt(gain.rows)
    z = float(scipy.special.ndtri(1 - alpha) + scipy.special.ndtri(power))
    enough = max(math.ceil((z * sd / distance) ** 2), gain.rows + 1, fewest_rows(alpha))
    unit: int = 10 ** max(0, len(str(enough)) - 2)
    return -(-enough // unit) * unit


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p-value of the exact McNemar test: of the rows that changed, half would be better by chance."""
    return min(1.0, 2 * float(scipy.special.bdtr(min(better, worse), better + worse, 0.5)))


def permutation(
    base_NK: FloatArray, tuned_NK: FloatArray, ratio: Callable[[FloatArray], FloatArray], resamples: int = RESAMPLES
) -> float:
    """Two-sided p-value of the paired permutation test: how often base and tuned, swapped at random, differ as much.

    `ratio` turns sums (..., K) into figures (...). With R draws the p-value is (hits + 1) / (R + 1), never 0.
    """
    rows, generator = len(base_NK), np.random.default_rng(_SEED)
    base_K, tuned_K, difference_KN = base_NK.sum(0), tuned_NK.sum(0), (tuned_NK - base_NK).T.copy()
    # A tie is a hit, and sums in another order differ in their last bits.
    observed = abs(ratio(tuned_K) - ratio(base_K)) * (1 - 1e-9)
    hits = 0
    for chunk in _chunks(resamples, rows):
        swap_RN = generator.integers(2, size=(chunk.stop - chunk.start, rows), dtype=np.uint8)
        moved_RK = _weighted_sums(swap_RN, difference_KN)
        hits += int(np.count_nonzero(np.abs(ratio(tuned_K - moved_RK) - ratio(base_K + moved_RK)) >= observed))
    return (hits + 1) / (resamples + 1)


def _weighted_sums(weights_RN: NDArray[np.integer[Any]], parts_KN: FloatArray) -> FloatArray:
    """The matrix product without BLAS, whose threads can wait longer than they work on a busy machine."""
    sums_RK: FloatArray = np.einsum("rn,kn->rk", weights_RN.astype(np.float64), parts_KN)
    return sums_RK


def _chunks(resamples: int, rows: int) -> Iterator[slice]:
    size = max(1, _CHUNK_CELLS // max(1, rows))
    return (slice(start, min(start + size, resamples)) for start in range(0, resamples, size))
