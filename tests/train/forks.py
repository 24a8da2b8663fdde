"""Not a test: a process that imports torch once and forks a child for each run, so that twenty kills are not twenty
imports. It holds itself and its children to one core, and so to one thread.

Each line of standard input is a request, each line of standard output its answer:

    {"run": [arguments of tunesmith], "in": FOLDER, "log": FILE}                      the child's process id
    {"train": DECISIONS, "base": ..., "dataset": ..., "out": FOLDER, "log": FILE}     the child's process id
    {"wait": PID}                                                 its exit status, or minus the signal that killed it
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def serve() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    from tunesmith.models import methods  # noqa: F401
    from tunesmith.train import loop  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                work(request)
        print(answer, flush=True)


def work(request: dict[str, Any]) -> None:
    """In the child: what was asked for, and the end of the process."""
    status = 0
    with open(request["log"], "ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        if "run" in request:
            command_line(request["run"], request["in"])
        else:
            training_step(request)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    sys.stderr.flush()
    os._exit(status)


def command_line(arguments: list[str], folder: str) -> None:
    from tunesmith import cli

    os.chdir(folder)
    sys.argv = ["tunesmith", *arguments]
    cli.main()


def training_step(request: dict[str, Any]) -> None:
    from tunesmith.core.console import say
    from tunesmith.core.step import Artifact, Steps
    from tunesmith.models.base import Base
    from tunesmith.train import run as training

    plan = Artifact("plan", json.dumps(request["train"]), Path(), "done", {"decisions": request["train"]})
    dataset = Artifact(**{**request["dataset"], "folder": Path(request["dataset"]["folder"])})
    Steps(Path(request["out"]), say=say)("train", training.run, plan, Base(**request["base"]), dataset)


if __name__ == "__main__":
    serve()
