"""What a training run has come to, between two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tunesmith.train import checkpoint, memory
from tunesmith.train.master import State
from tunesmith.train.passes import StepResult


@dataclass
class Outcome:
    """What training came to: the best state's tensors and the step it stood at, and what the run did.

    `micro_batch_tokens` is the size in use at the end, `forecast_bytes` the peak that was expected (None if it was not
    measured), `token_bytes` what a pass was measured to take for each token. `warnings` holds what was noticed and did
    not end the run, by its kind.
    """

    planned_steps: int
    best: State
    micro_batch_tokens: int
    forecast_bytes: int | None = None
    token_bytes: float = 0.0
    best_step: int = 0
    best_validation_loss: float | None = None
    evaluations_without_gain: int = 0
    evaluated: int = -1  # the step after which validation rows were read last
    steps: int = 0
    stopped_early: bool = False
    tokens: int = 0
    learnt_tokens: int = 0
    seconds: float = 0.0
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def forecast(self) -> memory.Forecast | None:
        expected = self.forecast_bytes
        return memory.Forecast(self.micro_batch_tokens, expected, self.token_bytes) if expected else None

    @property
    def finished(self) -> bool:
        return self.stopped_early or self.steps == self.planned_steps

    @property
    def good(self) -> tuple[int, State] | None:
        """The best state and its step, once there is one that was learnt."""
        return (self.best_step, self.best) if self.best_step else None

    def add(self, done: StepResult, seconds: float) -> None:
        self.steps += 1
        self.tokens += done.tokens
        self.learnt_tokens += done.normaliser
        self.seconds += seconds

    def consider(self, state: Callable[[], State], validation_loss: float | None, patience: int | None = None) -> None:
        """Keeps the state if it is the best so far; without validation the newest is. A loss that is not a number is no
        better than any. Without a better one in `patience` evaluations the run is to stop."""
        best = math.inf if self.best_validation_loss is None else self.best_validation_loss
        if validation_loss is None or validation_loss < best:
            self.best = {}  # first: two of a large model might not fit
            self.best, self.best_step, self.best_validation_loss = state(), self.steps, validation_loss
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
            self.stopped_early = self.evaluations_without_gain == patience and self.steps < self.planned_steps


def outcome_of(saved: checkpoint.State) -> Outcome:
    """What the run had come to at this checkpoint."""
    return Outcome(best=checkpoint.part(saved, "best"), **saved.values["outcome"])
