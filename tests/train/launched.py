"""Not a test: what test_launch.py has two processes do. Each job says what under `do`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.console import say
from tunesmith.core.errors import ModelError
from tunesmith.train import worker

RANK = int(os.environ.get("RANK", 0))


def fail(job: dict[str, Any]) -> None:
    if RANK == 1:
        raise ModelError("the second process cannot go on", "it was told so", "tell it otherwise")
    time.sleep(60)


def break_down(job: dict[str, Any]) -> None:
    if RANK == 1:
        raise ZeroDivisionError("a fault of ours")
    time.sleep(60)


def be_killed(job: dict[str, Any]) -> None:
    """The first process waits for the second one, and hears that it is gone before its launcher does."""
    from accelerate import PartialState

    together = PartialState(cpu=True)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    together.wait_for_everyone()


def work_on(job: dict[str, Any]) -> None:
    """Until the first process is asked to stop, which it tells the other."""
    shared = Path(job["shared"])
    with interrupt.deferred("unheard") as asked:
        (shared / f"{RANK}").write_text(str(os.getpid()))
        end = time.monotonic() + 60
        while time.monotonic() < end and not (shared / "stop").is_file():
            time.sleep(0.02)
            if asked():
                (shared / "stop").touch()
    raise interrupt.Interrupted(signal.SIGINT, f"process {RANK} has saved")


def speak(job: dict[str, Any]) -> list[str]:
    say(f"process {RANK} speaks")
    print(f"process {RANK} prints", file=sys.stderr)
    return [os.environ["WORLD_SIZE"], *job["words"]]


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Every case in turn: the log of each, and its best state in a file of its name."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    logs = {}
    for name, case in job["cases"].items():
        outcome, logs[name] = trained(case, Path(job["base"]), Path(job["dataset"]))
        if RANK == 0:
            save_file(outcome.best, Path(job["out"]) / f"{name}.safetensors")
    return logs


def trained(case: dict[str, Any], base: Path, dataset: Path) -> tuple[Any, list[dict[str, Any]]]:
    """One run of the loop, in this process or several: its outcome and log. With `kept` it leaves checkpoints there, or
    goes on from the last but one."""
    import torch

    from tunesmith.kernels.apply import choose
    from tunesmith.models import load, methods
    from tunesmith.models.packed import Scorer
    from tunesmith.models.tokens import Tokens
    from tunesmith.train import checkpoint, loop
    from tunesmith.train.objectives import sft
    from tunesmith.train.processes import join

    settings = loop.Settings(**case["settings"])
    processes = join(settings.sharding)
    tuned = methods.attach(load.model(base, "fp32", packed=True), methods.of(case["method"]), settings.seed)
    keeper, saved = None, None
    if "kept" in case:
        kept = Path(case["kept"])
        with processes.first_before_others():
            found = sorted(kept.glob("step-*"))
            if processes.first and found:
                shutil.rmtree(found[-1])
            saved = checkpoint.newest(kept)
        keeper = checkpoint.Keeper(kept, minutes=0)
    log: list[dict[str, Any]] = []
    rows, validation = Tokens(dataset, "train"), Tokens(dataset, "validation")
    scorer = Scorer(tuned, choose(torch.float32, torch.device("cpu"), None))
    return loop.train(scorer, sft.loss, rows, validation, settings, log.append, keeper, saved), log


if __name__ == "__main__":
    jobs = {f.__name__: f for f in (fail, break_down, be_killed, work_on, speak, train)}
    worker.serve(Path(sys.argv[1]), lambda job: jobs[job["do"]](job))
