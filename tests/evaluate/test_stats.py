"""Statistics against known values and against what they promise, on data whose truth is known."""

import math

import numpy as np
import pytest

from tunesmith.evaluate import stats
from tunesmith.evaluate.stats import Estimate

BEST, WORST = np.ones(2), np.array([0.0, 1.0])


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def estimates(base, tuned, resamples=1000):
    """Tuned figure and gain of a 0/1 metric."""
    base_N2, tuned_N2 = (np.column_stack([np.asarray(x, float), np.ones(len(x))]) for x in (base, tuned))
    base_R2, tuned_R2 = stats.paired(base_N2, tuned_N2, (BEST, WORST), resamples)
    return (
        Estimate(float(np.mean(tuned)), mean(tuned_R2), len(tuned), 2),
        Estimate(float(np.mean(tuned) - np.mean(base)), mean(tuned_R2) - mean(base_R2), len(tuned), 2),
    )


def correlated(rng, rows, better, worse):
    """Base and tuned right or wrong on each row; they differ on a share `better` + `worse` of the rows."""
    u, agreed = rng.random(rows), rng.random(rows) < 0.5
    return np.where(u < better, False, agreed | (u > 1 - worse)), np.where(u < better, True, agreed & (u <= 1 - worse))


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_intervals_of_a_proportion_cover_as_often_as_they_say(p):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        right = rng.random(100) < p
        found = stats.interval(estimates(right, right, 600)[0])
        covered += found.low <= p <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_intervals_of_a_gain_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = stats.interval(estimates(*correlated(rng, 100, 0.25, 0.1), 600)[1])
        covered += found.low <= 0.15 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_intervals_of_a_ratio_without_pseudo_rows_cover():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(2, 40, 60).astype(float)
        pairs = np.column_stack([tokens * rng.gamma(4, 0.25, 60), tokens])
        drawn, _ = stats.paired(pairs, pairs, resamples=600)
        found = stats.interval(Estimate(float(mean(pairs.sum(0))), mean(drawn), 60, 0))
        covered += found.low <= 1 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_pairing_counts():
    rng = np.random.default_rng(0)
    base = rng.random(200) < 0.5
    tuned = base.copy()
    tuned[:10] = True
    shuffled = rng.permutation(base)
    gain, unrelated = estimates(base, tuned)[1], estimates(shuffled, tuned)[1]
    assert gain.value == unrelated.value > 0
    assert np.std(gain.draws_R) < np.std(unrelated.draws_R) / 2


def test_a_perfect_score_on_few_rows_is_no_certainty():
    low = [stats.interval(estimates(np.zeros(n), np.ones(n))[0]).low for n in (1, 3, 10, 100)]
    assert low == sorted(low)
    assert low[1] < 0.5
    assert low[3] > 0.9
    won = [stats.interval(estimates(np.zeros(n), np.ones(n))[1], 0.9) for n in (3, 4, 5)]
    assert [found.low > 0 for found in won] == [False, False, True]  # the exact sign test: 1/8, 1/16, 1/32
    assert all(found.high == found.value == 1 for found in won)


def test_the_tails_of_few_rows_are_wider():
    draws = np.random.default_rng(0).normal(size=10_000)
    few, many = (stats.interval(Estimate(0.0, draws, rows, 0)) for rows in (8, 4000))
    assert many.high == pytest.approx(1.96, abs=0.06)
    assert few.high == pytest.approx(math.sqrt(8 / 7) * 2.365, abs=0.25)


def test_too_few_rows_without_pseudo_rows_bound_nothing():
    estimate = Estimate(1.0, np.ones(100), 4, 0)
    assert stats.interval(estimate, 0.9) == stats.Interval(1.0, -math.inf, math.inf)
    assert stats.interval(Estimate(1.0, np.ones(100), 5, 0), 0.9).low == 1
    assert [stats.fewest_rows(tail) for tail in (0.26, 0.25, 0.05, 0.025)] == [2, 3, 5, 6]


def test_an_interval_contains_its_value():
    assert stats.interval(Estimate(5.0, np.linspace(0, 1, 99), 50, 2)).high == 5
    assert stats.interval(Estimate(-5.0, np.linspace(0, 1, 99), 50, 2)).low == -5


def test_draws_are_the_same_each_time_and_in_any_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    base, tuned = rng.random((300, 4)), rng.random((300, 4))
    first = stats.paired(base, tuned, resamples=50)
    monkeypatch.setattr(stats, "_CHUNK_CELLS", 1000)
    second = stats.paired(base, tuned, resamples=50)
    np.testing.assert_allclose(first, second, rtol=1e-12)
    _, alone = stats.paired(base[:, :1], tuned[:, :1], resamples=50)
    np.testing.assert_allclose(alone[:, 0], first[1][:, 0], rtol=1e-12)


def test_resampled_sums_are_those_of_drawn_rows():
    rows = np.eye(6)
    drawn, same = stats.paired(rows, rows, resamples=4000)
    assert (drawn.sum(1) == 6).all()
    assert (drawn == same).all()
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(0), 5 / 6, atol=0.08)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (10, 2), (7, 7), (150, 86)])
def test_mcnemar(better, worse):
    rows = better + worse
    tail = sum(math.comb(rows, k) for k in range(min(better, worse) + 1)) / 2**rows
    for p_value in (stats.mcnemar(better, worse), stats.mcnemar(worse, better)):
        assert p_value == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_mcnemar_of_known_tables():
    assert stats.mcnemar(5, 0) == 0.0625
    assert stats.mcnemar(10, 2) == pytest.approx(0.03857421875)


def test_permutation_of_binary_rows_is_mcnemar():
    rng = np.random.default_rng(3)
    base, tuned = correlated(rng, 80, 0.25, 0.12)
    pairs = [np.column_stack([x.astype(float), np.ones(80)]) for x in (base, tuned)]
    exact = stats.mcnemar(int((tuned & ~base).sum()), int((base & ~tuned).sum()))
    assert stats.permutation(*pairs, mean) == pytest.approx(exact, abs=0.02)
    assert 0.001 < exact < 0.5


def test_permutation_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        tokens = rng.integers(2, 40, 30).astype(float)
        pairs = [np.column_stack([tokens * rng.gamma(2, 0.5, 30), tokens]) for _ in range(2)]
        found.append(stats.permutation(*pairs, mean, resamples=200))
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_permutation_is_never_zero_and_ties_count():
    ones, zeros = (np.column_stack([np.full(50, x), np.ones(50)]) for x in (1.0, 0.0))
    assert stats.permutation(zeros, ones, mean, resamples=999) == 1 / 1000
    assert stats.permutation(ones, ones, mean, resamples=999) == 1
    assert stats.permutation(zeros[:4], ones[:4], mean, resamples=999) == pytest.approx(2 / 16, abs=0.03)


@pytest.mark.parametrize(("better", "worse", "margin"), [(0.2, 0.1, 0.0), (0.1, 0.1, -0.1), (0.05, 0.2, 0.0)])
def test_that_many_rows_decide(better, worse, margin):
    rng = np.random.default_rng(1)
    rows = 40  # exactly the shares of the population
    base = np.r_[np.zeros(round(better * rows)), np.ones(round(worse * rows))]
    tuned, agreed = 1 - base, np.arange(rows - len(base)) % 2
    gain = estimates(np.r_[base, agreed], np.r_[tuned, agreed])[1]
    needed = stats.rows_needed(gain, margin, 0.05)
    assert needed is not None
    decided = 0
    for _ in range(200):
        found = stats.interval(estimates(*correlated(rng, needed, better, worse), 400)[1], 0.9)
        decided += found.low > margin if better - worse > margin else found.high < margin
    assert 0.68 <= decided / 200 <= 0.92  # 0.8 was asked for


def test_rows_needed_has_bounds():
    won = estimates(np.zeros(3), np.ones(3))[1]
    assert stats.rows_needed(won, 0.0, 0.05) == 5
    assert stats.rows_needed(won, 1.0, 0.05) is None
    assert stats.rows_needed(Estimate(0.55 - 0.5, won.draws_R, 20, 2), 0.05, 0.05) is None
    assert stats.rows_needed(Estimate(0.1, np.array([0.0, 0.2]), 1000, 0), 0.0999, 0.05) == 13_000_000_000
