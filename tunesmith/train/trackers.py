"""The run's figures as TensorBoard, W&B, MLflow and Trackio keep them, by accelerate's classes for these.

Each tracker has a process of its own that reads one JSON object a line. So its memory, its threads, what it prints and
the environment that it reads when it is imported stay out of training, and one that fails or hangs does not end it.

A tracker writes under the training step's folder and reaches no network, unless its own environment variables say
otherwise (WANDB_MODE=online, MLFLOW_TRACKING_URI=https://..., TRACKIO_SPACE_ID=...). What it would report to its makers
is off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import orjson

from tunesmith.core.console import say
from tunesmith.core.tracking import require

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Track = Callable[[dict[str, Any]], None]

PROJECT = "tunesmith"  # the W&B and Trackio project and MLflow experiment, unless their environment variables name one
_FINISH_SECONDS = 120


@contextmanager
def start(names: list[str], run_name: str, settings: dict[str, Any], folder: Path) -> Iterator[Track]:
    """The trackers of one training run: a function that gives each of them one entry of metrics.jsonl.

    `settings` are stored as the run's configuration. All is written when the block is left. Raises UserError before
    anything starts when a package is missing.
    """
    require(names)
    config = {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in settings.items()}
    with ExitStack() as running:
        tracks = [running.enter_context(_process(name, run_name, config, folder)) for name in names]

        def track(entry: dict[str, Any]) -> None:
            for write in tracks:
                write(entry)

        yield track


@contextmanager
def _process(name: str, run_name: str, settings: dict[str, Any], folder: Path) -> Iterator[Track]:
    """One tracker's process; a failed one is told of once, and the run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "tunesmith.train.trackers", name, run_name, str(folder), json.dumps(settings)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(folder),
            start_new_session=True,  # Ctrl-C stops training; the tracker then reads to the end and finishes
        )
    assert process.stdin is not None
    lines, failed = process.stdin, threading.Event()

    def fail(what: str) -> None:
        if not failed.is_set():
            failed.set()
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            say(f"  {name} {what}; training goes on, and metrics.jsonl holds every figure ({last})")

    def write(entry: dict[str, Any]) -> None:
        try:
            lines.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            lines.flush()
        except BrokenPipeError:
            fail("has stopped")

    try:
        yield write
    finally:
        try:
            lines.close()
        except BrokenPipeError:
            pass  # its exit status tells
        try:
            if process.wait(_FINISH_SECONDS):
                fail("has stopped")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            fail(f"did not finish within {_FINISH_SECONDS} s")


def _environment(folder: Path) -> dict[str, str]:
    """The tracker's environment: ours, with what keeps it local and quiet where the user has not said otherwise.

    What a launcher of several processes set is left out, else the tracker would wait for the others.
    """
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    ours = {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith("ACCELERATE_")}
    local = {
        "WANDB_MODE": "offline",
        "WANDB_CONSOLE": "off",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.resolve() / 'mlflow.db'}",
        "TRACKIO_DIR": str(folder.resolve() / "trackio"),
    }
    if not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & ours.keys():
        local["HF_HUB_OFFLINE"] = "1"  # Trackio asks the hub for the user's name
    silent = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return {**local, **ours, **silent, "OMP_NUM_THREADS": "1"}


def _tensorboard(run_name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(run_name, folder / "tensorboard")


def _wandb(run_name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), name=run_name, dir=folder)


def _mlflow(run_name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker

    return MLflowTracker(PROJECT, run_name=run_name)


def _trackio(run_name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(PROJECT, name=run_name, embed=False, auto_log_cpu=False)


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _main(name: str, run_name: str, folder: str, settings: str) -> None:
    """Gives what stands on standard input to one tracker."""
    from accelerate import PartialState

    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()  # so that a slow tracker never holds up training
    PartialState(cpu=True)  # accelerate's trackers ask it which process they are in
    tracker = _TRACKERS[name](run_name, Path(folder))
    tracker.start()
    tracker.store_init_configuration(json.loads(settings))
    for line in iter(lines.get, None):
        entry = json.loads(line)
        step = entry.pop("step")
        tracker.log({key: value for key, value in entry.items() if isinstance(value, int | float)}, step=step)
    tracker.finish()


if __name__ == "__main__":
    _main(*sys.argv[1:])
