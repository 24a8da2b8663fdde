"""Which rows meet in which optimizer step, decided before training starts from the rows' lengths and the seed alone."""

from __future__ import annotations

import heapq

import numpy as np

from tunesmith.models.tokens import Tokens


def optimizer_steps(lengths: list[int], batch_tokens: int, epochs: float, seed: int) -> list[list[int]]:
    """The rows of each optimizer step. Every epoch visits each row once in an order of its own; a step takes rows
    until it holds about `batch_tokens` tokens. A fraction of an epoch visits that share of the rows."""
    steps: list[list[int]] = []
    whole, part = divmod(epochs, 1)
    for epoch in range(int(whole) + (part > 0)):
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        rows = order if epoch < whole else order[: max(1, round(part * len(order)))]
        count = max(1, round(sum(lengths[i] for i in rows) / batch_tokens))
        steps += _even(rows, lengths, min(count, len(rows)))
    return steps


def _even(rows: list[int], lengths: list[int], count: int) -> list[list[int]]:
    """Cuts the rows, in order, into `count` runs of nearly equal tokens, so that no step is a small rest."""
    ends = np.cumsum([lengths[i] for i in rows])
    step_N = np.minimum(((ends - 1) * count) // ends[-1], count - 1)
    return [part.tolist() for part in np.split(np.array(rows), np.flatnonzero(np.diff(step_N)) + 1)]


def passes(rows: list[int], tokens: Tokens, most: int) -> list[list[int]]:
    """A step's rows in forward passes of at most `most` tokens; what all rows begin with is in each of them once."""
    return micro_batches(rows, tokens.own, max(1, most - tokens.beginning))


def micro_batches(rows: list[int], lengths: list[int], micro_batch_tokens: int) -> list[list[int]]:
    """Splits a step's rows into forward passes of at most `micro_batch_tokens` tokens (a longer row stands alone).

    They are as few as that allows, and nearly equal: a small rest is slow, and the largest decides the memory.
    """
    count = max(1, -(-sum(lengths[i] for i in rows) // micro_batch_tokens))
    while True:
        parts = [part for part in shares(rows, lengths, min(count, len(rows))) if part]
        if all(len(part) == 1 or sum(lengths[i] for i in part) <= micro_batch_tokens for part in parts):
            return parts
        count += 1


def shares(rows: list[int], lengths: list[int], count: int) -> list[list[int]]:
    """The rows in `count` parts, nearly equal in tokens: longest first, each to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(count)]
    least = [(0, part) for part in range(count)]  # a heap: who has fewest tokens comes first
    for row in sorted(rows, key=lambda i: -lengths[i]) if count > 1 else rows:
        tokens, part = least[0]
        parts[part].append(row)
        heapq.heapreplace(least, (tokens + lengths[row], part))
    return parts
