"""The forward and backward passes of one optimizer step, over all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.models.tokens import Tokens
from tunesmith.train import memory
from tunesmith.train.objectives.sft import Loss
from tunesmith.train.processes import ALONE, Processes


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats and mean metrics over one optimizer step, of all processes."""

    loss: float
    metrics: dict[str, float]
    tokens: int
    normaliser: int


def step(
    one_pass: Callable[[list[int], bool], Loss],
    rows: list[int],
    of: Tokens,
    micro_batch_tokens: int,
    processes: Processes = ALONE,
) -> StepResult:
    """This process's share of the rows in micro-batches, and what came of everybody's. Where one process has not enough
    memory, raises memory.Exhausted in all of them, or, where they divide the model, ResourceError in that one."""
    loss_sum, normaliser, tokens, sums, enough = 0.0, 0, 0, dict[str, float](), True
    try:
        for batch_rows, counts in processes.passes(rows, of, micro_batch_tokens):
            part = one_pass(batch_rows, counts)
            if counts:
                loss_sum += float(part.sum)
                normaliser += part.normaliser
                tokens += sum(of.lengths[i] for i in batch_rows)
                sums = {name: sums.get(name, 0.0) + value for name, value in part.metrics.items()}
    except (MemoryError, RuntimeError) as error:
        if not memory.exhausted(error):
            raise
        if processes.sharded:
            raise memory.too_much_for_a_part() from None
        enough = False
    everywhere = processes.gather((loss_sum, normaliser, tokens, sums, enough))
    if not all(part[4] for part in everywhere):
        raise memory.Exhausted
    loss_sum = sum(part[0] for part in everywhere)
    normaliser = sum(part[1] for part in everywhere)
    tokens = sum(part[2] for part in everywhere)
    names = {name: None for part in everywhere for name in part[3]}
    metrics = {name: sum(part[3].get(name, 0.0) for part in everywhere) / normaliser for name in names}
    return StepResult(loss_sum / normaliser, metrics, tokens, normaliser)
