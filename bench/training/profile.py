"""Where the time of our own steps goes, and what compiling the kernels takes once. Started by `runs.measure` in a
process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import ours
from training.rows import RANK
from training.runs import Job, request_and_answer
from tunesmith.core import hardware, store

LAYERS, LOW_RANK, HEAD = "matrix products of the layers", "of the low-rank updates", "of the head"
ATTENTION, LOOPS, PACKING = "attention", "elementwise loops", "reading and packing rows"
REST = "all else: optimizer, allocation, Python"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


@dataclass
class Spent:
    """Seconds, and the floating-point operations of matrix products."""

    seconds: float = 0.0
    flops: int = 0


def main() -> None:
    hardware.calm_threads()
    import torch
    from torch.profiler import ProfilerActivity, profile

    from tunesmith.kernels import native
    from tunesmith.train import loop

    request, answer = request_and_answer()
    job = Job(**request)
    torch.set_num_threads(hardware.threads().value)
    native._call = _marked(native._call)
    model = ours._scorer(job, ours.Engine())  # libraries and weights are there, and nothing of training yet
    hardware.give_memory_back()
    resident_bytes = hardware.resident_bytes()
    del model
    own = ours.Training(job, ours.Engine())
    for rows in own.steps:  # passes of new sizes run in another thread, which is not looked at
        own.step(rows)
    packing = Spent()
    loop.pack = _timed(loop.pack, packing)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        started = time.perf_counter()
        tokens = sum(own.step(rows)[0].tokens for rows in own.steps[job.warmup :])
        seconds = time.perf_counter() - started
    vocabulary = store.read_json(Path(job.base) / "config.json")["vocab_size"]
    spent = {kind: Spent() for kind in (LAYERS, LOW_RANK, HEAD, ATTENTION, LOOPS)}
    for event in found.key_averages(group_by_input_shape=True):
        kind, flops = _kind(event.key, event.input_shapes, vocabulary)
        if kind:
            spent[kind].seconds += event.self_cpu_time_total / 1e6
            spent[kind].flops += flops * event.count
    spent[PACKING] = packing
    spent[REST] = Spent(seconds - sum(each.seconds for each in spent.values()))
    kinds = {
        kind: {
            "share": round(each.seconds / seconds, 4),
            "flops_per_second": each.flops / each.seconds if each.flops else None,
        }
        for kind, each in spent.items()
    }
    found = {"tokens_per_second": round(tokens / seconds, 1), "kinds": kinds, "resident_before_bytes": resident_bytes}
    store.write_json(answer, {**found, "compile_seconds": _compile_seconds()})


def _compile_seconds() -> float | None:
    """Of all kernels, with nothing kept from before; None without a compiler."""
    from tunesmith.kernels import native

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            native.load(Path(folder))
        except native.Unavailable:
            return None
        return round(time.perf_counter() - started, 2)


def _marked(call: Callable[..., None]) -> Callable[..., None]:
    """Compiled functions leave their names in the profile."""
    from torch.profiler import record_function

    def run(library: Any, name: str, *arguments: Any) -> None:
        with record_function(f"compiled {name}"):
            call(library, name, *arguments)

    return run


def _timed(work: Callable[..., Any], spent: Spent) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments, **named)
        spent.seconds += time.perf_counter() - started
        return result

    return run


def _kind(name: str, shapes: list[list[int]], vocabulary: int) -> tuple[str | None, int]:
    """What an operation belongs to, and its arithmetic if it is a product."""
    if name.startswith("compiled"):
        return ATTENTION if "attention" in name else LOOPS, 0
    if name not in PRODUCTS:
        return None, 0
    (rows, inner), (_, columns) = [shape for shape in shapes if shape][0 if name == "aten::mm" else 1 :][:2]
    sizes = (rows, inner, columns)
    kind = HEAD if vocabulary in sizes else LOW_RANK if min(sizes) <= 3 * RANK else LAYERS
    return kind, 2 * rows * inner * columns


if __name__ == "__main__":
    main()
