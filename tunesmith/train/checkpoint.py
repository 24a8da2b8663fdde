"""Checkpoints: all that a training run needs to go on bit for bit, in folders that are whole or not there.

    KEPT/step-00000040/tensors.safetensors   fp32 parameters, optimizer state, the best parameters so far
    KEPT/step-00000040/state.json            everything else, and the digests by which damage is found

A checkpoint is written in a hidden folder, forced to the disk and published by one rename. The two newest are kept, so
that a damaged one costs the time back to the one before and not the run.

Nothing random is saved, because nothing random is left to do: the order of the rows is a pure function of the seed
(train/batches.py), and the loop asserts that training drew no random number.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.core import store, unfinished
from tunesmith.core.console import say
from tunesmith.core.errors import ResourceError
from tunesmith.core.interrupt import Asked, Interrupted
from tunesmith.train.processes import ALONE, Processes

KEEP = 2
COST = 0.01  # the share of a run's time that writing checkpoints may take
FIRST_SECONDS = 60.0  # a run that is killed earlier has lost little


@dataclass(frozen=True)
class State:
    """A run between two optimizer steps. `values` are plain JSON."""

    step: int
    of: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass
class Keeper:
    """Saves a run when it is time to, and when it is asked to end.

    A checkpoint is due `minutes` after the last one, and at each evaluation; but never before the run has lasted a
    minute (or `minutes`, if that is less), nor before a hundred times the seconds that the last write took have passed
    since. So a run of a minute writes none, and a long one spends one hundredth of its time on them at most: a model
    whose checkpoint takes 4 seconds gets one every 400, however often it is evaluated. With `minutes=0`
    one is written after every optimizer step, whatever it costs.

    `around()` tells what belongs to the run outside the loop (the log's length, threads, versions); it is saved as
    `values["around"]`.
    """

    folder: Path
    minutes: float
    around: Callable[[], dict[str, Any]] = dict
    asked: Asked = lambda: None
    last: float = field(default_factory=time.monotonic)
    write_seconds: float = 0.0

    def due(self, evaluated: bool) -> bool:
        since = time.monotonic() - self.last
        if not self.minutes:
            return True
        if since < self.write_seconds / COST:
            return False
        interval = 60 * self.minutes
        first = not self.write_seconds
        return since >= interval or (evaluated and not (first and since < FIRST_SECONDS))

    def after_step(self, state: Callable[[], State], evaluated: bool, processes: Processes = ALONE) -> None:
        """To be called between two optimizer steps. Raises Interrupted, once the run is saved, if that was asked for; a
        disk that is too full for a checkpoint is told and does not end the run. Of several processes the first one is
        asked, and saves."""
        signal, due = processes.agree(lambda: (self.asked(), self.due(evaluated)))
        if signal is None and not due:
            return
        now, started = state(), time.monotonic()
        if not processes.first:
            if signal is not None:
                raise Interrupted(signal)
            return
        try:
            save(self.folder, replace(now, values={**now.values, "around": self.around()}))
            saved = f"saved after step {now.step:,} of {now.of:,}"
        except ResourceError as error:
            say(f"no checkpoint of step {now.step:,} could be written: {error.what}, {error.why}")
            saved = ""
        self.last = time.monotonic()
        self.write_seconds = self.last - started
        if signal is not None:
            raise Interrupted(signal, saved)


def save(folder: Path, state: State) -> None:
    """Writes one checkpoint and removes all but the newest two. Raises ResourceError where it cannot be written."""
    store.require_space(folder, sum(t.numel() * t.element_size() for t in state.tensors.values()), "a checkpoint")
    for left in folder.glob(".step-*"):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"step-{state.step:08}"
    hidden = folder / f".{final.name}"
    try:
        _write(hidden, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise ResourceError(
            f"{folder} cannot be written to",
            f"the system says: {error}",
            "free some space, and run again" if store.disk_is_full(error) else f"see why {folder} takes no such file",
        ) from None
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
    os.replace(hidden, final)
    _to_disk(folder)
    for old in unfinished.checkpoints(folder)[:-KEEP]:
        os.replace(old, gone := old.with_name(f".{old.name}"))  # so that half of it is never seen
        shutil.rmtree(gone, ignore_errors=True)


def _write(folder: Path, state: State) -> None:
    folder.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, folder / "tensors.safetensors")
    written = {"step": state.step, "of": state.of, "values": state.values}
    written["tensors"] = _sha256(folder / "tensors.safetensors")
    (folder / "state.json").write_bytes(orjson.dumps({**written, "digest": _digest(written)}))
    for path in (folder / "tensors.safetensors", folder / "state.json", folder):
        _to_disk(path)


def newest(folder: Path) -> State | None:
    """The newest whole checkpoint, its tensors on the CPU; None if there is none. Damaged ones are told and removed.
    Raises ResourceError where one cannot be read, which does not say that it is damaged."""
    for path in reversed(unfinished.checkpoints(folder)):
        try:
            return _load(path)
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say(f"the checkpoint {path} is damaged ({error}); looking for the one before")
            shutil.rmtree(path)
        except OSError as error:
            raise ResourceError(
                f"the checkpoint {path} cannot be read",
                f"the system says: {error.strerror or error}",
                "run the same command again when the disk answers; `tunesmith run --fresh` starts the step over",
            ) from None
    return None


def _load(path: Path) -> State:
    """Raises FileNotFoundError, ValueError, KeyError, TypeError or SafetensorError for a checkpoint that is not as it
    was written, and other OSErrors where it cannot be read."""
    written = dict(orjson.loads((path / "state.json").read_bytes()))
    if written.pop("digest") != _digest(written) or written["tensors"] != _sha256(path / "tensors.safetensors"):
        raise ValueError("its digest differs")
    return State(written["step"], written["of"], load_file(path / "tensors.safetensors"), written["values"])


def part(saved: State, name: str) -> dict[str, Tensor]:
    """The tensors of a part of the run, by their names in it."""
    return {key.partition("/")[2]: t for key, t in saved.tensors.items() if key.startswith(f"{name}/")}


def _digest(written: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(written, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
