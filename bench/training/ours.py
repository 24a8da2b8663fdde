"""One run of tunesmith's own engine. Started by `runs.run` in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.runs import Job, Meter, request_and_answer
from tunesmith.core import hardware

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.kernels.apply import Kernels
    from tunesmith.models.packed import Scorer, Tokens
    from tunesmith.train.loop import StepResult

Form = Literal["fast", "reference"]


@dataclass(frozen=True)
class Engine:
    """Each technique of ours that the ladder can take away; the defaults are what users get."""

    precision: Literal["bf16", "fp32"] = "bf16"
    micro_batch_tokens: int = 2048
    attention: Form = "fast"
    head: Form = "fast"
    fused_layers: bool = True
    compiled: bool = True
    shared_beginning: bool = True
    short_spins: bool = True
    passes: int = 1
    """How often the timed steps are repeated: a faster side may measure longer."""


def main() -> None:
    request, answer = request_and_answer()
    job = Job(**request)
    engine = Engine(**job.settings)
    if engine.short_spins:
        hardware.calm_threads()
    import torch

    from tunesmith.models import packed

    threads = hardware.threads()
    torch.set_num_threads(threads.value)
    tokens, meter = packed.Tokens(Path(job.rows), "train"), Meter(job)
    scorer = _scorer(job, engine)
    packed.require_same_loss(scorer, tokens)
    _train(scorer, tokens, job, engine, meter)
    facts = {"threads": threads.value, "threads_reason": threads.reason, "kernels": list(scorer.notes)}
    meter.write(answer, facts)


def _scorer(job: Job, engine: Engine) -> Scorer:
    from peft import PeftModel

    from tunesmith.models import load, packed

    model: Any = load.model(Path(job.base), engine.precision, packed=True)
    if job.adapter:
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True, autocast_adapter_dtype=False)
    scorer = packed.fast(model, fuse_layers=engine.fused_layers)
    scorer.kernels = _kernels(scorer.kernels, engine, model)
    return scorer


def _kernels(kernels: Kernels, engine: Engine, model: Any) -> Kernels:
    from tunesmith.kernels import apply, attention, head

    if not engine.compiled:
        kernels = apply.choose(model.dtype, model.device, cache=None)
    if engine.attention == "reference":
        kernels = replace(kernels, attention=attention.reference)
    if engine.head == "reference":
        kernels = replace(kernels, label_logprobs=head.reference)
    return kernels


def _train(scorer: Scorer, tokens: Tokens, job: Job, engine: Engine, meter: Meter) -> None:
    """The engine's own step, at a constant rate, with clipping at 1 and no decay, as on the other side."""
    import torch

    from tunesmith.train import loop
    from tunesmith.train.master import Master
    from tunesmith.train.objectives import sft

    master = Master(scorer)
    optimizer = torch.optim.AdamW(master.exact, lr=job.learning_rate, weight_decay=0.0, fused=True)
    step = loop.step if engine.shared_beginning else _step_without_sharing

    def backward(loss: Tensor) -> None:
        loss.backward()
        master.collect()

    meter.begin()
    for rows in _steps(job, engine.passes):
        done = step(scorer, sft.loss, tokens, rows, engine.micro_batch_tokens, backward)
        norm = master.update(optimizer, job.learning_rate, 1.0, done.normaliser)
        sys.stdout.write(json.dumps({"loss": done.loss, "tokens": done.tokens}) + "\n")
        sys.stdout.flush()
        meter.step(done.loss, norm, done.tokens)


def _steps(job: Job, passes: int) -> Iterator[list[int]]:
    yield from job.order[: job.warmup]
    for _ in range(passes):
        yield from job.order[job.warmup :]


def _step_without_sharing(
    scorer: Scorer,
    objective: Any,
    tokens: Tokens,
    rows: list[int],
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None],
) -> StepResult:
    """`loop.step` with what rows have in common repeated in each of them: a rung of the ladder."""
    from tunesmith.models.packed import pack
    from tunesmith.train.batches import micro_batches
    from tunesmith.train.loop import StepResult

    loss_sum, normaliser, lengths = 0.0, 0, tokens.lengths
    for batch_rows in micro_batches(rows, lengths, micro_batch_tokens):
        part = objective(scorer, pack(tokens, batch_rows, scorer.causal.device, share=False))
        backward(part.sum)
        loss_sum += float(part.sum.detach())
        normaliser += part.normaliser
    return StepResult(loss_sum / normaliser, {}, sum(lengths[i] for i in rows), normaliser)


if __name__ == "__main__":
    main()
