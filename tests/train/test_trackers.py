"""Trackers: what each wrote is read back with its own reader, none calls home, and one that fails ends nothing."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import tracking
from tunesmith.core.errors import UserError
from tunesmith.train import trackers

SETTINGS = {"learning_rate": 0.001, "precision": "fp32", "patience": None, "layers": ["q_proj", "v_proj"]}
ENTRIES = [
    {"step": 0, "validation_loss": 3.0},
    *({"step": i, "of": 3, "loss": 1 / i, "told": "a word is no figure"} for i in (1, 2, 3)),
    {"step": 3, "validation_loss": 2.5},
]
LOSSES = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


@pytest.fixture(scope="module")
def proxy() -> Iterator[socket.socket]:
    """Where everything that wants to leave this machine arrives, without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture(scope="module")
def tracked(proxy: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all four trackers followed one short run."""
    folder = tmp_path_factory.mktemp("run") / "trackers"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(variable, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for variable in ("CI", "PYTEST_CURRENT_TEST"):  # they silence MLflow's telemetry by themselves
            patch.delenv(variable, raising=False)
        for variable in ("RANK", "WORLD_SIZE"):  # a tracker must not wait for the other processes of a launch
            patch.setenv(variable, "1")
        with trackers.start(list(tracking.PACKAGES), "support", SETTINGS, folder) as track:
            for entry in ENTRIES:
                track(entry)
    return folder


def test_none_calls_home(tracked: Path, proxy: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        proxy.accept()


def test_tensorboard(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard/support")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == LOSSES
    assert [(e.step, e.value) for e in events.Scalars("validation_loss")] == [(0, 3.0), (3, 2.5)]
    (settings,) = (tracked / "tensorboard").rglob("hparams.yml")
    assert "learning_rate: 0.001" in settings.read_text()


def test_mlflow(tracked: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "support"
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.001"
    assert run.data.params["layers"] == '["q_proj", "v_proj"]'
    assert sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")) == LOSSES


def test_trackio(tracked: Path) -> None:
    with sqlite3.connect(tracked / "trackio" / f"{trackers.PROJECT}.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'support' order by id").fetchall()
        (config,) = database.execute("select config from configs").fetchone()
    entries = [(step, json.loads(metrics)) for step, metrics in rows]
    assert [(step, entry["loss"]) for step, entry in entries if "loss" in entry] == LOSSES
    assert "told" not in entries[1][1]
    assert json.loads(config)["learning_rate"] == 0.001


def test_wandb(tracked: Path) -> None:
    (log,) = tracked.glob("wandb/offline-run-*/run-*.wandb")
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for record in wandb_records(log.read_bytes()):
        history += [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}]
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    assert [(entry["_step"], entry["loss"]) for entry in history if "loss" in entry] == LOSSES
    assert [e["validation_loss"] for e in history if "validation_loss" in e] == [3.0, 2.5]
    assert config["precision"] == "fp32"


def wandb_records(log: bytes) -> Iterator[Any]:
    """W&B's transaction log: 7 bytes of header, then LevelDB's format: blocks of 32 KiB of checksum (4 bytes), length
    (2), kind (1: whole, 2: first, 3: middle, 4: last part), data."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert log.startswith(b":W&B")
    at, data = 7, b""
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        data += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(data)
            data = b""


def test_a_missing_package_is_an_error_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError) as error, trackers.start(["tensorboard", "trackio"], "r", {}, tmp_path / "t"):
        pass
    assert "pip install trackio" in error.value.next
    assert not (tmp_path / "t").exists()


def test_a_tracker_that_fails_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    with trackers.start(["mlflow", "tensorboard"], "support", SETTINGS, tmp_path) as track:
        for entry in ENTRIES:
            track(entry)
    told = capsys.readouterr().err
    assert told.count("mlflow has stopped") == 1
    assert "nowhere" in told
    assert list(tmp_path.glob("tensorboard/support/events*"))


def test_no_trackers_start_nothing(tmp_path: Path) -> None:
    with trackers.start([], "support", SETTINGS, tmp_path / "trackers") as track:
        track({"step": 1, "loss": 2.0})
    assert not (tmp_path / "trackers").exists()
