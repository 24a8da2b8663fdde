"""Supervised tuning and continued pretraining: raise the log-probability of the learnt tokens.

An objective maps a packed micro-batch to a loss SUM, its normaliser and its metrics. The loop adds gradients of sums
over the whole optimizer step and divides them once by the sum of the normalisers, so that the result depends neither on
how the step was cut into micro-batches nor on how these were spread over processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tunesmith.models.packed import Packed, Scorer


@dataclass(frozen=True)
class Loss:
    """Sum of the loss in nats over `normaliser` label tokens; the metrics are sums over them too."""

    sum: Tensor
    normaliser: int
    metrics: dict[str, float]


def loss(scorer: Scorer, batch: Packed) -> Loss:
    logp_N, correct_N = scorer(batch)
    return Loss(-logp_N.sum(), len(logp_N), {"token_accuracy": float(correct_N.sum())})
