"""A measured run is a fresh process: what it is asked, what it answers, and the memory of it and its children."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

BENCH = Path(__file__).resolve().parents[1]
_EVERY_SECONDS = 0.5


class Failed(Exception):
    """A process ended without an answer; the message is the end of what it printed."""


def measure(module: str, request: dict[str, Any], out: Path) -> dict[str, Any]:
    """Starts `preparing.MODULE` in an empty folder, waits for its answer, and adds `peak_bytes`: the most memory that
    it and its children held together, what they share counted once."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "request.json").write_text(json.dumps({**request, "out": str(out)}), encoding="utf-8")
    command = [sys.executable, "-m", f"preparing.{module}", str(out / "request.json")]
    with open(out / "log.txt", "wb") as log:
        process = subprocess.Popen(command, cwd=BENCH, stdout=log, stderr=log, env=_environment())
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        status = process.wait()
        watcher.join()
    if status:
        last = (out / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise Failed(f"{module} ended with status {status}: {''.join(last)} ({out}/log.txt)")
    found: dict[str, Any] = json.loads((out / "answer.json").read_text(encoding="utf-8"))
    return {**found, "peak_bytes": peak[0]}


def _environment() -> dict[str, str]:
    """As users have it: what was compiled once is kept, and numpy leaves the other core to the other process."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def asked() -> dict[str, Any]:
    """In the process that was started: its request."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return request


def answer(found: dict[str, Any]) -> None:
    Path(sys.argv[1]).with_name("answer.json").write_text(json.dumps(found), encoding="utf-8")


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """The proportional set size of the whole family, a few times a second."""
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            peak[0] = max(peak[0], sum(map(_held, [root, *root.children(recursive=True)])))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY_SECONDS)


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
