"""The training loop: one function from packed rows to the best state of what trains.

Loss. Every micro-batch contributes the SUM of its losses; the summed gradient is divided once by the normaliser of the
whole optimizer step. Batch 8 x 1, 1 x 8, packed or not: same loss, same gradient.

Precision. With bf16 weights the trained parameters compute in bf16 too, but an fp32 master copy takes the optimizer's
updates: at a learning rate of 1e-4, bf16 parameters would round most of them away.

Life. All that changes from step to step is in `Run`, which a checkpoint holds and gives back exactly. The order of the
rows is known before the first step, so a run that was killed goes on to the very weights it would have come to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.console import say
from tunesmith.core.errors import ModelError
from tunesmith.models.packed import Packed, Scorer, Tokens, pack
from tunesmith.train import answers, checkpoint, watch
from tunesmith.train.batches import optimizer_steps
from tunesmith.train.objectives.sft import Loss
from tunesmith.train.processes import ALONE, Processes, join, whole

Objective = Callable[[Scorer, Packed], Loss]
State = dict[str, Tensor]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """The plan's decisions that the loop reads. Tokens are per optimizer step and per forward pass.

    `watch` says whether a fault ends the run (`stop`) or is told once (`warn`). `end_tokens` are those that end an
    answer; without any, nobody looks whether the model came to answer with nothing.
    """

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
    sharding: str = "none"
    watch: str = "stop"
    end_tokens: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What training came to: the best state's tensors and the step it stood at, and what the run did.

    `warnings` holds what the watch found and did not end the run for, by its kind.
    """

    planned_steps: int
    best: State
    best_step: int = 0
    best_validation_loss: float | None = None
    evaluations_without_gain: int = 0
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
    def finished(self) -> bool:
        return self.stopped_early or self.steps == self.planned_steps

    def add(self, done: StepResult, seconds: float) -> None:
        self.steps += 1
        self.tokens += done.tokens
        self.learnt_tokens += done.normaliser
        self.seconds += seconds

    def consider(self, state: State, validation_loss: float | None, patience: int | None = None) -> None:
        """Keeps this state if it is the best so far; without validation the newest is. Without a better one in
        `patience` evaluations the run is to stop."""
        best = self.best_validation_loss
        if validation_loss is None or best is None or validation_loss < best:
            self.best, self.best_step, self.best_validation_loss = state, self.steps, validation_loss
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
            self.stopped_early = self.evaluations_without_gain == patience and self.steps < self.planned_steps


class Master:
    """fp32 copies of the trainable parameters: the optimizer works on them, the model computes with their rounding."""

    def __init__(self, scorer: Scorer, processes: Processes = ALONE) -> None:
        self.processes = processes
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
        """One optimizer step on the exact parameters, rounded back into the model; returns the gradient's norm. A
        gradient that is not finite changes nothing."""
        for exact in self.exact:
            if exact.grad is not None:
                exact.grad /= normaliser
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.exact, max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        self.round()
        return norm

    @torch.no_grad()
    def round(self) -> None:
        """Gives the model the exact parameters in its own precision."""
        for exact, working in zip(self.exact, self.working):
            working.copy_(exact)

    def state(self) -> State:
        """A copy of the trainable tensors by the model's names, in fp32, outside the accelerator's memory; sharded,
        only in the first process."""
        held = {name: exact.detach() for name, exact in zip(self.names, self.exact)}
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.processes.whole(held).items()}

    @torch.no_grad()
    def load(self, state: State) -> None:
        if state.keys() != set(self.names):
            raise ModelError(
                "the checkpoint holds other parameters than those that train",
                "it was written by another version of tunesmith or of a library",
                "tunesmith run --fresh starts the step over",
            )
        for name, exact in zip(self.names, self.exact):
            exact.copy_(self.processes.divide(state[name], exact))
        self.round()


class Run:
    """A training run between two optimizer steps: all that changes from step to step, and nothing else."""

    def __init__(self, scorer: Scorer, settings: Settings, planned_steps: int, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.master = Master(scorer, processes)
        self.optimizer = torch.optim.AdamW(
            self.master.exact, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.outcome = Outcome(planned_steps, self.master.state())
        self.seen = watch.Seen()
        self.micro_batch_tokens = settings.micro_batch_tokens
        self.random_state = torch.get_rng_state()

    def state(self) -> checkpoint.State:
        """The run as it stands; its tensors are the live ones, to be written before the next step."""
        assert torch.equal(torch.get_rng_state(), self.random_state), (
            "training drew random numbers, which none restores"
        )
        moments = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"exact/{name}": exact for name, exact in zip(self.master.names, self.master.exact)},
            **{f"best/{name}": tensor for name, tensor in self.outcome.best.items()},
            **{f"optimizer/{i}/{key}": tensor for i, slots in moments.items() for key, tensor in slots.items()},
        }
        values = {
            "outcome": {key: value for key, value in vars(self.outcome).items() if key != "best"},
            "seen": vars(self.seen),
            "micro_batch_tokens": self.micro_batch_tokens,
        }
        return checkpoint.State(self.outcome.steps, self.outcome.planned_steps, self.processes.whole(tensors), values)

    def restore(self, saved: checkpoint.State | None) -> None:
        """Goes on exactly where `saved` stood, if anything was, and takes its tensors: they are not held twice."""
        if saved is None:
            return
        self.outcome = outcome_of(saved)
        self.master.load(_part(saved, "exact"))
        moments: dict[int, State] = {}
        for name, tensor in _part(saved, "optimizer").items():
            i, _, key = name.partition("/")
            moments.setdefault(int(i), {})[key] = self.processes.divide(tensor, self.master.exact[int(i)])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        saved.tensors.clear()
        self.seen = watch.Seen(**saved.values["seen"])
        self.micro_batch_tokens = saved.values["micro_batch_tokens"]


def outcome_of(saved: checkpoint.State) -> Outcome:
    """What the run had come to at this checkpoint."""
    return Outcome(best=_part(saved, "best"), **saved.values["outcome"])


def _part(saved: checkpoint.State, part: str) -> State:
    return {name.partition("/")[2]: t for name, t in saved.tensors.items() if name.startswith(f"{part}/")}


def train(
    scorer: Scorer,
    objective: Objective,
    rows: Tokens,
    validation: Tokens,
    settings: Settings,
    log: Log,
    keeper: checkpoint.Keeper | None = None,
    saved: checkpoint.State | None = None,
) -> Outcome:
    """Trains the parameters of `scorer` that require gradients, from the beginning or on from a saved state.

    `log` receives one dict per optimizer step and per evaluation. Raises watch.Fault when training goes wrong, and
    Interrupted when `keeper` was asked for an end and has saved.
    """
    processes = join(settings.sharding)
    scorer = processes.place(scorer)
    steps = optimizer_steps(rows.lengths, settings.batch_tokens, settings.epochs, settings.seed)
    checks = {round(len(steps) * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    course = _course(settings, len(steps))
    run = Run(scorer, settings, len(steps), processes)
    run.restore(saved)

    def backward(loss: Tensor) -> None:
        loss.backward()
        run.master.collect()

    def report(entry: dict[str, Any]) -> None:
        log(entry)
        heed(watch.faults(run.seen, entry, course), settings.watch, run.outcome.warnings)

    def evaluate() -> None:
        figures = _validate(scorer, objective, validation, settings, run.micro_batch_tokens, processes)
        report({"step": run.outcome.steps, **figures})
        run.outcome.consider(run.master.state(), figures["validation_loss"], settings.patience)
        if run.outcome.stopped_early:
            say(watch.early_stop(run.seen, course))

    if checks and not run.outcome.steps:
        evaluate()
    while not run.outcome.finished:
        started = time.perf_counter()
        number = run.outcome.steps + 1
        rate = settings.learning_rate * schedule(number, len(steps), settings.warmup)
        done = step(scorer, objective, rows, steps[number - 1], run.micro_batch_tokens, backward, processes)
        processes.add_gradients(run.master.exact)
        norm = run.master.update(run.optimizer, rate, settings.max_grad_norm, done.normaliser)
        seconds = time.perf_counter() - started
        run.outcome.add(done, seconds)
        report(_entry(number, len(steps), done, rate, norm, seconds))
        if number in course.first_rows_again:
            again = measure(scorer, objective, rows, steps[0], run.micro_batch_tokens, processes)
            report({"step": number, "first_rows_loss": again.loss})
        if number in checks:
            evaluate()
        if keeper:
            keeper.after_step(run.state, number in checks, processes)
    if not checks:
        run.outcome.consider(run.master.state(), None)
    return run.outcome


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats and mean metrics over one optimizer step, of all processes."""

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
    processes: Processes = ALONE,
) -> StepResult:
    """Forward and backward over this process's share of one optimizer step's rows; gradients are those of its summed
    loss, or, sharded, of everybody's."""
    loss_sum, normaliser, tokens, sums = 0.0, 0, 0, dict[str, float]()
    for batch_rows, counts in processes.passes(step_rows, rows.lengths, micro_batch_tokens):
        batch = pack(rows, batch_rows, scorer.causal.device)
        part = objective(scorer, batch)
        if not counts:
            backward(0 * part.sum)
            continue
        backward(part.sum)
        loss_sum += float(part.sum.detach())
        normaliser += part.normaliser
        tokens += sum(batch.lengths)
        sums = {name: sums.get(name, 0.0) + value for name, value in part.metrics.items()}
    everywhere = processes.gather((loss_sum, normaliser, tokens, sums))
    loss_sum = sum(part[0] for part in everywhere)
    normaliser = sum(part[1] for part in everywhere)
    tokens = sum(part[2] for part in everywhere)
    names = {name: None for part in everywhere for name in part[3]}
    metrics = {name: sum(part[3].get(name, 0.0) for part in everywhere) / normaliser for name in names}
    return StepResult(loss_sum / normaliser, metrics, tokens, normaliser)


def schedule(number: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at step `number` of `steps` (from 1): a linear rise, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if number <= rise:
        return number / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - rise) / max(1, steps - rise)))


@torch.no_grad()
def measure(
    scorer: Scorer,
    objective: Objective,
    rows: Tokens,
    which: list[int],
    micro_batch_tokens: int,
    processes: Processes = ALONE,
) -> StepResult:
    """Loss and metrics of these rows; nothing is learnt."""
    return step(scorer, objective, rows, which, micro_batch_tokens, lambda loss: None, processes)


def _validate(
    scorer: Scorer,
    objective: Objective,
    validation: Tokens,
    settings: Settings,
    micro_batch_tokens: int,
    processes: Processes,
) -> dict[str, float]:
    found = measure(scorer, objective, validation, list(range(len(validation))), micro_batch_tokens, processes)
    figures = {"loss": found.loss, **found.metrics}
    if settings.end_tokens:
        ends = list(settings.end_tokens)
        figures["end_only"] = answers.share_of_end_only(scorer, validation, ends, micro_batch_tokens)
    return {f"validation_{name}": value for name, value in figures.items()}


def heed(found: list[watch.Fault], mode: str, warnings: dict[str, str]) -> None:
    """Raises the first fault that is to end the run; tells each other kind once, and notes it in `warnings`."""
    for fault in found:
        if mode == "stop" and not fault.mild:
            raise fault
        if fault.kind not in warnings:
            warnings[fault.kind] = fault.what
            say(f"warning: {fault}")


def _course(settings: Settings, steps: int) -> watch.Course:
    warmup_steps = round(settings.warmup * steps)
    return watch.Course(settings.learning_rate, settings.epochs, steps, warmup_steps, settings.patience)


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
