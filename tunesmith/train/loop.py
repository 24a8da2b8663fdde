"""The training loop: one function from packed rows to the best state of what trains.

Loss. Every micro-batch contributes the SUM of its losses; the summed gradient is divided once by the normaliser of the
whole optimizer step. Batch 8 x 1, 1 x 8, packed or not: same loss, same gradient.

Memory. The largest micro-batch is rehearsed before the first step (memory.py). Where a pass needs more memory than
there is all the same, the step is taken again in micro-batches of half the size, which changes nothing else.

Life. All that changes from step to step is in `Run`, which a checkpoint holds and gives back exactly. The order of the
rows is known before the first step, so a run that was killed goes on to the very weights it would have come to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tunesmith.core.console import say
from tunesmith.core.errors import ResourceError
from tunesmith.core.interrupt import Asked
from tunesmith.models.packed import Packed, Scorer, pack
from tunesmith.models.tokens import Tokens
from tunesmith.train import answers, checkpoint, memory, watch
from tunesmith.train.batches import optimizer_steps, passes, shares
from tunesmith.train.master import Master, State
from tunesmith.train.objectives.sft import Loss
from tunesmith.train.outcome import Outcome, outcome_of
from tunesmith.train.passes import StepResult, step
from tunesmith.train.processes import ALONE, Processes, join

Objective = Callable[[Scorer, Packed], Loss]
Log = Callable[[dict[str, Any]], None]


class Left(Exception):
    """An evaluation was left before its end, since the run was asked to end: a later run makes it anew."""


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
    method: str = "lora"
    sharding: str = "none"
    watch: str = "stop"
    end_tokens: tuple[int, ...] = ()


class Run:
    """A training run between two optimizer steps: all that changes from step to step, and nothing else that does."""

    def __init__(
        self,
        scorer: Scorer,
        objective: Objective,
        settings: Settings,
        planned_steps: int,
        processes: Processes = ALONE,
    ) -> None:
        self.scorer, self.objective, self.processes = scorer, objective, processes
        self.master = Master(scorer, processes)
        groups = self.master.groups(settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self.outcome = Outcome(planned_steps, self.master.state(), settings.micro_batch_tokens)
        self.seen, self.heap = watch.Seen(), memory.Heap(self._held_bytes)
        self.random_state = torch.get_rng_state()

    def learn(self, tokens: Tokens, rows: list[int], rate: float, max_grad_norm: float) -> tuple[StepResult, float]:
        """Takes an optimizer step over these rows; what came of it, and the norm of its gradient."""
        done = self.over(tokens, rows, learn=True)
        self.processes.add_gradients(self.master.exact)
        return done, self.master.update(self.optimizer, rate, max_grad_norm, done.normaliser)

    def over(
        self,
        tokens: Tokens,
        rows: list[int],
        objective: Objective | None = None,
        *,
        learn: bool,
        asked: Asked | None = None,
    ) -> StepResult:
        """Loss and metrics of these rows, by the run's objective or another, and their gradients if something is to be
        learnt. Where memory does not suffice they are taken again in micro-batches of half the size, for the rest of
        the run. Raises Left before the next pass where an end is asked for."""

        def one_pass(rows: list[int], counts: bool) -> Loss:
            if asked and asked() is not None:
                raise Left
            return self.one_pass(tokens, objective or self.objective, learn, rows, counts)

        while True:
            size = self.outcome.micro_batch_tokens
            try:
                return step(one_pass, rows, tokens, size, self.processes)
            except memory.Exhausted:
                pass  # the halving waits until what the exception holds is gone
            self.master.forget()
            self._halve(passes(rows, tokens, size))

    def one_pass(self, tokens: Tokens, objective: Objective, learn: bool, rows: list[int], counts: bool = True) -> Loss:
        """Loss and metrics of a micro-batch; its gradients, if it counts, come to those of the step."""
        batch = pack(tokens, rows, self.scorer.causal.device)

        def work() -> Loss:
            with torch.set_grad_enabled(learn):
                found = objective(self.scorer, batch)
            if learn:
                (found.sum if counts else 0 * found.sum).backward()
            return replace(found, sum=found.sum.detach())

        heap = None if batch.ids_1T.is_cuda or self.processes.sharded else self.heap
        size = batch.ids_1T.shape[1], learn
        with heap.place(size, self.outcome.forecast) if heap else nullcontext(memory.here) as run:
            found: Loss = run(work)
            if learn:
                self.master.collect()  # not where a pass of a new size ran: gradients stay
        return found

    def _held_bytes(self) -> int:
        """What the steps made and still need: summed gradients, and the optimizer's two moments."""
        return self.master.gradient_bytes() + (2 * self.master.exact_bytes if self.optimizer.state else 0)

    def _halve(self, batches: list[list[int]]) -> None:
        size, number = self.outcome.micro_batch_tokens, self.outcome.steps + 1
        if all(len(rows) == 1 for rows in batches):
            raise ResourceError(
                f"there is not enough memory for step {number:,}",
                "even one row at a time is too much for what other programs leave",
                "close other programs and run again; or lower data.format.max_tokens or choose a smaller model, and "
                "begin anew with `tunesmith run --fresh`",
            )
        self.outcome.micro_batch_tokens = size // 2
        told = f"step {number:,} ran out of memory; micro-batches of {size // 2:,} tokens from here on, not {size:,}"
        self.outcome.warnings["memory"] = told
        say(f"warning: {told}. Nothing else changes: the optimizer's steps hold the same rows.")

    def fit(self, tokens: Tokens, steps: list[list[int]], read: list[tuple[Tokens, list[int]]]) -> memory.Forecast:
        """Measures what the run will take, before the next of `steps`, and makes micro-batches as small as need be.
        `read` are rows that evaluations will read, those of each in passes of their own."""

        def rehearsal(rows: list[int], summed: bool) -> memory.Rehearsal:
            def one_pass() -> None:
                for exact in self.master.exact if summed else ():
                    exact.grad = torch.zeros_like(exact)
                self.one_pass(tokens, self.objective, True, rows)

            try:
                found = memory.rehearse(one_pass, self.master.forget)
            except (MemoryError, RuntimeError) as error:
                if not memory.exhausted(error):
                    raise
                if self.processes.sharded:
                    raise memory.too_much_for_a_part() from None
                found = memory.Rehearsal(0, memory.NOT_ENOUGH, 0)
            return max(self.processes.gather(found), key=lambda each: each.peak)

        exact_bytes = self.master.exact_bytes // self.processes.divided_by
        held = memory.resident_bytes()
        usual = self.processes.count == 1 and not self.outcome.steps and not self.scorer.notes
        usual &= exact_bytes < held // 10  # with large gradients a process's first pass may take 2 % less
        room = memory.Room(
            self._limit_bytes(),
            held=held,
            gradients=exact_bytes,
            pending=0 if self.optimizer.state else 2 * exact_bytes,  # its moments, which the first step makes
            token=memory.token_bytes_at_most(self.scorer) if usual else None,
        )
        parts = [part for rows in steps for part in shares(rows, tokens.lengths, self.processes.count)]
        found = memory.forecast(rehearsal, tokens, parts, self.outcome.micro_batch_tokens, room, read=read)
        if self.outcome.steps and found.micro_batch_tokens < self.outcome.micro_batch_tokens:
            say("  smaller micro-batches than before: sums round otherwise, in their last bits")
        self.outcome.micro_batch_tokens = found.micro_batch_tokens
        self.outcome.forecast_bytes, self.outcome.token_bytes = found.peak_bytes, found.token_bytes
        memory.reset_peak()
        return found

    def fits(self) -> bool:
        """Whether the peak that was forecast is still within what there is."""
        return (self.outcome.forecast_bytes or 0) <= self._limit_bytes()

    def _limit_bytes(self) -> int:
        """What the process may hold that may hold least."""
        return min(self.processes.gather(memory.limit_bytes(self.processes.count)))

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
        }
        return checkpoint.State(self.outcome.steps, self.outcome.planned_steps, self.processes.whole(tensors), values)

    def restore(self, saved: checkpoint.State | None) -> None:
        """Goes on exactly where `saved` stood, if anything was, and takes its tensors: they are not held twice."""
        if saved is None:
            return
        self.outcome = outcome_of(saved)
        self.master.load(checkpoint.part(saved, "exact"))
        moments: dict[int, State] = {}
        for name, tensor in checkpoint.part(saved, "optimizer").items():
            i, _, key = name.partition("/")
            moments.setdefault(int(i), {})[key] = self.processes.divide(tensor, self.master.exact[int(i)])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        saved.tensors.clear()
        self.seen = watch.Seen(**saved.values["seen"])
        memory.reset_peak()


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
    checks = _checks(settings.evaluations, len(steps))
    course = _course(settings, len(steps))
    run = Run(scorer, objective, settings, len(steps), processes)
    run.restore(saved)
    outcome = run.outcome
    readings = _readings(objective, validation, settings) if checks else []
    asked = keeper.asked if keeper and processes.count == 1 else None  # several processes would have to agree

    def report(entry: dict[str, Any]) -> None:
        log(entry)
        watch.heed(watch.faults(run.seen, entry, course), settings.watch, outcome.warnings, outcome.good)

    def evaluate() -> None:
        figures = _validate(run, validation, readings, asked)
        outcome.evaluated = outcome.steps
        report({"step": outcome.steps, **figures})
        outcome.consider(run.master.state, figures["validation_loss"], settings.patience)
        if outcome.stopped_early:
            say(watch.early_stop(run.seen, outcome.steps, course))

    def learn() -> None:
        number, started = outcome.steps + 1, time.perf_counter()
        rate = settings.learning_rate * schedule(number, len(steps), settings.warmup)
        done, norm = run.learn(rows, steps[number - 1], rate, settings.max_grad_norm)
        seconds = time.perf_counter() - started
        outcome.add(done, seconds)
        report(_entry(number, len(steps), done, rate, norm, seconds, outcome.micro_batch_tokens))
        if number in course.first_rows_again:
            again = run.over(rows, steps[0], learn=False)
            report({"step": number, "first_rows_loss": again.loss})

    if not outcome.finished and not (outcome.steps and run.fits()):
        found = run.fit(rows, steps[outcome.steps :], [(validation, read) for read, _ in readings])
        _tell_memory(outcome.steps, found, log)
    while (due := outcome.steps in checks and outcome.evaluated < outcome.steps) or not outcome.finished:
        with suppress(Left):
            evaluate() if due else learn()
        if keeper and (outcome.steps or (asked and asked() is not None)):
            keeper.after_step(run.state, due, processes)
    if not checks:
        outcome.consider(run.master.state, None)
    return outcome


def _checks(evaluations: int, steps: int) -> set[int]:
    """The steps after which validation rows are read: before the first one, and so many times after it, evenly."""
    return {round(steps * i / evaluations) for i in range(evaluations + 1)} if evaluations else set()


def schedule(number: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at step `number` of `steps` (from 1): a linear rise, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if number <= rise:
        return number / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - rise) / max(1, steps - rise)))


def _readings(objective: Objective, validation: Tokens, settings: Settings) -> list[tuple[list[int], Objective]]:
    """What an evaluation reads: all rows, for the run's own loss, and some of them, for how answers begin."""
    ends = list(settings.end_tokens)
    asked = answers.asked(validation, ends) if ends else []
    return [([*range(len(validation))], objective), *([(asked, partial(answers.end_only, ends))] if asked else [])]


def _validate(
    run: Run, validation: Tokens, readings: list[tuple[list[int], Objective]], asked: Asked | None
) -> dict[str, float]:
    own, *others = (run.over(validation, rows, by, learn=False, asked=asked) for rows, by in readings)
    figures = {"loss": own.loss, **own.metrics}
    for other in others:
        figures |= other.metrics
    return {f"validation_{name}": value for name, value in figures.items()}


def _tell_memory(step: int, found: memory.Forecast, log: Log) -> None:
    say(f"  memory              {found.peak_bytes / 1e9:>6.2f} GB  {found.reason}")
    log({"step": step, "micro_batch_tokens": found.micro_batch_tokens, "forecast_bytes": found.peak_bytes})


def _course(settings: Settings, steps: int) -> watch.Course:
    warmup_steps = round(settings.warmup * steps)
    usual = watch.OF_FEW if settings.method in watch.FEW else watch.USUAL_RATE
    return watch.Course(settings.learning_rate, settings.epochs, steps, warmup_steps, settings.patience, usual)


def _entry(
    number: int, of: int, done: StepResult, rate: float, norm: float, seconds: float, micro_batch_tokens: int
) -> dict[str, Any]:
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
        "micro_batch_tokens": micro_batch_tokens,
    }
