"""From data, model and machine to a training plan: every value is a Decision with its reason.

A value that the project file pins is taken as it is; nothing else is read from outside the arguments but the machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core import hardware, store
from tunesmith.core.config import Train
from tunesmith.core.console import say
from tunesmith.core.errors import ResourceError
from tunesmith.core.records import Decision
from tunesmith.core.step import Artifact
from tunesmith.models import base as bases
from tunesmith.plan import estimate

VERSION = 1


def run(train: Train, base: bases.Base, dataset: Artifact, out: Path) -> dict[str, Any]:
    """Writes `plan.json`: {name: {"value", "reason"}}; tokens are tokens, shares are of the run's optimizer steps."""
    assert base.folder is not None
    decisions = decide(train, bases.facts(base.folder), dataset.summary, hardware.probe())
    for name, decision in decisions.items():
        say(f"  {name:<19} {_shown(decision.value):>9}  {decision.reason}")
    store.write_json(out / "plan.json", {name: asdict(decision) for name, decision in decisions.items()})
    return {"decisions": {name: asdict(decision) for name, decision in decisions.items()}}


def decide(train: Train, model: dict[str, Any], data: dict[str, Any], machine: hardware.Machine) -> dict[str, Decision]:
    """Each decision stands on those above it."""
    pinned = "pinned in the project file"
    settings = dict(train)
    rows, tokens, longest = (data["train"][key] for key in ("rows", "tokens", "longest"))

    def choose(name: str, derived: Decision) -> Decision:
        value = settings[name]
        return derived if value is None else Decision(value, pinned)

    precision = choose("precision", _precision(model["parameters"], machine))
    rank = choose("rank", Decision(16, "enough for a task of this size; on all linear layers, more rarely helps"))
    alpha = choose("alpha", Decision(2 * rank.value, "twice the rank"))
    learning_rate = choose("learning_rate", _learning_rate(model["parameters"]))
    epochs = choose("epochs", _epochs(rows))
    batch_tokens = choose("batch_tokens", _batch_tokens(rows, tokens))
    steps = math.ceil(tokens * epochs.value / batch_tokens.value)
    micro = choose(
        "micro_batch_tokens",
        _micro_batch_tokens(model, precision.value, rank.value, batch_tokens.value, longest, machine),
    )
    evaluations = choose("evaluations", Decision(max(2, math.ceil(2 * epochs.value)), "twice an epoch, and at the end"))
    patience = Decision(train.patience, "evaluations without a better validation loss before training stops")
    return {
        "precision": precision,
        "rank": rank,
        "alpha": alpha,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_tokens": batch_tokens,
        "micro_batch_tokens": micro,
        "evaluations": evaluations if data["validation"]["rows"] else Decision(0, "there are no validation rows"),
        "patience": patience if data["validation"]["rows"] else Decision(None, "there are no validation rows"),
        "warmup": Decision(
            train.warmup, f"the learning rate rises over this share of about {steps} steps, then follows a cosine"
        ),
        "weight_decay": Decision(
            train.weight_decay, "AdamW; a low-rank update needs little" if not train.weight_decay else pinned
        ),
        "max_grad_norm": Decision(train.max_grad_norm, "gradients are scaled down to this norm"),
        "seed": Decision(train.seed, "of the adapter's first weights and the order of the rows"),
    }


def _precision(parameters: int, machine: hardware.Machine) -> Decision:
    needed_bytes = estimate.weight_bytes(parameters, "fp32")
    if machine.bf16:
        return Decision(
            "bf16",
            f"{machine.name} multiplies bf16 in hardware, and it halves memory; the adapter's master copy is fp32",
        )
    if needed_bytes < machine.memory_bytes / 4:
        return Decision(
            "fp32", f"{machine.name} has no bf16 arithmetic, and {needed_bytes / 1e9:.1f} GB of weights fit"
        )
    return Decision("bf16", f"{needed_bytes / 1e9:.1f} GB of fp32 weights would leave too little of the memory")


def _learning_rate(parameters: int) -> Decision:
    value = min(1e-3, max(1e-4, 1e-3 * (135e6 / parameters) ** 0.4))
    return Decision(
        float(f"{value:.1g}"),
        f"LoRA at {parameters / 1e6:,.0f} M parameters: 1e-3 at 135 M, falling to the usual 2e-4 at 8 B",
    )


def _epochs(rows: int) -> Decision:
    epochs = 3.0 if rows <= 2_000 else 2.0 if rows <= 10_000 else 1.0
    return Decision(epochs, f"{rows:,} training rows: fewer rows need more passes")


def _batch_tokens(rows: int, tokens: int) -> Decision:
    together = min(64, max(8, 2 ** round(math.log2(max(1, rows / 64)))))
    return Decision(
        round(together * tokens / rows),
        f"about {together} rows of {tokens / rows:.0f} tokens, {math.ceil(rows / together)} steps an epoch",
    )


def _micro_batch_tokens(
    model: dict[str, Any], precision: str, rank: int, batch_tokens: int, longest: int, machine: hardware.Machine
) -> Decision:
    budget_bytes = machine.memory_bytes // 2 - estimate.resident_bytes(model, precision, rank)
    fits = max(0, budget_bytes) // estimate.bytes_per_token(model, precision, longest)
    value = int(max(longest, min(fits, batch_tokens, 4096)))
    peak_bytes = estimate.resident_bytes(model, precision, rank) + value * estimate.bytes_per_token(
        model, precision, longest
    )
    told = f"about {peak_bytes / 1e9:.1f} GB at the peak of {machine.memory_bytes / 1e9:.0f} GB"
    if peak_bytes > machine.memory_bytes:
        raise ResourceError(
            f"training needs {told}",
            f"{value:,} tokens is the least: the longest row has {longest:,}",
            "choose a smaller model (`tunesmith models`), lower data.format.max_tokens, or use a larger machine",
        )
    crowded = peak_bytes > machine.memory_bytes // 2
    return Decision(value, told + (": more than half, since the longest row needs it" if crowded else ""))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
