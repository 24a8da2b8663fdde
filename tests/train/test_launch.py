"""Two processes give what one gives; what goes wrong in any of them is told as if it had happened here.

One launch runs all cases of training, on one thread each, over gloo: starting processes is what takes the time.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launched import trained
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.core import store
from tunesmith.core.errors import ModelError, ResourceError, UserError
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.project import Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.models.base import Base
from tunesmith.models.tokens import Tokens
from tunesmith.plan import planner
from tunesmith.train import launch, passes
from tunesmith.train import run as training
from tunesmith.train.batches import shares
from tunesmith.train.processes import Processes

Log = list[dict[str, Any]]
Together = dict[str, tuple[Log, dict[str, Tensor]]]

SCRIPT = str(Path(__file__).with_name("launched.py"))


SETTINGS = {
    "learning_rate": 3e-3, "epochs": 1.0, "batch_tokens": 1200, "micro_batch_tokens": 400, "evaluations": 2,
    "patience": None, "warmup": 0.1, "weight_decay": 0.1, "max_grad_norm": 1.0, "seed": 0}  # fmt: skip
LORA, FULL = {"method": "lora", "rank": 4, "alpha": 8.0}, {"method": "full"}
LONELY = {"batch_tokens": 100, "epochs": 0.1, "evaluations": 1}  # steps of one row: one process has nothing to do
WILD = {"learning_rate": 100.0, "evaluations": 6, "patience": 2, "epochs": 2.0, "warmup": 0.0, "watch": "warn"}
SHORT = {"epochs": 0.2, "evaluations": 1}
CASES = {
    "lora": (LORA, {}),
    "full": (FULL, {}),
    "lonely": (FULL, LONELY),
    "freeze": ({"method": "freeze", "layers": ["layers.1", "norm"]}, SHORT),
    "hybrid": ({**LORA, "layers": ["layers.1.mlp", "lm_head"]}, SHORT),
    "dora": ({**LORA, "variant": "dora"}, SHORT),
    "prompt": ({"method": "prompt", "virtual_tokens": 5}, SHORT),
    "prefix": ({"method": "prefix", "virtual_tokens": 5}, SHORT),
    "ia3": ({"method": "ia3"}, SHORT),
    "bottleneck": ({"method": "bottleneck", "width": 8}, SHORT),
    "stopped": (LORA, WILD),
}
SHARDED = tuple(name for name in CASES if name != "stopped")


def launched(do: str, **job: Any) -> Any:
    return launch.run({"do": do, **job}, 2, (SCRIPT,))


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_only_the_first_process_speaks_and_its_result_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert launched("speak", words=["a", "b"]) == ["2", "a", "b"]
    assert capfd.readouterr().err.split("\n") == ["process 0 speaks", ""]


def test_an_error_of_any_process_is_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError) as error:
        launched("fail")
    told = error.value.what, error.value.why, error.value.next
    assert told == ("the second process cannot go on", "it was told so", "tell it otherwise")
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"in break_down\n.*\nZeroDivisionError: a fault of ours"):
        launched("break_down")


def test_a_killed_process_is_explained() -> None:
    with pytest.raises(ResourceError) as error:
        launched("be_killed")
    assert "memory is short" in error.value.why


def test_ctrl_c_lets_the_processes_save_and_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        until(lambda: (tmp_path / "0").is_file())
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        launched("work_on", shared=str(tmp_path))
    thread.join()
    assert stopped.value.saved == "process 0 has saved"
    assert stopped.value.exit_status == 143
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    job = {"do": "work_on", "shared": str(tmp_path)}
    code = f"from tunesmith.train import launch; launch.run({job}, 2, ({SCRIPT!r},))"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until(lambda: (tmp_path / "0").is_file() and (tmp_path / "1").is_file())
        time.sleep(0.1)
        parent.kill()
    for rank in "01":
        pid = int((tmp_path / rank).read_text())
        until(lambda pid=pid: not alive(pid), seconds=20)


def of_lengths(lengths: list[int]) -> Tokens:
    """Rows that are never read but for their lengths."""
    rows = Tokens.__new__(Tokens)
    rows.ends, rows.beginning = np.cumsum(lengths), 0
    return rows


def case(method: dict[str, Any], change: dict[str, Any], sharding: str = "none") -> dict[str, Any]:
    return {"method": method, "settings": {**SETTINGS, **change, "sharding": sharding}}


@pytest.fixture(scope="module")
def together(tiny: Base, dataset: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """What two processes came to: the log and the best state of every case."""
    out = tmp_path_factory.mktemp("together")
    cases = {f"{name}-none": case(*CASES[name]) for name in CASES}
    cases |= {f"{name}-fsdp2": case(*CASES[name], "fsdp2") for name in SHARDED}
    (out / "kept").mkdir()
    for name in ("whole", "resumed"):  # the second goes on from the checkpoints of the first
        cases[name] = {**case(FULL, {}, "fsdp2"), "kept": str(out / "kept")}
    logs = launched("train", cases=cases, base=str(tiny.folder), dataset=str(dataset.folder), out=str(out))
    return {name: (logs[name], load_file(out / f"{name}.safetensors")) for name in cases}


@pytest.fixture(scope="module")
def alone(tiny: Base, dataset: Artifact) -> Callable[[str], tuple[Any, Log]]:
    """What this process alone comes to, once for each case."""
    assert tiny.folder is not None
    folder = tiny.folder
    return functools.cache(lambda name: trained(case(*CASES[name]), folder, dataset.folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sharding"),
    [*((name, "none") for name in CASES), *((name, "fsdp2") for name in SHARDED)],
)
def test_two_processes_learn_what_one_learns(
    together: Together, alone: Callable[[str], tuple[Any, Log]], name: str, sharding: str
) -> None:
    log, best = together[f"{name}-{sharding}"]
    outcome, wanted = alone(name)
    assert [entry.keys() for entry in log] == [entry.keys() for entry in wanted]
    for entry, one in zip(log, wanted):
        for figure in entry.keys() - {"step_seconds", "tokens_per_second", "forecast_bytes"}:
            tolerance = 1e-4 if figure == "gradient_norm" else 1e-5  # fp32 squares of 1.5 M elements, summed in one go
            assert entry[figure] == pytest.approx(one[figure], rel=tolerance, abs=tolerance), figure
    assert best.keys() == outcome.best.keys()
    for key, tensor in outcome.best.items():
        apart = (best[key] - tensor).abs().max() / max(1, tensor.abs().max())
        assert apart <= (1e-3 if name == "stopped" else 3e-5), key  # Adam enlarges small ones, a wild rate much more


@pytest.mark.slow
def test_the_run_that_stops_early_stops_in_all_processes(alone: Callable[[str], tuple[Any, Log]]) -> None:
    """They would wait for each other for ever otherwise; that it is the same step is compared above."""
    outcome, _ = alone("stopped")
    assert outcome.stopped_early
    assert outcome.steps < outcome.planned_steps


@pytest.mark.slow
def test_a_sharded_run_goes_on_to_the_same_bits(together: Together) -> None:
    (whole, best), (resumed, again) = together["whole"], together["resumed"]
    assert len(resumed) < len(whole)
    assert [entry["loss"] for entry in resumed if "loss" in entry] == [
        entry["loss"] for entry in whole if "loss" in entry
    ][-1:]
    assert all(torch.equal(again[name], tensor) for name, tensor in best.items())


def test_rows_are_shared_out_evenly() -> None:
    lengths = [90, 10, 50, 40, 30, 30, 20, 10]
    parts = shares(list(range(8)), lengths, 3)
    assert sorted(row for part in parts for row in part) == list(range(8))
    assert [sum(lengths[row] for row in part) for part in parts] == [100, 90, 90]
    assert shares([5, 2], lengths, 3) == [[2], [5], []]
    assert shares([5, 2, 7], lengths, 1) == [[5, 2, 7]]


def test_sharded_processes_make_equally_many_passes() -> None:
    rows = of_lengths([100, 10, 10, 10])
    ranks = [Processes(rank, 2, sharded=True).passes([0, 1, 2, 3], rows, 20) for rank in range(2)]
    assert ranks[0] == [([0], True), ([1], False)]
    assert ranks[1] == [([1, 3], True), ([2], True)]
    assert Processes(0, 2).passes([0, 1, 2, 3], rows, 20) == [([0], True)]


@pytest.mark.slow
def test_a_training_step_in_two_processes_leaves_what_one_leaves(tiny: Base, dataset: Artifact, tmp_path: Path) -> None:
    one = training_step(tmp_path / "one", tiny, dataset)
    two = training_step(tmp_path / "two", tiny, dataset, processes=2, sharding="fsdp2", trackers=["tensorboard"])
    assert two.summary["processes"] == 2
    assert two.summary["validation_loss"] == pytest.approx(one.summary["validation_loss"], rel=1e-5)
    (weights, config), (wanted, plain) = map(saved_model, (two, one))
    assert config == plain
    assert weights.keys() == wanted.keys()
    assert all((weights[name] - tensor).abs().max() <= 1e-5 for name, tensor in wanted.items())
    losses, one_losses = ([e["loss"] for e in store.read_jsonl(a / "metrics.jsonl") if "loss" in e] for a in (two, one))
    assert losses == pytest.approx(one_losses, rel=1e-5)
    assert list(two.folder.glob("trackers/tensorboard/*/events*"))
    assert not list((tmp_path / "two/unfinished").iterdir())


@pytest.mark.slow
def test_two_processes_go_on_after_an_interruption(tiny: Base, dataset: Artifact, tmp_path: Path) -> None:
    kept = tmp_path / "unfinished/train"

    def interrupt() -> None:
        until(lambda: (kept / "metrics.jsonl").is_file() and len((kept / "metrics.jsonl").read_bytes()) > 1000)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        training_step(tmp_path, tiny, dataset, processes=2, epochs=4)
    thread.join()
    assert "saved after step" in stopped.value.saved
    (kept / "1.metrics.jsonl").write_text("{" * 10_000)  # a line of another length than the first process's
    log = store.read_jsonl(training_step(tmp_path, tiny, dataset, processes=2, epochs=4).folder / "metrics.jsonl")
    steps = [entry["step"] for entry in log if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))


def test_a_pass_that_is_too_large_for_a_part_of_the_model_is_explained() -> None:
    def one_pass(rows: list[int], counts: bool) -> Any:
        raise MemoryError

    with pytest.raises(ResourceError, match="more memory than there is") as error:
        passes.step(one_pass, [0, 1], of_lengths([5, 5]), 10, Processes(0, 2, sharded=True))
    assert "train.micro_batch_tokens" in error.value.next


@pytest.mark.slow
def test_a_run_that_goes_wrong_in_two_processes_is_explained(tiny: Base, dataset: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        training_step(tmp_path, tiny, dataset, learning_rate=1e30, method="lora", processes=2)
    assert "not a number" in error.value.what
    assert "train.learning_rate" in error.value.next
    assert f"its log is in {tmp_path / 'failed/train'}" in error.value.next
    assert (tmp_path / "failed/train/metrics.jsonl").is_file()


def training_step(output: Path, base: Base, dataset: Artifact, **change: Any) -> Artifact:
    settings = {
        "method": "full", "precision": "fp32", "learning_rate": 3e-3, "epochs": 0.5, "batch_tokens": 1200,
        "micro_batch_tokens": 400, "evaluations": 1, "patience": None}  # fmt: skip
    steps = Steps(output)
    plan = steps("plan", planner.run, Train.model_validate({**settings, **change}), base, dataset)
    return steps("train", training.run, plan, base, dataset)


def saved_model(step: Artifact) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(step / "model/model.safetensors"), store.read_json(step / "model/config.json")
