"""Checkpoints: exact, few, never half; a damaged one is told and passed over; writing them costs next to nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core import store
from tunesmith.core.errors import ResourceError
from tunesmith.core.interrupt import Interrupted
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Keeper, State


def state(step: int) -> State:
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "exact/w": torch.randn(7, 5, generator=draw),
        "optimizer/0/step": torch.tensor(float(step)),
        "best/w": torch.randn(5, 7, generator=draw).t(),  # not contiguous
    }
    return State(step, 120, tensors, {"loss": 0.1 + 0.2, "seen": [1, None, "x"]})


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(40))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.of, found.values) == (40, 120, state(40).values)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state(40).tensors.items())
    assert found.tensors.keys() == state(40).tensors.keys()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None


def test_two_are_kept_and_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003").mkdir()  # a run was killed while it wrote
    (tmp_path / ".step-00000003/tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None
    for step in (4, 9, 12):
        checkpoint.save(tmp_path, state(step))
    assert sorted(os.listdir(tmp_path)) == ["step-00000009", "step-00000012"]


def cut(path: Path) -> None:
    os.truncate(path / "tensors.safetensors", (path / "tensors.safetensors").stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit of a weight: the file reads well, and only its digest tells."""
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(data)


def cut_json(path: Path) -> None:
    os.truncate(path / "state.json", (path / "state.json").stat().st_size // 2)


def change_json(path: Path) -> None:
    written = json.loads((path / "state.json").read_text())
    written["step"] += 1
    (path / "state.json").write_text(json.dumps(written))


def say_something_else(path: Path) -> None:
    (path / "state.json").write_text('["step"]')


def lose_a_file(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [cut, flip, cut_json, change_json, say_something_else, lose_a_file])
def test_a_damaged_one_is_told_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, state(step))
    damage(tmp_path / "step-00000020")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "step-00000020 is damaged" in capsys.readouterr().err
    checkpoint.save(tmp_path, state(20))  # the run comes by again
    again = checkpoint.newest(tmp_path)
    assert again is not None
    assert again.step == 20
    damage(tmp_path / "step-00000020")
    damage(tmp_path / "step-00000010")
    assert checkpoint.newest(tmp_path) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_when_a_checkpoint_is_due(tmp_path: Path, clock: list[float]) -> None:
    keeper = Keeper(tmp_path, minutes=5, last=clock[0])
    clock[0] += 59
    assert not keeper.due(evaluated=True)  # a short run writes none
    clock[0] += 2
    assert keeper.due(evaluated=True)
    assert not keeper.due(evaluated=False)
    clock[0] += 240
    assert keeper.due(evaluated=False)
    keeper.last, keeper.write_seconds = clock[0], 4.0
    clock[0] += 399
    assert not keeper.due(evaluated=True)  # four seconds of writing are one hundredth of four hundred
    clock[0] += 1
    assert keeper.due(evaluated=False)
    keeper.write_seconds = 0.1
    keeper.last = clock[0]
    clock[0] += 11
    assert keeper.due(evaluated=True)
    assert not keeper.due(evaluated=False)


def test_no_minutes_mean_after_every_step(tmp_path: Path, clock: list[float]) -> None:
    keeper = Keeper(tmp_path, minutes=0, write_seconds=100.0)
    assert keeper.due(evaluated=False)


def test_a_run_pays_a_hundredth_at_most(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours of half-second steps, evaluated all the time, with writes that take three seconds."""
    writes = 0

    def slow(folder: Path, state: State) -> None:
        nonlocal writes
        writes, clock[0] = writes + 1, clock[0] + 3

    monkeypatch.setattr(checkpoint, "save", slow)
    keeper, begun = Keeper(tmp_path, minutes=5, last=clock[0]), clock[0]
    while clock[0] < begun + 7200:
        clock[0] += 0.5
        keeper.after_step(lambda: state(1), evaluated=True)
    assert 20 <= writes <= 24
    assert 3 * writes <= 0.0105 * 7200


def test_when_asked_to_end_it_saves_and_says_so(tmp_path: Path) -> None:
    asked: list[int] = []
    keeper = Keeper(tmp_path, 5, lambda: {"threads": 2}, lambda: asked[0] if asked else None)
    keeper.after_step(lambda: state(3), evaluated=False)
    assert checkpoint.newest(tmp_path) is None
    asked.append(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        keeper.after_step(lambda: state(4), evaluated=False)
    assert stop.value.saved == "saved after step 4 of 120"
    assert stop.value.exit_status == 143
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 4
    assert found.values["around"] == {"threads": 2}


def test_a_disk_that_does_not_answer_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, state(10))

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", broken)
    with pytest.raises(ResourceError, match="cannot be read") as error:
        checkpoint.newest(tmp_path)
    assert "Input/output error" in error.value.why
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10


def test_a_disk_that_fills_while_a_checkpoint_is_written_costs_only_that(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("64k")
    monkeypatch.setattr(store, "require_space", lambda *arguments: None)  # there was enough when it looked
    large: dict[str, Any] = {"exact/w": torch.zeros(100_000)}
    Keeper(disk, 0).after_step(lambda: State(7, 9, large, {}), evaluated=False)
    assert "no checkpoint of step 7 could be written" in capsys.readouterr().err
    assert list(disk.iterdir()) == []


def test_a_limit_on_the_size_of_files_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        Keeper(tmp_path, 0).after_step(lambda: State(7, 9, {"exact/w": torch.zeros(100_000)}, {}), evaluated=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    told = capsys.readouterr().err
    assert "no checkpoint of step 7 could be written" in told
    assert "File too large" in told
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    large: dict[str, Any] = {"exact/w": torch.zeros(100_000)}
    asked: list[int] = []
    keeper = Keeper(small_disk("64k"), 0, asked=lambda: asked[0] if asked else None)
    keeper.after_step(lambda: State(7, 9, large, {}), evaluated=False)
    told = capsys.readouterr().err
    assert "no checkpoint of step 7 could be written" in told
    assert "0 MB are free" in told
    asked.append(signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        keeper.after_step(lambda: State(8, 9, large, {}), evaluated=False)
    assert "no checkpoint of step 8" in capsys.readouterr().err
    assert stop.value.saved == ""
