"""Supervised tuning: raise the log-probability of the wanted answers.

An objective maps a packed micro-batch to a loss SUM and its counts. The loop divides the sums by the label tokens of
the whole optimizer step, so that the gradient does not depend on how the step was cut into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.kernels.apply import Kernels
from tunesmith.models.packed import Packed, logprobs


@dataclass(frozen=True)
class Loss:
    """Sum of the loss in nats over `tokens` label tokens, `correct` of which were the model's first choice."""

    sum: Tensor
    tokens: int
    correct: int


def loss(model: PreTrainedModel, batch: Packed, kernels: Kernels) -> Loss:
    logp_N, correct_N = logprobs(model, batch, kernels)
    return Loss(-logp_N.sum(), len(logp_N), int(correct_N.sum()))
