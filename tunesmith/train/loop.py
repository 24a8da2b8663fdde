"""The training loop: one function from packed rows to the best adapter.

Loss. Every micro-batch contributes the SUM of its losses; the summed gradient is divided once by the normaliser of the
whole optimizer step. Batch 8 x 1, 1 x 8, packed or not: same loss, same gradient.

Precision. With bf16 weights the adapter computes in bf16 too, but an fp32 master copy takes the optimizer's updates: at
a learning rate of 1e-4, bf16 parameters would round most of them away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.models.packed import Packed, Scorer, Tokens, pack
from tunesmith.train.batches import micro_batches, optimizer_steps
from tunesmith.train.objectives.sft import Loss

Objective = Callable[[Scorer, Packed], Loss]
State = dict[str, Tensor]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """The plan's decisions that the loop reads. Tokens are per optimizer step and per forward pass."""

    learning_rate: float
    epochs: float
    batch_tokens: int
    micro_batch_tokens: int
    evaluations: int
    patience: int | None
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int


@dataclass
class Outcome:
    """What training came to: the best adapter's tensors and the step it stood at, and what the run did."""

    planned_steps: int
    best: State
    best_step: int = 0
    best_validation_loss: float | None = None
    evaluations_without_gain: int = 0
    steps: int = 0
    stopped_early: bool = False
    tokens: int = 0
    learnt_tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / sum(self.step_seconds)

    def consider(self, state: State, validation_loss: float | None) -> None:
        """Keeps this state if it is the best so far; without validation the newest is."""
        best = self.best_validation_loss
        if validation_loss is None or best is None or validation_loss < best:
            self.best, self.best_step, self.best_validation_loss = state, self.steps, validation_loss
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1


class Master:
    """fp32 copies of the trainable parameters: the optimizer works on them, the model computes with their rounding."""

    def __init__(self, scorer: Scorer) -> None:
        named = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
        self.names, self.working = list(named), list(named.values())
        self.exact = [p.detach().float().clone().requires_grad_() for p in self.working]

    def collect(self) -> None:
        """Adds the gradients of one backward pass to the exact ones: in bf16, sums over many passes would drift."""
        for exact, working in zip(self.exact, self.working):
            if working.grad is not None:
                exact.grad = working.grad.float() if exact.grad is None else exact.grad.add_(working.grad)
                working.grad = None

    def update(self, optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float, normaliser: int) -> float:
        """One optimizer step on the exact parameters, rounded back into the model; returns the gradient's norm."""
        for exact in self.exact:
            if exact.grad is not None:
                exact.grad /= normaliser
        norm = float(torch.nn.utils.clip_grad_norm_(self.exact, max_grad_norm))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for exact, working in zip(self.exact, self.working):
                working.copy_(exact)
        return norm

    def state(self) -> State:
        """The trainable tensors by the model's names, in fp32."""
        return {name: exact.detach().clone() for name, exact in zip(self.names, self.exact)}


def train(
    scorer: Scorer, objective: Objective, rows: Tokens, validation: Tokens, settings: Settings, log: Log
) -> Outcome:
    """Trains the parameters of `scorer` that require gradients.

    `log` receives one dict per optimizer step and per evaluation. Raises UserError when the loss is not finite.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    scorer = accelerator.prepare(scorer)
    master = Master(scorer)
    optimizer = torch.optim.AdamW(master.exact, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = optimizer_steps(rows.lengths, settings.batch_tokens, settings.epochs, settings.seed)
    checks = {round(len(steps) * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    outcome = Outcome(len(steps), master.state())

    def backward(loss: Tensor) -> None:
        accelerator.backward(loss)
        master.collect()

    if checks:
        outcome.best_validation_loss = _validate(scorer, objective, validation, settings, log, 0)
    for number, step_rows in enumerate(steps, 1):
        started = time.perf_counter()
        rate = settings.learning_rate * schedule(number, len(steps), settings.warmup)
        done = step(scorer, objective, rows, step_rows, settings.micro_batch_tokens, backward)
        norm = master.update(optimizer, rate, settings.max_grad_norm, done.normaliser)
        _require_finite({"loss": done.loss, "gradient": norm}, number, rate)
        seconds = time.perf_counter() - started
        outcome.steps, outcome.tokens = number, outcome.tokens + done.tokens
        outcome.learnt_tokens += done.normaliser
        outcome.step_seconds.append(seconds)
        log(_entry(number, len(steps), done, rate, norm, seconds))
        if number in checks:
            loss = _validate(scorer, objective, validation, settings, log, number)
            _require_finite({"validation loss": loss}, number, rate)
            outcome.consider(master.state(), loss)
            if outcome.evaluations_without_gain == settings.patience and number < len(steps):
                outcome.stopped_early = True
                break
    if not checks:
        outcome.consider(master.state(), None)
    return outcome


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats and mean metrics over one optimizer step."""

    loss: float
    metrics: dict[str, float]
    tokens: int
    normaliser: int


def step(
    scorer: Scorer,
    objective: Objective,
    rows: Tokens,
    step_rows: list[int],
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None],
) -> StepResult:
    """Forward and backward over one optimizer step's rows; gradients are those of the summed loss."""
    loss_sum, normaliser, tokens, sums = 0.0, 0, 0, dict[str, float]()
    for batch_rows in micro_batches(step_rows, rows.lengths, micro_batch_tokens):
        batch = pack(rows, batch_rows, scorer.causal.device)
        part = objective(scorer, batch)
        backward(part.sum)
        loss_sum += float(part.sum.detach())
        normaliser += part.normaliser
        tokens += sum(batch.lengths)
        sums = {name: sums.get(name, 0.0) + value for name, value in part.metrics.items()}
    metrics = {name: value / normaliser for name, value in sums.items()}
    return StepResult(loss_sum / normaliser, metrics, tokens, normaliser)


def schedule(number: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at step `number` of `steps` (from 1): a linear rise, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if number <= rise:
        return number / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - rise) / max(1, steps - rise)))


@torch.no_grad()
def _validate(
    scorer: Scorer, objective: Objective, validation: Tokens, settings: Settings, log: Log, number: int
) -> float:
    batches = micro_batches(list(range(len(validation))), validation.lengths, settings.micro_batch_tokens)
    parts = [objective(scorer, pack(validation, batch, scorer.causal.device)) for batch in batches]
    normaliser = sum(part.normaliser for part in parts)
    loss = sum(float(part.sum) for part in parts) / normaliser
    metrics = {f"validation_{m}": sum(p.metrics[m] for p in parts) / normaliser for m in parts[0].metrics}
    log({"step": number, "validation_loss": loss, **metrics})
    return loss


def _entry(number: int, of: int, done: StepResult, rate: float, norm: float, seconds: float) -> dict[str, Any]:
    return {
        "step": number,
        "of": of,
        "loss": done.loss,
        **done.metrics,
        "learning_rate": rate,
        "gradient_norm": norm,
        "tokens": done.tokens,
        "tokens_per_second": done.tokens / seconds,
        "step_seconds": seconds,
    }


def _require_finite(figures: dict[str, float], number: int, rate: float) -> None:
    broken = [f"the {name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"{broken[0]} at step {number}",
            f"training diverged at a learning rate of {rate:g}, or a row holds broken text",
            "set train.learning_rate to a third, or train.precision to fp32, and run again",
        )
