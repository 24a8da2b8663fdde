"""What a benchmark trains on: base, rows, order and first adapter, and how a side is started on them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from circumstances import found_in

from training import rows
from training.ours import Engine
from training.rival import Rival
from training.runs import Job, Run, measure, run
from tunesmith.core.errors import DataError
from tunesmith.models import base as bases
from tunesmith.models.tokens import Tokens

MODEL = "smollm2-135m-instruct"
DATA = "formats/alpaca_en_demo.json"
ROWS = 8  # of an optimizer step
_NUMBER = count(1)


@dataclass(frozen=True)
class Plan:
    """Optimizer steps that are timed, those before them that are not, and how often each run takes the timed ones."""

    steps: int
    warmup: int
    passes: int = 1


@dataclass(frozen=True)
class Workload:
    """One set of rows, for both sides, whose timed steps every run takes `passes` times; the last one tells the speed.
    Each run keeps its request, log and answer in a folder of its own in `out`."""

    base: Path
    tokens: Path
    adapter: Path | None
    schedule: rows.Schedule
    passes: int
    out: Path

    @property
    def full(self) -> bool:
        return self.adapter is None

    def facts(self) -> dict[str, Any]:
        return rows.facts(Tokens(self.tokens, "train"), self.schedule.mixed[self.schedule.warmup :])

    def ours(self, engine: Engine, name: str = "ours") -> Run:
        return self._run(self._job(name, "ours", engine, self.schedule.mixed))

    def rival(self, rival: Rival, name: str, *, backwards: bool = False, limit_seconds: float | None = None) -> Run:
        """`backwards` turns the rows of each step round: the same mathematics, other rounding. What compiles always
        meets the timed steps once before."""
        order = self.schedule.grouped if rival.grouped else self.schedule.mixed
        if backwards:
            order = [step[::-1] for step in order]
        passes = max(2, self.passes) if rival.compiled else self.passes
        return self._run(replace(self._job(name, "rival", rival, order), passes=passes), limit_seconds)

    def profile(self) -> dict[str, Any]:
        """Where the time of our own steps goes."""
        job = replace(self._job("profile", "profile", Engine(), self.schedule.mixed), passes=1)
        return measure("profile", asdict(job), self.out / "profile")

    def _run(self, job: Job, limit_seconds: float | None = None) -> Run:
        return run(job, self.out / f"{next(_NUMBER):03d}-{job.side}", limit_seconds)

    def _job(self, name: str, side: str, settings: Engine | Rival, order: list[list[int]]) -> Job:
        return Job(
            name=name,
            side=side,
            base=str(self.base),
            rows=str(self.tokens),
            adapter=str(self.adapter) if self.adapter else None,
            order=order,
            warmup=self.schedule.warmup,
            passes=self.passes,
            settings=asdict(settings),
        )


def prepare(out: Path, tokens: Path | None, plan: Plan, full: bool) -> Workload:
    """Tokenises the rows into `out`, unless `tokens` is a folder with tokenised ones, and writes the adapter."""
    out, base = out.resolve(), bases.fetch(MODEL, Path()).folder
    assert base is not None
    if tokens is None:
        tokens = out / "rows"
        rows.tokenise(_data(), base, tokens)
    adapter = None if full else out / "adapter"
    if adapter:
        rows.initial_adapter(base, adapter, seed=0)
    schedule = rows.schedule(Tokens(tokens, "train").lengths, plan.steps, plan.warmup, ROWS, seed=0)
    return Workload(base, tokens.resolve(), adapter, schedule, plan.passes, out / "runs")


def _data() -> Path:
    folder = os.environ.get("TUNESMITH_REAL_DATA")
    path = Path(folder or ".") / DATA
    if not folder or not path.is_file():
        raise DataError(
            f"there is no {DATA}",
            "TUNESMITH_REAL_DATA does not name the folder that has it",
            "set TUNESMITH_REAL_DATA, or give tokenised rows: --tokens output/steps/format",
        )
    return path


def circumstances() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return found_in(("torch", "transformers", "peft", "trl", "accelerate"), ("kernels", "models", "train"))
