"""The rival's best configuration, found with a fixed budget: every candidate trains the same rows once, in a fresh
process, for the same number of steps and no longer than a limit. What changes one thing is tried on the best so far;
layouts and attention are tried together, because each decides what the other costs. The fastest then run again, until
those that lead have all run three times: one run's luck wins nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from training.rival import Rival
from training.runs import Precision, precision

LIMIT_SECONDS = 600.0
FINALISTS, RUNS = 3, 3

LAYOUTS: list[dict[str, Any]] = [
    {"grouped": False},
    {"grouped": True},
    {"grouped": True, "micro_batches": 2},
    {"grouped": True, "micro_batches": 4},
    {"grouped": False, "micro_batches": 8},
    {"grouped": False, "layout": "flattened"},
    {"grouped": True, "layout": "flattened", "micro_batches": 2},
    {"grouped": False, "layout": "packed", "pack_tokens": 512},
    {"grouped": False, "layout": "packed", "pack_tokens": 1024},
]
PRECISIONS: list[dict[str, Any]] = [
    {"weights": "bf16", "autocast": False},
    {"weights": "bf16", "autocast": True},
    {"weights": "fp32", "autocast": True},
    {"weights": "fp32", "autocast": False},
]
ROUNDS: list[list[dict[str, Any]]] = [
    [*PRECISIONS, {"checkpointing": True}],
    [{"attention": attention, **layout} for attention in ("sdpa", "eager") for layout in LAYOUTS],
    PRECISIONS,
    [{"checkpointing": False}, {"checkpointing": True}],  # what it gains depends on the layout
    [{"adapter": "bf16"}],
    [{"short_spins": True}],
    [{"compiled": True}],
]


def start(weights: Precision) -> Rival:
    """Where the search begins: weights in what the machine is fastest in, and no checkpointing."""
    return Rival(weights=weights, autocast=False, checkpointing=False, grouped=True)


@dataclass
class Trial:
    """One candidate: real tokens a second and peak memory of each run, or why it has none."""

    rival: Rival
    tokens_per_second: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str | None = None

    @property
    def speed(self) -> float:
        failed = self.failure or not self.tokens_per_second
        return 0.0 if failed else statistics.median(self.tokens_per_second)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.rival.name, **asdict(self), "median_tokens_per_second": self.speed}


def search(attempt: Callable[[Trial], None], full: bool) -> list[Trial]:
    """All trials, the best first. `attempt` runs one and adds what it measured. Training all weights has no adapter."""
    trials: dict[Rival, Trial] = {}

    def tried(rival: Rival) -> Trial:
        if rival not in trials:
            trials[rival] = Trial(rival)
            attempt(trials[rival])
        return trials[rival]

    best = start(precision())
    for changes in _rounds(full):
        for change in changes:
            tried(replace(best, **change))
        best = _fastest(trials)[0].rival
    while unproven := [t for t in _fastest(trials)[:FINALISTS] if not t.failure and len(t.tokens_per_second) < RUNS]:
        for trial in unproven:
            attempt(trial)
    return _fastest(trials)


def _rounds(full: bool) -> Iterator[list[dict[str, Any]]]:
    for changes in ROUNDS:
        kept = [change for change in changes if not (full and "adapter" in change)]
        if kept:
            yield kept


def _fastest(trials: dict[Rival, Trial]) -> list[Trial]:
    return sorted(trials.values(), key=lambda trial: -trial.speed)
