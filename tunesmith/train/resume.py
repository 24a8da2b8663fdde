"""What a training run that goes on takes over from the one that was stopped: threads, log, and what it should hear.

The same weights bit for bit need the same sums in the same order: the same machine, libraries and number of threads,
and no GPU, on which some sums have no fixed order. What can be kept the same is; what cannot is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

from tunesmith.core import hardware, store
from tunesmith.core.console import say
from tunesmith.core.records import Decision
from tunesmith.core.step import versions

if TYPE_CHECKING:
    from tunesmith.core.hardware import Load
    from tunesmith.train.checkpoint import State


def made_with(threads: int, kernels: Sequence[str]) -> dict[str, str]:
    """What the last bits of a sum depend on; `kernels` are the notes of the scorer."""
    return {
        **versions(),
        "machine": hardware.probe().name,
        "threads": str(threads),
        "kernels": "; ".join(kernels) or "all fast",
    }


def threads(saved: State | None, processes: int = 1, pinned: int | None = None, since: Load | None = None) -> Decision:
    """Of each process: those of the project file; those of the run that was stopped, where this machine has as many
    cores; those that OMP_NUM_THREADS allows, which launchers set for each of several processes; or those that are free,
    from `since` on (of several processes, each would take the others' work for load)."""
    if pinned:
        slow = f", but there are only {hardware.cores()} cores: slow" if pinned > hardware.cores() else ""
        return Decision(pinned, f"pinned in the project file{slow}")
    before = int(saved.values["around"]["made_with"]["threads"]) if saved else None
    if before is None or before > hardware.cores():
        asked = os.environ.get("OMP_NUM_THREADS", "")
        if processes == 1 and asked.isdigit() and int(asked):
            return Decision(int(asked), "OMP_NUM_THREADS is set")
        free = hardware.threads(since if processes == 1 else None)
        return free if processes == 1 else Decision(max(1, free.value // processes), f"a process; {free.reason}")
    return Decision(before, "as before the interruption: sums over another number of threads round otherwise")


def tokens(saved: State | None) -> int:
    """How many were trained on before."""
    return int(saved.values["outcome"]["tokens"]) if saved else 0


def announce(saved: State | None, made_with: dict[str, str]) -> None:
    """Says where a run goes on, and what may make its last bits differ."""
    if saved is None:
        return
    before = saved.values["around"]["made_with"]
    changed = [f"{name} {before.get(name)} -> {now}" for name, now in made_with.items() if before.get(name) != now]
    if hardware.probe().gpu:
        changed.append("some sums on a GPU have no fixed order")
    if saved.step == saved.of or saved.values["outcome"]["stopped_early"]:
        say(f"  training had come to its end, at step {saved.step:,} of {saved.of:,}")
    else:
        say(f"  continues at step {saved.step + 1:,} of {saved.of:,}")
    if changed:
        say(f"  the last bits of its weights may differ from those of a run without a stop: {'; '.join(changed)}")


@contextmanager
def log_file(path: Path, saved: State | None) -> Iterator[BinaryIO]:
    """The log, to be written on: cut to its length at the checkpoint, empty where there is none. What is damaged of it
    is left out and told: weights do not depend on it."""
    step, length = (saved.step, saved.values["around"]["log_bytes"]) if saved else (0, 0)
    left = path.read_bytes()[:length] if path.exists() else b""
    whole = b"".join(line for line in left.splitlines(keepends=True) if _is_entry(line, step))
    if len(whole) < length:
        say(f"  {path.name} is damaged: {length - len(whole):,} of its {length:,} bytes are lost")
    if whole != left:
        store.write_text(path, whole.decode())
    with open(path, "ab") as file:
        file.truncate(len(whole))
        yield file


def _is_entry(line: bytes, last_step: int) -> bool:
    """Whether the line is whole, and of the run up to this step: where a damaged log has become shorter, what was
    written after the checkpoint stands where the log ended before."""
    try:
        return line.endswith(b"\n") and bool(orjson.loads(line)["step"] <= last_step)
    except (ValueError, TypeError, KeyError):
        return False


def log_length(log: BinaryIO) -> dict[str, int]:
    """The log's length, up to which it is now on the disk."""
    log.flush()
    os.fsync(log.fileno())
    return {"log_bytes": log.tell()}
