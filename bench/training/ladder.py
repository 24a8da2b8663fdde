"""The ablation ladder: what each technique of our engine gives, beside the gain that was predicted.

A technique is worth what the engine loses without it, all others in place. (Added one after the other, each would be
measured in an engine that nobody runs: the same attention in a slower engine seems to give less.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from training.ours import Engine
from training.ratios import ratio
from training.runs import Run

WORTH = 1.03  # what gains less goes
WHOLE, BOTTOM = "all of these", "none of these: plain torch, one row after the other"


@dataclass(frozen=True)
class Rung:
    """A technique: the engine's settings without it, and the factor in speed that was predicted, with the reason. What
    gains less than WORTH here stays only for what it gives `elsewhere`."""

    technique: str
    predicted: float
    reason: str
    without: dict[str, Any]
    elsewhere: str = ""


RUNGS = [
    Rung(
        "attention compiled: a head of a document at a time",
        1.20,
        "scores stay in cache, nothing above the diagonal is computed, one call instead of hundreds",
        {"attention": "plain"},
    ),
    Rung(
        "a decoder layer as one function, LoRA joined to its linear",
        1.30,
        "two matrix products instead of nine for q, k and v, nothing of the base kept for its gradient",
        {"fused_layers": False},
    ),
    Rung(
        "rows packed into micro-batches of 1,024 tokens",
        1.20,
        "products of 800 rows instead of 200, a quarter of the calls",
        {"micro_batch_tokens": 1},
    ),
    Rung(
        "elementwise work compiled to loops",
        1.20,
        "norms, SwiGLU and the head's softmax pass over memory once",
        {"compiled": False},
    ),
    Rung(
        "label head that keeps the unit gradient",
        1.15,
        "two matrix products instead of three, logits live for one chunk",
        {"head": "reference"},
    ),
    Rung(
        "what rows begin with computed once a micro-batch",
        1.12,
        "the template's system message is an eighth of the tokens",
        {"shared_beginning": False},
        "stays: under a system message of some hundred tokens most of a step is its beginning",
    ),
    Rung(
        "short spins of waiting threads",
        1.02,
        "little on a quiet machine; beside other work a factor of two",
        {"short_spins": False},
        "stays: beside a busy process it is a factor of two",
    ),
]


def ladder(measure: Callable[[str, Engine], Run], repeats: int) -> list[dict[str, Any]]:
    """Each engine once per round, in an order drawn anew; a gain is the median over rounds of the whole engine's speed
    over that without the technique."""
    bottom = {key: value for rung in RUNGS for key, value in rung.without.items()} | {"attention": "reference"}
    engines = {WHOLE: Engine(), BOTTOM: Engine(**bottom)}
    engines |= {rung.technique: Engine(**rung.without) for rung in RUNGS}
    draw, speeds = np.random.default_rng(0), {name: list[float]() for name in engines}
    for _ in range(repeats):
        for name in draw.permutation(list(engines)).tolist():
            told = name if name in (WHOLE, BOTTOM) else f"without: {name}"
            speeds[name].append(measure(told, engines[name]).tokens_per_second)
    found = []
    for rung in RUNGS:
        gain = ratio(speeds[WHOLE], speeds[rung.technique])
        predicted = {"technique": rung.technique, "predicted": rung.predicted, "reason": rung.reason}
        predicted |= {"elsewhere": rung.elsewhere}
        measured = {"measured": gain.median, "interval": [gain.low, gain.high], "worth": gain.median >= WORTH}
        found.append({**predicted, **measured, "tokens_per_second_without": median(speeds[rung.technique])})
    whole = ratio(speeds[WHOLE], speeds[BOTTOM])
    ends = {"measured": whole.median, "interval": [whole.low, whole.high], "tokens_per_second": median(speeds[WHOLE])}
    return [*found, {"technique": WHOLE, **ends, "tokens_per_second_without": median(speeds[BOTTOM])}]
