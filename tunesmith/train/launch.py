"""Training in several processes: accelerate's launcher starts them, and this process waits for what they come to.

    this process ─── accelerate launch ─┬─ process 0   shows progress, writes checkpoints and the result
                                        ├─ process 1
                                        └─ ...

They share a folder: job.json is what to do, result.json what came of it, error-RANK.json a UserError of any of them,
traceback-RANK.txt a fault of ours, launch.log what they and their launcher print. Standard input is a pipe from here:
a byte on it asks process 0 to save and end, and its end, if this process is killed, ends them all (worker.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.core import errors, interrupt, store
from tunesmith.core.errors import ResourceError, UserError

WORKER = ("--module", "tunesmith.train.worker")
_END_SECONDS = 10
_CONFIG = {  # so that the user's own default for other launches is not read
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # accelerate's name for torch's launcher; processes without a GPU use the CPU
    "machine_rank": 0,
    "num_machines": 1,
    "mixed_precision": "no",
    "main_training_function": "main",
    "use_cpu": False,
}


def run(job: dict[str, Any], processes: int, program: tuple[str, ...] = WORKER) -> Any:
    """What process 0 returns for this job, which is plain JSON.

    Raises a UserError that was raised in any of them, Interrupted when the user asked for an end, and RuntimeError with
    the traceback of the process that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as name:
        folder = Path(name)
        store.write_json(folder / "job.json", job)
        store.write_json(folder / "accelerate.json", {**_CONFIG, "num_processes": processes})
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.json")]
        with open(folder / "launch.log", "wb") as log:
            launcher = subprocess.Popen(
                [*command, "--main_process_port", "0", *program, str(folder)],
                stdin=subprocess.PIPE,
                stdout=2,  # process 0 speaks to the user there
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        asked = _wait(launcher)
        return _outcome(folder, processes, asked)


def _wait(launcher: subprocess.Popen[bytes]) -> int | None:
    """Waits for the end; returns the signal by which the user asked for it."""
    pipe, told = launcher.stdin, False
    assert pipe is not None
    try:
        with interrupt.deferred("finishing this step, then saving; once more stops at once") as asked:
            while launcher.poll() is None:
                if asked() and not told:
                    told = True
                    pipe.write(b"!")
                    pipe.flush()
                try:
                    launcher.wait(0.2)
                except subprocess.TimeoutExpired:
                    pass
            return asked()
    finally:
        pipe.close()
        try:
            launcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()


def _outcome(folder: Path, processes: int, asked: int | None) -> Any:
    if (folder / "result.json").is_file():
        result = store.read_json(folder / "result.json")
        if "saved" in result:
            raise interrupt.Interrupted(asked or result["signal"], result["saved"])
        return result["returned"]
    for path in sorted(folder.glob("error-*.json")):
        told = store.read_json(path)
        kind = {k.__name__: k for k in (errors.ConfigError, errors.DataError, errors.ModelError, ResourceError)}
        raise kind.get(told["kind"], UserError)(told["what"], told["why"], told["next"])
    if asked:
        raise interrupt.Interrupted(asked)
    log = (folder / "launch.log").read_text(errors="replace").strip().splitlines()
    if any("Signal 9" in line for line in log):
        raise ResourceError(
            f"one of {processes} training processes was killed",
            "most often that is the system, when memory is short",
            "close other programs and run again: it goes on from its last checkpoint; or lower "
            "train.micro_batch_tokens, and begin anew with `tunesmith run --fresh`",
        )
    if faults := sorted(folder.glob("traceback-*.txt"), key=lambda path: path.stat().st_mtime_ns):
        raise RuntimeError(f"one of {processes} training processes failed:\n{faults[0].read_text()}")
    raise RuntimeError("\n".join([f"{processes} training processes could not be started:", *log[-20:]]))
