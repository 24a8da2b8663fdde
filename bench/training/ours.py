"""One run of tunesmith's own engine. Started by `runs.run` in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.runs import Job, Meter, Precision, precision, request_and_answer
from tunesmith.core import hardware

if TYPE_CHECKING:
    from tunesmith.kernels.apply import Kernels
    from tunesmith.models.packed import Scorer
    from tunesmith.train.loop import StepResult


@dataclass(frozen=True)
class Engine:
    """Each technique of ours that the ladder can take away; the defaults are what users get. `compiled` is of the
    elementwise loops; attention is `plain` where it is not compiled, `reference` where autograd goes through it."""

    precision: Precision = field(default_factory=precision)
    micro_batch_tokens: int = 1024
    attention: Literal["fast", "plain", "reference"] = "fast"
    head: Literal["fast", "reference"] = "fast"
    fused_layers: bool = True
    compiled: bool = True
    shared_beginning: bool = True
    short_spins: bool = True


def main() -> None:
    request, answer = request_and_answer()
    job = Job(**request)
    engine = Engine(**job.settings)
    if engine.short_spins:
        hardware.calm_threads()
    hardware.keep_out_compiler()
    load_before = hardware.load()
    import torch

    from tunesmith.train import loop  # noqa: F401, with all that training needs

    threads = hardware.threads(load_before)
    torch.set_num_threads(threads.value)
    meter, training = Meter(job), Training(job, engine)
    meter.begin()
    for rows in training.steps:
        done, norm = training.step(rows)
        sys.stdout.write(json.dumps({"loss": done.loss, "tokens": done.tokens}) + "\n")
        sys.stdout.flush()
        meter.step(done.loss, norm, done.tokens)
    notes = list(training.run.scorer.notes)
    meter.write(answer, {"threads": threads.value, "threads_reason": threads.reason, "kernels": notes})


class Training:
    """The engine's own run and steps, at a constant rate, with clipping at 1 and no decay, as on the other side."""

    def __init__(self, job: Job, engine: Engine) -> None:
        from tunesmith.models import packed
        from tunesmith.models.tokens import Tokens
        from tunesmith.train import loop, memory
        from tunesmith.train.objectives import sft

        if not engine.shared_beginning:  # what rows have in common is repeated in each of them: a rung of the ladder
            loop.pack = memory.pack = partial(packed.pack, share=False)
        self.learning_rate = job.learning_rate
        self.steps = job.steps
        self.tokens = Tokens(Path(job.rows), "train")
        if not engine.shared_beginning:
            self.tokens.beginning = 0
        scorer = _scorer(job, engine)
        packed.require_same_loss(scorer, self.tokens)
        settings = loop.Settings(
            learning_rate=job.learning_rate,
            epochs=1.0,
            batch_tokens=1,
            micro_batch_tokens=engine.micro_batch_tokens,
            evaluations=0,
            patience=None,
            warmup=0.0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=job.seed,
        )
        self.run = loop.Run(scorer, sft.loss, settings, len(self.steps))
        self.run.fit(self.tokens, self.steps, [])

    def step(self, rows: list[int]) -> tuple[StepResult, float]:
        """What came of an optimizer step over these rows, and the norm of its gradient."""
        return self.run.learn(self.tokens, rows, self.learning_rate, 1.0)


def _scorer(job: Job, engine: Engine) -> Scorer:
    from peft import PeftModel

    from tunesmith.models import load, packed

    model: Any = load.model(Path(job.base), engine.precision, packed=True)
    if job.adapter:
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True, autocast_adapter_dtype=False)
    scorer = packed.fast(model, fuse_layers=engine.fused_layers)
    scorer.kernels = _kernels(scorer.kernels, engine)
    return scorer


def _kernels(kernels: Kernels, engine: Engine) -> Kernels:
    from tunesmith.kernels import attention, head, layer, plain

    if engine == Engine() or not isinstance(kernels.attention, partial):
        return kernels
    slow = set[str]()
    if engine.attention != "fast":
        slow |= {"attention", "attention_backward"}
    if not engine.compiled:
        slow |= {"norm", "norm_backward", "swiglu", "swiglu_backward", "label_softmax_"}
    operations = replace(kernels.attention.args[0], **{name: vars(plain.OPERATIONS)[name] for name in slow})
    attend, logprobs = (partial(fn, operations) for fn in (attention.document_attention, head.label_logprobs))
    return replace(
        kernels,
        attention=attention.reference if engine.attention == "reference" else attend,
        label_logprobs=head.reference if engine.head == "reference" else logprobs,
        layer=partial(layer.layer, operations),
    )


if __name__ == "__main__":
    main()
