"""The watch on series of figures: each fault is found and says what to change; noise, spikes and slow runs are not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tunesmith.train import watch

COURSE = watch.Course(learning_rate=1e-3, epochs=3.0, steps=300, warmup_steps=15, patience=None)


def steps(losses: Sequence[float], first: int = 1) -> list[watch.Entry]:
    return [{"step": n, "loss": float(loss), "gradient_norm": 1.0} for n, loss in enumerate(losses, first)]


def found(entries: Sequence[watch.Entry], course: watch.Course = COURSE) -> list[watch.Fault]:
    """All faults of a run. What was seen goes through JSON after every entry, as it does through a checkpoint."""
    seen, faults = watch.Seen(), []
    for entry in entries:
        faults += watch.faults(seen, entry, course)
        seen = watch.Seen(**json.loads(json.dumps(vars(seen))))
    return faults


def kinds(entries: Sequence[watch.Entry], course: watch.Course = COURSE) -> set[str]:
    return {fault.kind for fault in found(entries, course)}


def good(seed: int, count: int = 300, noise: float = 0.3) -> list[float]:
    """A loss that falls from 2 to 1, with the noise of small batches."""
    draw = np.random.default_rng(seed)
    return [1 + math.exp(-n / 60) + noise * draw.standard_normal() for n in range(count)]


@pytest.mark.parametrize("figures", [
    {"loss": math.nan, "gradient_norm": 1.0}, {"loss": 1.0, "gradient_norm": math.inf},
    {"validation_loss": math.nan}, {"first_rows_loss": math.nan}], ids=str)  # fmt: skip
def test_what_is_not_a_number_is_named(figures: dict[str, float]) -> None:
    [fault] = found([{"step": 7, **figures}])
    assert "at step 7" in fault.what
    assert "0.001" in fault.why
    assert "set train.learning_rate to 0.0003" in fault.next


def test_good_runs_are_left_alone() -> None:
    """Also with noise as large as the fall, with heavy tails, and where the loss ends near zero."""
    for seed in range(20):
        assert kinds(steps(good(seed, noise=0.1 + 0.02 * seed))) == set()
        tails = 0.2 * np.random.default_rng(seed).standard_t(2, 300)
        assert kinds(steps(np.abs(np.array(good(seed)) + tails))) == set()
        learnt = np.random.default_rng(seed).exponential(np.geomspace(2, 0.01, 300))
        assert kinds(steps(learnt)) == set()


def test_an_easy_first_batch_is_no_measure_for_the_rest() -> None:
    assert kinds(steps([0.2, *good(1, noise=0.6)])) == set()


def test_a_spike_that_heals_is_no_divergence() -> None:
    losses = good(2)
    losses[150:180] = [loss + 4 for loss in losses[150:180]]
    assert kinds(steps(losses)) == set()


@pytest.mark.parametrize("after", ["a level", "a climb", "wild"])
def test_divergence(after: str) -> None:
    draw, count = np.random.default_rng(3), 80
    course = {
        "a level": np.full(count, 6.0),
        "a climb": np.linspace(1, 10, count),
        "wild": 8 + 3 * draw.standard_normal(count),
    }[after]
    fault = found(steps([*good(3)[:200], *course]))[0]
    assert fault.kind == "divergence"
    assert "after 0.999 up to step 163" in fault.what
    assert "learning_rate to 0.0003" in fault.next


def test_divergence_from_the_first_step_on() -> None:
    """The loss has no lower level to be compared with but that of the untrained model, on the same rows."""
    wild = [2.0, *np.geomspace(1e5, 1e3, 39)]
    assert kinds([*steps(wild), {"step": 40, "first_rows_loss": 900.0}]) == {"divergence"}
    assert kinds([*steps(good(4)[:40]), {"step": 40, "first_rows_loss": good(4)[0] + 0.4}]) == set()


def validations(*figures: tuple[int, float, float], first_loss: float = 2.0) -> list[watch.Entry]:
    """Evaluations: (step, validation loss, training loss of the steps before it)."""
    entries: list[watch.Entry] = [{"step": 0, "validation_loss": figures[0][1]}]
    at = 0
    for step, validation_loss, training_loss in figures[1:]:
        losses = [first_loss if n == 1 else training_loss for n in range(at + 1, step + 1)]
        entries += [*steps(losses, at + 1), {"step": step, "validation_loss": validation_loss}]
        at = step
    return entries


def test_validation_that_soars_with_training_is_divergence() -> None:
    assert kinds(validations((0, 2.0, 0), (8, 9.0, 11.0))) == {"divergence"}


RISING = [(0, 2.0, 0.0), (10, 1.0, 1.5), (20, 0.8, 0.9), (30, 1.2, 0.3)]


def test_overfitting_is_told_with_the_epochs_that_were_enough() -> None:
    fault = found(validations(*RISING))[0]
    assert (fault.kind, fault.mild) == ("overfitting", True)
    assert "from 0.800 at step 20 to 1.200 at step 30" in fault.what
    assert "train.epochs to 0.2" in fault.next  # 20 of 300 steps of 3 epochs


def test_overfitting_is_neither_a_small_rise_nor_a_rise_of_both() -> None:
    assert kinds(validations(*RISING[:3], (30, 0.84, 0.3))) == set()
    assert kinds(validations(*RISING[:3], (30, 1.2, 1.0))) == set()


def test_a_run_that_gains_nothing_on_validation_rows_says_so_at_its_end() -> None:
    course = watch.Course(1e-3, 3.0, 30, 2, None)
    worse = [(0, 1.0, 0.0), (15, 1.1, 1.1), (30, 1.05, 1.0)]
    seen = watch.Seen()
    told = [[fault.kind for fault in watch.faults(seen, entry, course)] for entry in validations(*worse)]
    assert told[-1] == ["no gain"]
    assert "no gain" not in [kind for kinds in told[:-1] for kind in kinds]
    assert kinds(validations((0, 1.0, 0.0), (15, 0.9, 1.1), (30, 0.95, 1.0)), course) == set()


def test_rates_that_are_told_suit_the_method() -> None:
    assert "to 0.001," in watch.Course(1e30, 1.0, 100, 5, None).lower
    few = watch.Course(1e-3, 1.0, 100, 5, None, watch.OF_FEW)
    assert "to 0.01," in few.higher


def test_with_patience_the_run_ends_by_that_and_says_so() -> None:
    course = watch.Course(1e-3, 3.0, 300, 15, patience=1)
    seen = watch.Seen()
    faults = [fault for entry in validations(*RISING) for fault in watch.faults(seen, entry, course)]
    assert [fault.kind for fault in faults] == ["overfitting"]
    assert faults[0].next == "set train.epochs to 0.2, to save the rest of the time"
    told = watch.early_stop(seen, 30, course)
    assert "stopped early after step 30 of 300" in told
    assert "in 1 evaluation no" in told
    assert "by heart" in told
    assert "kept is the state of step 20" in told
    assert "after step 4 of 300: no validation loss was a number" in watch.early_stop(watch.Seen(), 4, course)


def first_hundred(losses: Sequence[float], again: float) -> list[watch.Entry]:
    return [*steps(losses[:100]), {"step": 100, "first_rows_loss": again}]


def test_a_loss_that_does_not_fall() -> None:
    flat = 2 + 0.3 * np.random.default_rng(0).standard_normal(100)
    [fault] = found(first_hundred(flat, flat[0] - 1e-6))
    assert fault.kind == "no fall"
    assert "first 100 steps" in fault.what
    assert "too low" in found(first_hundred(flat, flat[0]), replace(COURSE, learning_rate=1e-6))[0].why
    assert "too high" in fault.why
    assert "set train.learning_rate to 0.0003" in fault.next


def test_a_slow_run_is_not_blamed_for_its_noise() -> None:
    """It learns half a per cent in a hundred steps, which no trend could show, and the first step's rows do."""
    for seed in range(50):
        draw = np.random.default_rng(seed)
        losses = 2 - 0.01 * np.arange(100) / 100 + 0.3 * draw.standard_normal(100)
        assert kinds(first_hundred(losses, losses[0] * 0.995)) == set()


def test_a_falling_trend_is_enough() -> None:
    assert kinds(first_hundred(good(5), good(5)[0])) == set()


def test_a_model_that_begins_near_zero_is_not_blamed() -> None:
    flat = 0.05 + 0.01 * np.random.default_rng(1).standard_normal(100)
    assert kinds(first_hundred(flat, flat[0])) == set()


def test_the_fall_is_judged_after_the_warm_up() -> None:
    assert COURSE.first_rows_again == (40, 100)
    slow = watch.Course(1e-3, 1.0, 5000, 250, None)
    assert slow.first_rows_again == (40, 250)
    short = watch.Course(1e-3, 1.0, 30, 2, None)
    assert short.first_rows_again == (30, 100)  # at its end, since a short run may diverge too
    flat = 2 + 0.3 * np.random.default_rng(0).standard_normal(250)
    entries = [*first_hundred(flat, flat[0]), *steps(flat[100:], 101), {"step": 250, "first_rows_loss": flat[0]}]
    [fault] = found(entries, slow)
    assert "first 250 steps" in fault.what


def test_answers_of_nothing() -> None:
    def evaluations(*shares: float) -> list[dict[str, Any]]:
        return [{"step": 10 * i, "validation_loss": 1.0, "validation_end_only": s} for i, s in enumerate(shares)]

    [fault] = found(evaluations(0.02, 0.1, 0.75))
    assert "75%" in fault.what
    assert "2% before training" in fault.what
    assert "empty or blank answers" in fault.why
    assert "learning_rate" in fault.next
    assert kinds(evaluations(0.9, 0.95, 0.6)) == set()  # the base did so already
    assert kinds(evaluations(0.0, 0.5)) == set()


def test_rows_of_nothing_are_refused_above_a_tenth() -> None:
    assert watch.only_end_tokens(10, 100) == []
    [fault] = watch.only_end_tokens(11, 100)
    assert "11 of 100 training rows" in fault.what
    assert "data.sources" in fault.next


def test_a_message_names_a_rate_that_is_worth_trying() -> None:
    assert "to 0.0001" in watch.Course(1e-12, 1.0, 100, 5, None).higher
