"""Whether our loss is TRL's: both curves from the same adapter over the same steps, beside TRL's distance from itself.

In fp32 the two differ by little more than the last bit, so that what a fault does to the loss stands out. In bf16
rounding decides more: the gradients of a fresh LoRA are small, Adam divides by their size, and after a few steps even
two runs that differ in nothing but the order of a step's rows lie a hundredth of a nat apart.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.ours import Engine
from training.rival import Rival
from training.runs import Precision, Run, RunFailed
from training.workload import Workload


@dataclass(frozen=True)
class Losses:
    """How far our losses lie from TRL's, in nats per label, and TRL's from its own with other rounding (None where it
    ran only once). In the mean difference noise cancels and a bias does not."""

    steps: int
    max_difference: float
    noise_band: float | None
    mean_difference: float
    mean_difference_error: float | None


def reference(precision: Precision, full: bool) -> Rival:
    """TRL as near to our arithmetic as it goes. Training all weights in bf16, it has no fp32 copy of them and rounds
    its updates away; under autocast it has one."""
    if full and precision == "bf16":
        return Rival(weights="fp32", autocast=True, checkpointing=False)
    return Rival(weights=precision, autocast=False, checkpointing=False)


def curve(workload: Workload, precision: Precision) -> dict[str, Any]:
    """Three runs: ours, TRL, and TRL with reversed rows, other attention and two micro-batches a step."""
    theirs = reference(precision, workload.full)
    otherwise = replace(theirs, attention="eager", micro_batches=2)
    ours = workload.ours(Engine(precision=precision))
    first = workload.rival(theirs, "TRL")
    second = workload.rival(otherwise, "TRL otherwise", backwards=True)
    losses = compared(ours, first, [second])
    return {
        "method": "full" if workload.full else "lora",
        "precision": precision,
        "loss_steps": losses.steps,
        "max_loss_difference": losses.max_difference,
        "noise_band": losses.noise_band,
        "mean_loss_difference": losses.mean_difference,
        "mean_loss_difference_error": losses.mean_difference_error,
        "rows": workload.facts(),
        "rival": {"reference": theirs.name, "otherwise": otherwise.name + ", rows of a step in reverse"},
        "runs": {run.name: asdict(run) for run in (ours, first, second)},
    }


def compared(ours: Run, theirs: Run, theirs_otherwise: Sequence[Run]) -> Losses:
    """Step by step, over the steps that all have. Raises RunFailed if these did not hold the same tokens."""
    steps = min(len(run.losses) for run in (ours, theirs, *theirs_otherwise))
    if any(run.tokens[:steps] != ours.tokens[:steps] for run in (theirs, *theirs_otherwise)):
        raise RunFailed("the steps of the two sides held other numbers of tokens")
    ours_S, theirs_S = np.array(ours.losses[:steps]), np.array(theirs.losses[:steps])
    apart = [float(np.abs(np.array(other.losses[:steps]) - theirs_S).max()) for other in theirs_otherwise]
    difference_S = ours_S - theirs_S
    return Losses(
        steps,
        float(np.abs(difference_S).max()),
        max(apart, default=None),
        float(difference_S.mean()),
        float(difference_S.std(ddof=1) / steps**0.5) if steps > 1 else None,
    )


def plot(found: dict[str, Any], path: Path) -> bool:
    """Draws the curves and what lies between them, where matplotlib is installed; says whether it did."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    theirs = np.array(found["runs"]["TRL"]["losses"])
    for name, run in found["runs"].items():
        above.plot(run["losses"], label=name, linewidth=1)
        below.plot(np.array(run["losses"]) - theirs, label=f"{name} - TRL", linewidth=1)
    above.set_ylabel("loss, nats per label")
    below.set_ylabel("difference")
    below.set_xlabel("optimizer step")
    above.legend()
    below.legend()
    figure.savefig(path)
    return True
