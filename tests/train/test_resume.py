"""A run that is killed or stopped, at any moment, ends with the bytes of a run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunesmith.core import store
from tunesmith.core.console import progress
from tunesmith.core.project import Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.models.base import Base
from tunesmith.plan import planner
from tunesmith.train import resume

if TYPE_CHECKING:
    from tunesmith.train.checkpoint import State

KILLS = 20
TRAIN = Train(
    rank=4, alpha=8, precision="bf16", learning_rate=5e-3, epochs=8, batch_tokens=400, micro_batch_tokens=250,
    evaluations=6, patience=None, warmup=0.1, weight_decay=0.01)  # fmt: skip
Write = Callable[..., Path]


class Forks:
    """Runs in children of one process that has torch imported (forks.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self, pid: int, number: int = signal.SIGKILL) -> int:
        """Sends the signal; returns the exit status, or minus the signal that ended the child."""
        os.kill(pid, number)
        return self.ask(wait=pid)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    script = Path(__file__).with_name("forks.py")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


def newest_step(kept: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in kept.glob("step-*")]
    return max(steps, default=0)


def log_lines(kept: Path) -> int:
    log = kept / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def without_measurements(log: Path) -> list[dict[str, Any]]:
    measured = ("step_seconds", "tokens_per_second", "forecast_bytes")
    return [{key: value for key, value in entry.items() if key not in measured} for entry in store.read_jsonl(log)]


def training(tiny: Base, dataset: Artifact, out: Path, minutes: float) -> dict[str, Any]:
    """A request for a training step on its own, with a checkpoint after so many minutes."""
    decisions = Steps(out)("plan", planner.run, TRAIN, tiny, dataset).summary["decisions"]
    plan = {**decisions, "checkpoint_minutes": {"value": minutes, "reason": "of the test"}}
    base = {"name": tiny.name, "identity": tiny.identity, "folder": str(tiny.folder)}
    given = {**vars(dataset), "folder": str(dataset.folder)}
    return {"train": plan, "base": base, "dataset": given, "out": str(out), "log": f"{out}.log"}


def moment(draw: random.Random, kept: Path) -> None:
    """Waits for a random moment of a life: a step or two on, within the writing of a checkpoint, or any time at all."""
    begun, end = newest_step(kept), time.monotonic() + draw.uniform(0, 1.5)
    steps = begun + draw.randint(1, 3)
    match draw.choice(["at a step", "writing", "any time"]):
        case "at a step":
            until(lambda: newest_step(kept) >= steps)
        case "writing":
            until(lambda: newest_step(kept) >= steps and any(kept.glob(".step-*")))
            time.sleep(draw.uniform(0, 0.004))
        case _:
            until(lambda: time.monotonic() >= end or newest_step(kept) >= begun + 4)


@pytest.mark.slow
def test_twenty_kills_change_nothing(forks: Forks, tiny: Base, dataset: Artifact, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forks.ask(wait=forks.ask(**training(tiny, dataset, whole, 5))) == 0, Path(f"{whole}.log").read_text()
    draw, kept = random.Random(0), killed / "unfinished/train"
    for kill in range(KILLS):
        pid = forks.ask(**training(tiny, dataset, killed, 0))
        moment(draw, kept)
        assert forks.kill(pid) == -signal.SIGKILL, f"life {kill} ended by itself"
        if kill == KILLS // 2:
            damaged = max(kept.glob("step-*")) / "tensors.safetensors"
            os.truncate(damaged, damaged.stat().st_size // 2)
    assert newest_step(kept) > 0
    assert forks.ask(wait=forks.ask(**training(tiny, dataset, killed, 0))) == 0, Path(f"{killed}.log").read_text()

    [wanted], [found] = (list((out / "steps/train").glob("[!.]*")) for out in (whole, killed))
    assert (found / "adapter/adapter_model.safetensors").read_bytes() == (
        wanted / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert without_measurements(found / "metrics.jsonl") == without_measurements(wanted / "metrics.jsonl")
    for key in ("best_step", "validation_loss", "tokens", "learnt_tokens", "steps"):
        assert (
            store.read_json(found / "record.json")["summary"][key]
            == (store.read_json(wanted / "record.json")["summary"][key])
        )
    told = Path(f"{killed}.log").read_text()
    assert told.count("continues at step") >= KILLS // 2
    assert "is damaged" in told
    assert not kept.exists()


@pytest.fixture
def small(project: Write, tiny: Base) -> Path:
    """The folder of a project whose training takes a few seconds."""
    assert tiny.folder is not None
    settings = "train: {epochs: 12, batch_tokens: 400, evaluations: 2, learning_rate: 0.002, patience: null}\n"
    path = project(settings, lines=40)
    path.write_text(path.read_text().replace("smollm2-135m-instruct", str(tiny.folder)))
    return path.parent


def test_a_stopped_run_goes_on_and_other_settings_are_refused(forks: Forks, small: Path, tmp_path: Path) -> None:
    """By the command line: Ctrl-C, SIGKILL, SIGTERM, a changed learning rate, and --fresh."""
    log, kept = tmp_path / "log", small / "output/unfinished/train"

    def start(*arguments: str) -> int:
        log.write_text("")
        return forks.ask(run=["run", "--until", "train", *arguments], log=str(log), **{"in": str(small)})

    def stand() -> str:
        log.write_text("")
        assert forks.ask(wait=forks.ask(run=["status"], log=str(log), **{"in": str(small)})) == 0
        return next(line for line in log.read_text().splitlines() if line.startswith("train"))

    pid = start()
    until(lambda: log_lines(kept) >= 6)
    assert forks.kill(pid, signal.SIGINT) == 130
    stopped = newest_step(kept)
    assert stopped >= 4  # the first lines are of the memory and the untrained model
    told = log.read_text()
    assert "finishing this step, then saving; once more stops at once" in told
    assert f"saved after step {stopped} of " in told
    assert "next: `tunesmith run --until train` goes on from there" in told
    assert f"unfinished, at step {stopped} of" in stand()

    pid, lines = start(), log_lines(kept)
    until(lambda: log_lines(kept) >= lines + 4)
    assert forks.kill(pid) == -signal.SIGKILL
    assert f"continues at step {stopped + 1} of" in log.read_text()
    assert newest_step(kept) == stopped  # it had no time for a checkpoint of its own

    assert forks.ask(wait=start("--set", "train.learning_rate=0.0005")) == 1
    told = log.read_text()
    assert f"step train stands unfinished at step {stopped} of" in told
    assert "train.learning_rate: 0.002 -> 0.0005 (via plan)" in told
    assert "tunesmith run --fresh" in told
    assert newest_step(kept) == stopped

    pid, lines = start(), log_lines(kept)
    until(lambda: log_lines(kept) >= lines + 4)
    assert forks.kill(pid, signal.SIGTERM) == 143
    assert newest_step(kept) > stopped
    assert forks.ask(wait=start()) == 0, log.read_text()
    assert not kept.exists()
    [finished] = (small / "output/steps/train").glob("[!.]*")
    adapter = (finished / "adapter/adapter_model.safetensors").read_bytes()
    entries = without_measurements(finished / "metrics.jsonl")

    shutil.rmtree(finished)
    pid = start("--set", "train.learning_rate=0.0005")
    until(lambda: log_lines(kept) >= 6)
    assert forks.kill(pid, signal.SIGINT) == 130
    assert forks.ask(wait=start("--fresh")) == 0, log.read_text()
    assert "continues" not in log.read_text()
    [again] = (small / "output/steps/train").glob("[!.]*")
    assert (again / "adapter/adapter_model.safetensors").read_bytes() == adapter
    assert without_measurements(again / "metrics.jsonl") == entries


def test_a_second_ctrl_c_stops_at_once(forks: Forks, small: Path, tmp_path: Path) -> None:
    log, kept = tmp_path / "log", small / "output/unfinished/train"
    request = {"run": ["run", "--until", "train", "--set", "train.batch_tokens=100000"], "in": str(small)}
    pid = forks.ask(**request, log=str(log))
    until(lambda: log_lines(kept) >= 2)
    os.kill(pid, signal.SIGINT)
    until(lambda: "finishing this step" in log.read_text())
    status = forks.kill(pid, signal.SIGINT)
    assert status == 130
    told = log.read_text()
    assert "the unfinished one will run again" in told
    assert newest_step(kept) == 0


def test_the_log_is_cut_to_its_length_at_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    with resume.log_file(path, None) as log:
        log.write(b'{"step":1}\n{"step":2}\n')
        saved = at_step_2(resume.log_length(log))
        log.write(b'{"step":3}\n')
    with resume.log_file(path, saved) as log:
        assert path.read_bytes() == b'{"step":1}\n{"step":2}\n'  # trackers are told what it holds
        log.write(b'{"step":4}\n')
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n{"step":4}\n'
    with resume.log_file(path, None):
        pass
    assert path.read_bytes() == b""
    assert capsys.readouterr().err == ""


def at_step_2(around: dict[str, int]) -> State:
    from tunesmith.train.checkpoint import State

    return State(2, 9, {}, {"around": around})


@pytest.mark.parametrize(("left", "lost"), [
    (b'{"step":1}\n', 11), (b'{"step":1}\n{"step', 11), (b'{"step":1}\n\xff"step":2}\n', 11), (b"", 22)])  # fmt: skip
def test_a_damaged_log_is_told_and_costs_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: bytes, lost: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(left)
    with resume.log_file(path, at_step_2({"log_bytes": 22})) as log:
        log.write(b'{"step":3}\n')
        assert resume.log_length(log) == {"log_bytes": 22 - lost + 11}
    assert path.read_bytes() == (b'{"step":1}\n' if lost == 11 else b"") + b'{"step":3}\n'
    assert f"metrics.jsonl is damaged: {lost} of its 22 bytes are lost" in capsys.readouterr().err
    with resume.log_file(path, at_step_2({"log_bytes": 22})):  # it was killed before it saved anew
        assert path.read_bytes() == (b'{"step":1}\n' if lost == 11 else b"")


def test_threads_are_as_many_as_openmp_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = resume.threads(None)
    assert (found.value, found.reason) == (1, "OMP_NUM_THREADS is set")
    assert resume.threads(None, pinned=2).value == 2
    assert resume.threads(None, processes=2).reason.startswith("a process; ")  # a launcher set it


def test_threads_are_those_of_the_run_that_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.core import hardware
    from tunesmith.train.checkpoint import State

    def saved(threads: int, early: bool = False, **made_with: str) -> State:
        around = {"made_with": {**resume.made_with(threads, []), **made_with}, "log_bytes": 0}
        return State(40, 120, {}, {"around": around, "outcome": {"stopped_early": early}})

    found = resume.threads(saved(1))
    assert found.value == 1
    assert "before the interruption" in found.reason
    assert resume.threads(saved(1), pinned=3).value == 3
    resume.announce(saved(1), resume.made_with(1, []))
    told = capsys.readouterr().err
    assert "continues at step 41 of 120" in told
    assert "differ" not in told
    resume.announce(saved(1, early=True), resume.made_with(1, []))
    assert "had come to its end, at step 40 of 120" in capsys.readouterr().err
    many = saved(hardware.cores() + 1, torch="1.0")
    assert resume.threads(many).value <= hardware.cores()
    resume.announce(many, resume.made_with(1, ["kernel head: it fails here"]))
    told = capsys.readouterr().err
    assert "last bits" in told
    assert f"threads {hardware.cores() + 1} -> 1" in told
    assert "torch 1.0 -> " in told
    assert "kernels all fast -> kernel head: it fails here" in told


def test_the_time_left_counts_only_what_this_run_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress("train", 1000, "tokens", before=800) as bar:
        now[0] = 20.0
        bar.advance(100)
    assert "train: 900 of 1,000 tokens, 5.0/s, 20 s left" in capsys.readouterr().err
