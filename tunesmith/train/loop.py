"""The training loop: one function from packed rows to the best adapter.

Loss. Every micro-batch contributes the SUM of its token losses, divided by the label tokens of the whole optimizer
step. Batch 8 x 1, 1 x 8, packed or not: same loss, same gradient.

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
from transformers import PreTrainedModel

from tunesmith.core.errors import UserError
from tunesmith.kernels.apply import Kernels
from tunesmith.models.packed import Packed, Tokens, pack
from tunesmith.train.batches import micro_batches, optimizer_steps
from tunesmith.train.objectives.sft import Loss

Objective = Callable[[PreTrainedModel, Packed, Kernels], Loss]
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

    def __init__(self, model: PreTrainedModel) -> None:
        self.working = [p for p in model.parameters() if p.requires_grad]
        self.exact = [p.detach().float().clone().requires_grad_() for p in self.working]

    def collect(self) -> None:
        """Adds the gradients of one backward pass to the exact ones: in bf16, sums over many passes would drift."""
        for exact, working in zip(self.exact, self.working):
            if working.grad is not None:
                exact.grad = working.grad.float() if exact.grad is None else exact.grad.add_(working.grad)
                working.grad = None

    def update(self, optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float) -> float:
        """One optimizer step on the exact parameters, rounded back into the model; returns the gradient's norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.exact, max_grad_norm))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for exact, working in zip(self.exact, self.working):
                working.copy_(exact)
        return norm

    def state(self, model: PreTrainedModel) -> State:
        """The trainable tensors by name, in fp32."""
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        return {name: exact.detach().clone() for name, exact in zip(names, self.exact)}


def train(
    model: PreTrainedModel,
    objective: Objective,
    kernels: Kernels,
    rows: Tokens,
    validation: Tokens,
    settings: Settings,
    log: Log,
    trunk: Callable[[PreTrainedModel], PreTrainedModel],
) -> Outcome:
    """Trains the parameters of `model` that require gradients; `trunk` gives the causal model inside a wrapper.

    `log` receives one dict per optimizer step and per evaluation. Raises UserError when the loss is not finite.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = accelerator.prepare(model)
    inner, master = trunk(model), Master(model)
    optimizer = torch.optim.AdamW(master.exact, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = optimizer_steps(rows.lengths, settings.batch_tokens, settings.epochs, settings.seed)
    checks = {round(len(steps) * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    outcome = Outcome(len(steps), master.state(model))

    def backward(loss: Tensor) -> None:
        accelerator.backward(loss)
        master.collect()

    if checks:
        outcome.best_validation_loss = _validate(inner, objective, kernels, validation, settings, log, 0)
    for number, step_rows in enumerate(steps, 1):
        started = time.perf_counter()
        rate = settings.learning_rate * schedule(number, len(steps), settings.warmup)
        done = step(inner, objective, kernels, rows, step_rows, settings.micro_batch_tokens, backward)
        norm = master.update(optimizer, rate, settings.max_grad_norm)
        _require_finite({"loss": done.loss, "gradient": norm}, number, rate)
        seconds = time.perf_counter() - started
        outcome.steps, outcome.tokens = number, outcome.tokens + done.tokens
        outcome.learnt_tokens += done.learnt_tokens
        outcome.step_seconds.append(seconds)
        log(_entry(number, len(steps), done, rate, norm, seconds))
        if number in checks:
            loss = _validate(inner, objective, kernels, validation, settings, log, number)
            _require_finite({"validation loss": loss}, number, rate)
            outcome.consider(master.state(model), loss)
            if outcome.evaluations_without_gain == settings.patience and number < len(steps):
                outcome.stopped_early = True
                break
    if not checks:
        outcome.consider(master.state(model), None)
    return outcome


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats and share of first choices over the label tokens of one optimizer step."""

    loss: float
    accuracy: float
    tokens: int
    learnt_tokens: int


def step(
    model: PreTrainedModel,
    objective: Objective,
    kernels: Kernels,
    rows: Tokens,
    step_rows: list[int],
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None],
) -> StepResult:
    """Forward and backward over one optimizer step's rows; gradients are those of the mean loss per label token."""
    label_tokens = rows.learnt_tokens(step_rows)
    loss_sum, correct, tokens = 0.0, 0, 0
    for batch_rows in micro_batches(step_rows, rows.lengths, micro_batch_tokens):
        batch = pack(rows, batch_rows, model.device)
        part = objective(model, batch, kernels)
        backward(part.sum / label_tokens)
        loss_sum += float(part.sum.detach())
        correct += part.correct
        tokens += sum(batch.lengths)
    return StepResult(loss_sum / label_tokens, correct / label_tokens, tokens, label_tokens)


def schedule(number: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at step `number` of `steps` (from 1): a linear rise, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if number <= rise:
        return number / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - rise) / max(1, steps - rise)))


@torch.no_grad()
def _validate(
    model: PreTrainedModel,
    objective: Objective,
    kernels: Kernels,
    validation: Tokens,
    settings: Settings,
    log: Log,
    number: int,
) -> float:
    batches = micro_batches(list(range(len(validation))), validation.lengths, settings.micro_batch_tokens)
    parts = [objective(model, pack(validation, batch, model.device), kernels) for batch in batches]
    tokens = sum(part.tokens for part in parts)
    loss = sum(float(part.sum) for part in parts) / tokens
    log({"step": number, "validation_loss": loss, "validation_token_accuracy": sum(p.correct for p in parts) / tokens})
    return loss


def _entry(number: int, of: int, done: StepResult, rate: float, norm: float, seconds: float) -> dict[str, Any]:
    return {
        "step": number,
        "of": of,
        "loss": done.loss,
        "token_accuracy": done.accuracy,
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
