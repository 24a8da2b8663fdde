"""One run is one fresh process: what it is told, what it measures, and how it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.core import hardware

BENCH = Path(__file__).resolve().parents[1]
Precision = Literal["bf16", "fp32"]


def precision() -> Precision:
    """Of a model of this size, as the plan has it: bf16 where the machine multiplies it in hardware."""
    return "bf16" if hardware.probe().bf16 else "fp32"


@dataclass(frozen=True)
class Job:
    """What a run is told. `order` holds the rows of each optimizer step; the first `warmup` steps are not timed, the
    others are taken `passes` times, and the last pass tells the speed. `settings` are those of the side: `ours.Engine`
    or `rival.Rival`. Without an adapter all weights are trained."""

    name: str
    side: str
    base: str
    rows: str
    adapter: str | None
    order: list[list[int]]
    warmup: int
    passes: int
    settings: dict[str, Any]
    learning_rate: float = 2e-4
    seed: int = 0
    launched: float = 0.0

    @property
    def steps(self) -> list[list[int]]:
        """The rows of all steps, as often as they are taken."""
        return self.order[: self.warmup] + self.order[self.warmup :] * self.passes


@dataclass(frozen=True)
class Run:
    """What a run measured, step by step; tokens are real ones, without padding. `losses` are in nats per label."""

    name: str
    warmup: int
    passes: int
    losses: list[float]
    gradient_norms: list[float]
    tokens: list[int]
    step_seconds: list[float]
    seconds_to_first_step: float
    seconds_to_first_loss: float
    peak_bytes: int
    training_peak_bytes: int | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """In the last pass over the timed steps: what new sizes and compilers cost once was before it."""
        return self._speed(self.passes - 1)

    @property
    def first_tokens_per_second(self) -> float:
        """In the first one."""
        return self._speed(0)

    def _speed(self, number: int) -> float:
        of_a_pass = (len(self.tokens) - self.warmup) // self.passes
        steps = slice(self.warmup + number * of_a_pass, self.warmup + (number + 1) * of_a_pass)
        return sum(self.tokens[steps]) / sum(self.step_seconds[steps])


class RunFailed(Exception):
    """A run ended without a result; the message is the end of what it printed."""


class Meter:
    """Kept inside a run's process: a mark at the end of each optimizer step, and the peak of resident memory.

    A step lasts from the mark before it, so that data loading, the optimizer and logging are all inside."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.marks: list[float] = []
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.tokens: list[int] = []

    def begin(self) -> None:
        """To be called when the first step begins."""
        self.peak_before = hardware.peak_memory_bytes()
        self.reset = hardware.reset_peak_memory()
        self.marks.append(time.time())

    def step(self, loss: float, gradient_norm: float, tokens: int) -> None:
        self.marks.append(time.time())
        self.losses.append(loss)
        self.gradient_norms.append(gradient_norm)
        self.tokens.append(tokens)

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        peak = hardware.peak_memory_bytes()
        run = Run(
            self.job.name,
            self.job.warmup,
            self.job.passes,
            self.losses,
            self.gradient_norms,
            self.tokens,
            [after - before for before, after in zip(self.marks, self.marks[1:])],
            self.marks[0] - self.job.launched,
            self.marks[1] - self.job.launched,
            max(self.peak_before, peak),
            peak if self.reset else None,
            facts,
        )
        path.write_text(json.dumps(asdict(run)), encoding="utf-8")


def run(job: Job, folder: Path, limit_seconds: float | None = None) -> Run:
    """Starts the job's side in a process of its own and waits for it; `folder` keeps its job, log and result.

    Raises RunFailed when it fails or takes longer than `limit_seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    load, before = os.getloadavg()[0], _ticks()
    found = _process(f"training.{job.side}", {**asdict(job), "launched": time.time()}, folder, limit_seconds)
    found["facts"] |= {"load_average_before": load, "stolen_share": _stolen_share(before, _ticks())}
    return Run(**found)


def measure(module: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same for a process that answers a request with a dictionary instead of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    return _process(f"training.{module}", request, folder, None)


def request_and_answer() -> tuple[dict[str, Any], Path]:
    """In the process that was started: what it is asked, and where its answer goes."""
    path = Path(sys.argv[1])
    return json.loads(path.read_text(encoding="utf-8")), path.with_name("answer.json")


def _process(module: str, request: dict[str, Any], folder: Path, limit_seconds: float | None) -> dict[str, Any]:
    (folder / "answer.json").unlink(missing_ok=True)
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", module, str(folder.resolve() / "request.json")]
    with open(folder / "log.txt", "wb") as log:
        try:
            subprocess.run(
                command,
                cwd=BENCH,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit_seconds,
                check=True,
                process_group=0,  # torch.compile's workers end their whole group
            )
        except subprocess.TimeoutExpired:
            raise RunFailed(f"stopped after {limit_seconds:.0f} s") from None
        except subprocess.CalledProcessError as error:
            last = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RunFailed(f"it ended with status {error.returncode}: {''.join(last)} ({folder}/log.txt)") from None
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return answer


def _environment() -> dict[str, str]:
    """The shell's, without what it says about threads: each side sets its own."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    return own | {"HF_HUB_OFFLINE": "1"}


def _ticks() -> list[int]:
    stat = Path("/proc/stat")
    return list(map(int, stat.read_text().split("\n", 1)[0].split()[1:9])) if stat.is_file() else []


def _stolen_share(before: list[int], after: list[int]) -> float | None:
    """Share of the machine's time that the hypervisor gave to others."""
    spent = [b - a for a, b in zip(before, after)]
    return round(spent[7] / sum(spent), 4) if sum(spent) else None
