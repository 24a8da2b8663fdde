"""From data, model and machine to a training plan: every value is a Decision with its reason.

A value that the project file pins is taken as it is; nothing else is read from outside the arguments but the machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core import hardware, store
from tunesmith.core.console import say
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.core.project import Train
from tunesmith.core.records import Decision
from tunesmith.core.step import Artifact
from tunesmith.models import base as bases
from tunesmith.models import names
from tunesmith.plan import estimate

VERSION = 6
_PASS_TOKENS = {False: 1024, True: 16384}  # on a GPU or not, past what all rows begin with: larger ones are no faster
_PINNED = "pinned in the project file"
_METHODS = {
    "full": "every weight of the model: the most room to learn and to forget, and the most memory",
    "freeze": "the modules under `layers`, in full; all others stay as they are",
    "lora": "low-rank matrices beside every linear layer: close to full tuning in a fraction of its memory",
    "prompt": "vectors before the text and nothing else: the smallest file, and the least room to learn",
    "prefix": "keys and values before the text in every layer; the model's weights stay as they are",
    "ia3": "a factor for each key, value and inner feed-forward channel: few parameters, and it merges",
    "bottleneck": "a small feed-forward module behind every block's own",
}


def run(train: Train, base: bases.Base, dataset: Artifact, out: Path) -> dict[str, Any]:
    """Writes `plan.json`: {name: {"value", "reason"}}; tokens are tokens, shares are of the run's optimizer steps."""
    assert base.folder is not None
    model = bases.facts(base.folder)
    in_full = names.parameters(base.folder, train.layers)
    decisions = decide(train, model, dataset.summary, hardware.probe(), in_full)
    for name, decision in decisions.items():
        if decision.value != []:
            say(f"  {name:<19} {_shown(decision.value):>9}  {decision.reason}")
    store.write_json(out / "plan.json", {name: asdict(decision) for name, decision in decisions.items()})
    return {"decisions": {name: asdict(decision) for name, decision in decisions.items()}}


def decide(
    train: Train, model: dict[str, Any], data: dict[str, Any], machine: hardware.Machine, in_full: int = 0
) -> dict[str, Decision]:
    """Each decision stands on those above it. Those of the method alone (rank, width and the like) are there where the
    method has them. `in_full` counts the parameters of the modules under `train.layers`."""
    rows, tokens, longest = (data["train"][key] for key in ("rows", "tokens", "longest"))
    beginning = data["train"].get("beginning", 0)  # blocks of text have none
    method = _method(train)
    longest += _virtual_tokens_fit(method, longest, model["context"])
    room = machine.memory_bytes // (1 if machine.gpu else train.processes)  # a process has a GPU of its own
    learning_rate = _chosen(train.learning_rate, _learning_rate(train, model["parameters"]))
    _decay_shrinks(train.weight_decay, learning_rate.value)
    precision = _chosen(train.precision, _precision(model["parameters"], room, machine))
    epochs = _chosen(train.epochs, _epochs(rows))
    batch_tokens = _chosen(train.batch_tokens, _batch_tokens(rows, tokens))
    steps = math.ceil(tokens * epochs.value / batch_tokens.value)
    values = {name: decision.value for name, decision in method.items()}
    resident = estimate.resident_bytes(
        model,
        precision.value,
        estimate.trained(model, values, in_full),
        quantised=train.quantise is not None,
        divided_by=train.processes if train.sharding != "none" else 1,
    )
    micro = _chosen(
        train.micro_batch_tokens,
        _micro_batch_tokens(
            per_token=estimate.bytes_per_token(model, precision.value),
            resident=resident,
            room=room,
            longest=longest,
            enough=min(batch_tokens.value, _PASS_TOKENS[machine.gpu] + beginning),
            divided=train.sharding != "none",
            gpu=machine.gpu,
        ),
    )
    evaluations = _chosen(
        train.evaluations, Decision(max(2, math.ceil(2 * epochs.value)), "twice an epoch, and at the end")
    )
    patience = Decision(train.patience, "evaluations without a better validation loss before training stops")
    return {
        **method,
        "precision": precision,
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
            train.weight_decay, "AdamW; a short training needs little" if not train.weight_decay else _PINNED
        ),
        "max_grad_norm": Decision(train.max_grad_norm, "gradients are scaled down to this norm"),
        "seed": Decision(train.seed, "of the method's first random weights and the order of the rows"),
        **_running(train),
    }


def _chosen(pinned: Any, derived: Decision) -> Decision:
    return derived if pinned is None else Decision(pinned, _PINNED)


def _method(train: Train) -> dict[str, Decision]:
    """What trains, and the sizes that belong to this method."""
    found = {"method": Decision(train.method, _METHODS[train.method])}
    if train.method == "lora":
        variant = _chosen(train.variant, Decision("plain", "the update is scaled by alpha / rank"))
        rank = _chosen(
            train.rank, Decision(16, "enough for a task of this size; on all linear layers, more rarely helps")
        )
        alpha = (
            Decision(8.0, "the scale of plain LoRA at rank 16, and from there by 1 / sqrt(rank) (Kalajdzievski 2023)")
            if variant.value == "rslora"
            else Decision(2.0 * rank.value, "twice the rank")
        )
        found |= {"variant": variant, "rank": rank, "alpha": _chosen(train.alpha, alpha)}
    if train.layers:
        beside = "; LoRA on all others" if train.method == "lora" else "; all others stay as they are"
        found["layers"] = Decision(train.layers, f"these modules train in full{beside}")
    if train.quantise:
        found["quantise"] = Decision(train.quantise, "linear layers in 4 bits instead of 16, trained beside by LoRA")
    if train.method in ("prompt", "prefix"):
        tokens = Decision(20, "past 20, little more is gained (Lester et al. 2021, figure 3)")
        found["virtual_tokens"] = _chosen(train.virtual_tokens, tokens)
    if train.method == "bottleneck":
        width = Decision(64, "within a point of full tuning on GLUE (Houlsby et al. 2019, table 1)")
        found["width"] = _chosen(train.width, width)
    return found


def _virtual_tokens_fit(method: dict[str, Decision], longest: int, context: int | None) -> int:
    """How many tokens the method puts before each row. Raises ConfigError where that leaves the longest row no room."""
    virtual = int(method["virtual_tokens"].value) if "virtual_tokens" in method else 0
    if context and longest + virtual > context:
        shorter = f"set `data.format.max_tokens: {context - virtual}`" if 2 * virtual <= context else ""
        fewer = f"lower `train.virtual_tokens` to {context - longest} or less" if longest < context else ""
        raise ConfigError(
            f"`train.virtual_tokens: {virtual}` leaves too little room for the longest row",
            f"it has {longest:,} tokens, and the model's context is {context:,}",
            ", or ".join(filter(None, [shorter, fewer])) or "lower it, and `data.format.max_tokens` too",
        )
    return virtual


def _running(train: Train) -> dict[str, Decision]:
    """How the work is spread, watched and kept."""
    alone = train.processes == 1
    watch = {"stop": "end with an explanation when training goes wrong", "warn": "warn and go on"}
    return {
        "threads": Decision(
            train.threads, _PINNED if train.threads else "chosen when training starts: one for each core that is free"
        ),
        "processes": Decision(train.processes, "all work in one" if alone else "they share each optimizer step's rows"),
        "sharding": Decision(
            train.sharding,
            "every process holds the whole model" if train.sharding == "none" else "the processes divide the model",
        ),
        "trackers": Decision(train.trackers, "losses are logged there too"),
        "watch": Decision(train.watch, watch[train.watch]),
        "checkpoint_minutes": Decision(train.checkpoint_minutes, "between checkpoints; a killed run goes on from one"),
    }


def _precision(parameters: int, room: int, machine: hardware.Machine) -> Decision:
    """`room` is the memory of a process."""
    needed_bytes = estimate.weight_bytes(parameters, "fp32")
    if machine.bf16:
        return Decision(
            "bf16",
            f"{machine.name} multiplies bf16 in hardware, and it halves memory; the master copy of what trains is fp32",
        )
    if needed_bytes < room / 4:
        return Decision(
            "fp32", f"{machine.name} has no bf16 arithmetic, and {needed_bytes / 1e9:.1f} GB of weights fit"
        )
    return Decision("bf16", f"{needed_bytes / 1e9:.1f} GB of fp32 weights would leave too little of the memory")


def _learning_rate(train: Train, parameters: int) -> Decision:
    """LoRA's falls with the model's size. The others are relative to it, by what is published, and for prompt, prefix
    and IA3, whose papers use Adafactor or other models, by short runs of SmolLM2-135M on the support recipe."""
    lora = min(1e-3, max(1e-4, 1e-3 * (135e6 / parameters) ** 0.4))
    value, reason = {
        "full": (lora / 10, f"a tenth of LoRA's {lora:.1g} (Schulman et al. 2025, LoRA Without Regret)"),
        "freeze": (lora / 10, f"as for full tuning, a tenth of LoRA's {lora:.1g} (Schulman et al. 2025)"),
        "lora": (
            lora,
            f"LoRA at {parameters / 1e6:,.0f} M parameters: 1e-3 at 135 M, down to the usual 2e-4 at 8 B",
        ),
        "hybrid": (lora / 3, "between LoRA's and that of full tuning: one rate serves both"),
        "prompt": (3e-2, "prompts need far more than weights do (Lester et al. 2021: 0.3 with Adafactor)"),
        "prefix": (3e-2, "as for prompts; at 1e-2 the support recipe learnt more slowly"),
        "ia3": (
            3e-2,
            "few factors, each near one; at 3e-3 (Liu et al. 2022, Adafactor) the support recipe learnt slowly",
        ),
        "bottleneck": (lora, "as for LoRA, beside which Hu et al. 2023 (LLM-Adapters) train them at one rate"),
    }["hybrid" if train.method == "lora" and train.layers else train.method]
    return Decision(float(f"{value:.1g}"), reason)


def _decay_shrinks(weight_decay: float, learning_rate: float) -> None:
    """Raises ConfigError where AdamW, which multiplies weights by 1 - rate * decay at each step, would turn their sign
    (Loshchilov and Hutter 2019)."""
    if weight_decay * learning_rate >= 1:
        raise ConfigError(
            f"`train.weight_decay: {weight_decay:g}` does not go with a learning rate of {learning_rate:g}",
            f"each step would multiply weights by {1 - weight_decay * learning_rate:g}",
            "set `train.weight_decay` to 0.1 or less, or take it out",
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
    *, per_token: int, resident: int, room: int, longest: int, enough: int, divided: bool, gpu: bool
) -> Decision:
    """Bytes that a pass takes for a token, that stay, and that a process has; tokens of the longest row, and past which
    a pass gains nothing."""
    fits = max(0, room // 2 - resident) // per_token
    value = int(max(longest, min(fits, enough)))
    peak_bytes = resident + value * per_token
    told = f"about {peak_bytes / 1e9:.1f} GB at the peak of {room / 1e9:.0f} GB for a process, to be measured"
    if resident > room:
        raise ResourceError(
            f"training needs {told}",
            f"{resident / 1e9:.1f} GB are weights and optimizer state alone",
            "choose a smaller model (`tunesmith models`) or a method that trains fewer weights (`train.method: lora`, "
            "`train.quantise: nf4`), lower data.format.max_tokens, "
            + (
                "or let several GPUs divide what trains (`train.sharding`)"
                if gpu and not divided
                else "or use a larger machine"
            ),
        )
    crowded = peak_bytes > room // 2
    return Decision(value, told + (": more than half, since the longest row needs it" if crowded else ""))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
