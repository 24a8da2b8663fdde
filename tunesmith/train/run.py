"""The training step: from a plan and tokenised rows to an adapter on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from tunesmith.core import hardware, store
from tunesmith.core.console import Bar, progress, say
from tunesmith.core.step import Artifact

if TYPE_CHECKING:
    from tunesmith.models.base import Base
    from tunesmith.train.loop import Outcome

VERSION = 1


def run(plan: Artifact, base: Base, dataset: Artifact, out: Path) -> dict[str, Any]:
    """Writes `adapter/` (PEFT's format, with the tokeniser) and `metrics.jsonl`, a line per step and evaluation."""
    import torch

    from tunesmith.kernels import apply
    from tunesmith.models import adapters, load, packed
    from tunesmith.train import loop
    from tunesmith.train.objectives import sft

    assert base.folder is not None
    chosen = {name: decision["value"] for name, decision in plan.summary["decisions"].items()}
    threads = hardware.threads()
    torch.set_num_threads(threads.value)
    measured = hardware.reset_peak_memory()
    settings = loop.Settings(**{key: chosen[key] for key in loop.Settings.__dataclass_fields__})
    rows, validation = packed.Tokens(dataset.folder, "train"), packed.Tokens(dataset.folder, "validation")
    model = load.model(base.folder, chosen["precision"], packed=True)
    kernels = apply.choose(model.dtype, model.device)
    for note in kernels.notes:
        say(note)
    packed.require_same_loss(packed.Scorer(model, kernels), rows)
    store.require_space(out, 2 * _adapter_bytes(model, chosen["rank"]), "the adapter")
    tuned = adapters.add_lora(model, chosen["rank"], chosen["alpha"], settings.seed)
    say(f"  threads             {threads.value:>9}  {threads.reason}")
    with (
        open(out / "metrics.jsonl", "wb") as file,
        progress("train", settings.epochs * sum(rows.lengths), "tokens") as bar,
    ):
        scorer = packed.Scorer(tuned, kernels)
        outcome = loop.train(scorer, sft.loss, rows, validation, settings, _logger(file, bar))
    adapters.save(tuned, outcome.best, base.identity if "@" in base.identity else None, out / "adapter")
    load.tokenizer(base.folder).save_pretrained(out / "adapter")
    return {
        "base": base.model_dump(),
        **_facts(outcome),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "peak_memory_of": "training" if measured else "the whole process",
        "threads": {"value": threads.value, "reason": threads.reason},
        "kernels": list(kernels.notes),
    }


def _logger(file: BinaryIO, bar: Bar) -> Callable[[dict[str, Any]], None]:
    """Writes each entry to metrics.jsonl, and moves the bar."""
    last: dict[str, Any] = {}

    def log(entry: dict[str, Any]) -> None:
        file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        last.update(entry)
        if "loss" in entry:
            losses = f"loss {entry['loss']:.3f}"
            if "validation_loss" in last:
                losses += f"  validation {last['validation_loss']:.3f}"
            bar.advance(entry["tokens"], f"step {entry['step']}/{entry['of']}  {losses}")

    return log


def _facts(outcome: Outcome) -> dict[str, Any]:
    loss = "none measured" if outcome.best_validation_loss is None else f"{outcome.best_validation_loss:.4f}"
    stopped = ", stopped early" if outcome.stopped_early else ""
    return {
        "headline": f"best validation loss {loss}, at step {outcome.best_step} of {outcome.steps}{stopped}; "
        f"{outcome.tokens_per_second:,.0f} tokens/s",
        "steps": outcome.steps,
        "planned_steps": outcome.planned_steps,
        "stopped_early": outcome.stopped_early,
        "best_step": outcome.best_step,
        "validation_loss": outcome.best_validation_loss,
        "tokens": outcome.tokens,
        "learnt_tokens": outcome.learnt_tokens,
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "train_seconds": round(sum(outcome.step_seconds), 2),
        "trainable_parameters": sum(tensor.numel() for tensor in outcome.best.values()),
    }


def _adapter_bytes(model: Any, rank: int) -> int:
    """fp32 bytes of a LoRA of this rank on all linear layers of the model."""
    import torch

    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return 4 * rank * sum(int(m.in_features + m.out_features) for m in linears)
