"""One of the processes that train together; `accelerate launch` starts it for launch.py, with the folder of its job.

The processes have an order, and only the first one speaks: its standard output is the user's terminal. What others
print, and libraries in any of them, goes to launch.log.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.core import console, store
from tunesmith.core.errors import UserError, settings_named
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.step import Artifact


def serve(folder: Path, work: Callable[[dict[str, Any]], Any]) -> None:
    """Does the folder's job, and leaves there what came of it: the first process the result, any process its error."""
    rank = int(os.environ["RANK"])

    def keep(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = "".join(traceback.format_exception(kind, error, trace))
        (folder / f"traceback-{rank}.txt").write_text(told, encoding="utf-8")

    sys.excepthook = keep
    _end_at_once_on_sigterm()
    console.err.quiet = rank > 0
    if rank == 0:
        console.err.file = sys.stdout
        threading.Thread(target=_listen, daemon=True).start()
    try:
        job = store.read_json(folder / "job.json")
        with settings_named(job.get("names", {})):
            result = {"returned": work(job)}
    except Interrupted as stopped:
        result = {"signal": stopped.number, "saved": stopped.saved}
    except UserError as error:
        told = {"kind": type(error).__name__, "what": error.what, "why": error.why, "next": error.next}
        store.write_json(folder / f"error-{rank}.json", told)
        if rank:
            time.sleep(1)  # where all raise the same, the first process is heard out before the launcher ends it
        sys.exit(1)
    if rank == 0:
        store.write_json(folder / "result.json", result)


def _end_at_once_on_sigterm() -> None:
    """The launcher sends SIGTERM when another process has failed: nothing is left to wait for or to save."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end() -> None:
        signal.sigwait({signal.SIGTERM})
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()


def _listen() -> None:
    """A byte from launch.py is the user's Ctrl-C; the pipe's end, that launch.py's process is gone. The launcher ends
    the other processes when this one does."""
    while os.read(0, 1):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


def train(job: dict[str, Any]) -> Any:
    """The training step, as this process has it to do."""
    from tunesmith.models.base import Base
    from tunesmith.train import run

    plan, dataset = (Artifact(**{**job[name], "folder": Path(job[name]["folder"])}) for name in ("plan", "dataset"))
    return run.work(plan, Base(**job["base"]), dataset, Path(job["out"]), Path(job["kept"]))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), train)
