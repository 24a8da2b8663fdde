"""Both sides on the same rows: interleaved pairs and their ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from training import roofline
from training.ours import Engine
from training.ratios import Ratio, intervals, ratio
from training.rival import Rival
from training.runs import Run, measure
from training.workload import Workload

SIDES = ("ours", "documented", "tuned")
DOCUMENTED = Rival()


@dataclass
class Measured:
    """The runs of each side, and the machine's rate of matrix products before each pair."""

    runs: dict[str, list[Run]]
    gemm: list[float]


def pairs(
    workload: Workload, number: int, tuned: Rival, say: Callable[[str], None], limit_seconds: float = math.inf
) -> Measured:
    """Each side once per pair, in an order drawn anew; no pair begins that would end after the limit. Where there is
    one, TRL as documented takes the steps once: it is the slowest, and the same the second time."""
    started = time.monotonic()
    documented = replace(workload, passes=1) if math.isfinite(limit_seconds) else workload
    draw = np.random.default_rng(0)
    found = Measured({side: [] for side in SIDES}, [])
    for pair in range(number):
        spent = time.monotonic() - started
        if pair and spent + spent / pair > limit_seconds:
            say(f"{pair} of {number} pairs: another would take longer than {limit_seconds:.0f} s")
            break
        found.gemm.append(gemm_rate(workload))
        for side in draw.permutation(SIDES).tolist():
            if side == "ours":
                run = workload.ours(Engine())
            elif side == "tuned":
                run = workload.rival(tuned, side)
            else:
                run = documented.rival(DOCUMENTED, side)
            found.runs[side].append(run)
            speed, gigabytes = run.tokens_per_second, run.peak_bytes / 1e9
            say(f"pair {pair + 1} of {number}  {side:<11}{speed:7.1f} tokens/s  {gigabytes:5.2f} GB")
    return found


def figures(workload: Workload, found: Measured, tuned: Rival) -> dict[str, Any]:
    """The benchmark's answer, but for where it was measured."""
    runs, facts, gemm = found.runs, workload.facts(), statistics.median(found.gemm)
    speed = {side: [run.tokens_per_second for run in runs[side]] for side in SIDES}
    peak = {side: [float(run.peak_bytes) for run in runs[side]] for side in SIDES}
    flops = roofline.flops_per_token(roofline.shape(workload.base), facts, workload.full)
    first = {side: [run.first_tokens_per_second for run in runs[side]] for side in SIDES}
    ours = statistics.median(speed["ours"])
    return {
        "method": "full" if workload.full else "lora",
        "pairs": len(speed["ours"]),
        "tokens_per_second": {side: round(statistics.median(speed[side]), 1) for side in SIDES},
        **_ratio("ratio_vs_default", ratio(speed["ours"], speed["documented"])),
        **_ratio("ratio_vs_tuned", ratio(speed["ours"], speed["tuned"])),
        "tokens_per_second_at_first": {side: round(statistics.median(first[side]), 1) for side in SIDES},
        **_ratio("ratio_vs_tuned_at_first", ratio(first["ours"], first["tuned"])),
        **_ratio("peak_memory_ratio", ratio(peak["ours"], peak["tuned"])),
        "peak_gb": {side: _gb([run.peak_bytes for run in runs[side]]) for side in SIDES},
        "peak_gb_since_training_began": {side: _gb([run.training_peak_bytes for run in runs[side]]) for side in SIDES},
        "seconds_to_first_step": {side: _median(run.seconds_to_first_step for run in runs[side]) for side in SIDES},
        "seconds_to_first_loss": {side: _median(run.seconds_to_first_loss for run in runs[side]) for side in SIDES},
        "roofline_fraction": round(ours * flops / gemm, 4),
        "gemm_flops_per_second": {"median": gemm, "lowest": min(found.gemm), "highest": max(found.gemm)},
        "flops_per_token": flops,
        "intervals": intervals(len(speed["ours"])),
        "passes": workload.passes,
        "rows": facts,
        "threads": {side: runs[side][0].facts["threads"] for side in SIDES},
        "stolen_share": max(run.facts["stolen_share"] or 0.0 for side in SIDES for run in runs[side]),
        "kernel_notes": runs["ours"][0].facts["kernels"],
        "rival": {"documented": DOCUMENTED.name, "tuned": tuned.name, "tuned_settings": asdict(tuned)},
    }


def gemm_rate(workload: Workload) -> float:
    """Floating-point operations a second of this machine's matrix products at the model's shapes."""
    asked = roofline.request(workload.base, workload.facts(), workload.full)
    return float(measure("roofline", asked, workload.out / "gemm")["flops_per_second"])


def _ratio(name: str, found: Ratio) -> dict[str, Any]:
    return {name: round(found.median, 3), f"{name}_interval": [round(found.low, 3), round(found.high, 3)]}


def _gb(peaks: Sequence[int | None]) -> float | None:
    known = [peak for peak in peaks if peak is not None]
    return round(statistics.median(known) / 1e9, 2) if known else None


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)
