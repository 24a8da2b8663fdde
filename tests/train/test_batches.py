"""Rows into steps and micro-batches: each row once an epoch, no step a small rest, no pass above its budget."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.tokens import Tokens
from tunesmith.train.batches import micro_batches, optimizer_steps, passes

lengths_of_rows = st.lists(st.integers(1, 400), min_size=1, max_size=80)


@given(lengths_of_rows, st.integers(1, 2000), st.integers(1, 3), st.integers(0, 5))
def test_every_row_is_visited_once_an_epoch(lengths: list[int], batch_tokens: int, epochs: int, seed: int) -> None:
    steps = optimizer_steps(lengths, batch_tokens, epochs, seed)
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(len(lengths)), epochs)
    assert all(steps)


@given(lengths_of_rows, st.integers(1, 2000), st.integers(0, 5))
def test_the_order_is_that_of_the_seed(lengths: list[int], batch_tokens: int, seed: int) -> None:
    assert optimizer_steps(lengths, batch_tokens, 1, seed) == optimizer_steps(lengths, batch_tokens, 1, seed)


def test_steps_are_even() -> None:
    steps = optimizer_steps([100] * 81, 800, 1, 0)
    assert sorted(map(len, steps)) == [8] * 9 + [9]


def test_a_fraction_of_an_epoch_visits_that_share() -> None:
    assert sum(map(len, optimizer_steps([10] * 100, 50, 0.3, 0))) == 30
    assert sum(map(len, optimizer_steps([10] * 100, 50, 1.5, 0))) == 150


@given(lengths_of_rows, st.integers(1, 900))
def test_micro_batches_hold_every_row_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(list(range(len(lengths))), lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(len(batch) == 1 or held <= budget for batch, held in zip(batches, tokens))
    assert max(tokens) - min(tokens) <= max(lengths)


def test_micro_batches_leave_no_small_rest() -> None:
    assert micro_batches(list(range(11)), [100] * 11, 1000) == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]


def test_what_all_rows_begin_with_counts_once_a_pass() -> None:
    """Eight rows of 900 tokens, of which 800 are the same: 8 passes of a row each would be three times the work."""
    rows = Tokens.__new__(Tokens)
    rows.ends = np.arange(1, 9) * 900
    rows.ids = np.tile(np.arange(900), 8) + 1000 * np.repeat(np.arange(8), 900) * np.tile(np.arange(900) >= 800, 8)
    rows.learnt = np.tile(np.arange(900) >= 850, 8)
    assert rows.beginning == 800
    assert [len(part) for part in passes(list(range(8)), rows, 1824)] == [8]
    assert [len(part) for part in passes(list(range(8)), rows, 1200)] == [4, 4]
    assert [len(part) for part in passes(list(range(8)), rows, 500)] == [1] * 8
