"""The ablation ladder: our engine with its techniques added one at a time, each with the gain that was predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from training.ours import Engine
from training.ratios import ratio
from training.runs import Run

WORTH = 1.03  # what gains less goes


@dataclass(frozen=True)
class Rung:
    """A technique: what it changes in the engine, and the factor in speed that was predicted, with the reason."""

    technique: str
    predicted: float
    reason: str
    change: dict[str, Any]


BOTTOM = Engine(
    micro_batch_tokens=1,
    attention="reference",
    head="reference",
    fused_layers=False,
    compiled=False,
    shared_beginning=False,
    short_spins=False,
)
RUNGS = [
    Rung(
        "attention of each document by itself, with its own backward",
        1.10,
        "no repeated keys, no mask over all rows, no passes of autograd's over the scores",
        {"attention": "plain"},
    ),
    Rung(
        "label head that keeps the unit gradient",
        1.15,
        "two matrix products instead of three, logits live for one chunk",
        {"head": "fast"},
    ),
    Rung(
        "rows packed into micro-batches of 1,024 tokens",
        1.20,
        "products of 800 rows instead of 200, a quarter of the calls",
        {"micro_batch_tokens": 1024},
    ),
    Rung(
        "a decoder layer as one function, LoRA joined to its linear",
        1.30,
        "two matrix products instead of nine for q, k and v, nothing of the base kept for its gradient",
        {"fused_layers": True},
    ),
    Rung(
        "elementwise work compiled to loops",
        1.20,
        "norms, SwiGLU and the head's softmax pass over memory once",
        {"compiled": True},
    ),
    Rung(
        "attention compiled: a head of a document at a time",
        1.20,
        "scores stay in cache, nothing above the diagonal is computed, one call instead of hundreds",
        {"attention": "fast"},
    ),
    Rung(
        "what rows begin with computed once a micro-batch",
        1.12,
        "the template's system message is an eighth of the tokens",
        {"shared_beginning": True},
    ),
    Rung(
        "short spins of waiting threads",
        1.02,
        "little on a quiet machine; beside other work a factor of two",
        {"short_spins": True},
    ),
]


def ladder(measure: Callable[[str, Engine], Run], repeats: int) -> list[dict[str, Any]]:
    """Climbs `repeats` times, so that rungs are interleaved; a gain is the median of a rung over the one below."""
    climbs = [[measure(name, engine).tokens_per_second for name, engine in _engines()] for _ in range(repeats)]
    bottom = {"technique": "plain torch, one row after the other", "predicted": 1.0, "measured": 1.0}
    steps = [{**bottom, "tokens_per_second": _median(climbs, 0)}]
    for i, rung in enumerate(RUNGS, 1):
        gain = ratio([climb[i] for climb in climbs], [climb[i - 1] for climb in climbs])
        found = {"technique": rung.technique, "predicted": rung.predicted, "reason": rung.reason}
        measured = {"measured": gain.median, "interval": [gain.low, gain.high], "kept": gain.median >= WORTH}
        steps.append({**found, **measured, "tokens_per_second": _median(climbs, i)})
    return steps


def _engines() -> list[tuple[str, Engine]]:
    engines = [("bottom", BOTTOM)]
    for rung in RUNGS:
        engines.append((rung.technique, replace(engines[-1][1], **rung.change)))
    return engines


def _median(climbs: list[list[float]], i: int) -> float:
    return sorted(climb[i] for climb in climbs)[len(climbs) // 2]
