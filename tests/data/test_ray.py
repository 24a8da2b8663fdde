"""The same work past one machine: a Ray cluster with two workers keeps the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.core import store
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.data import parts

WORDS = [f"{n:x}" for n in range(7919, 10**7, 7919)]
SMALL_PARTS = "from tunesmith.data import parts; parts.cut.__defaults__ = (60_000,)"


def kept(folder: Path, *arguments: str) -> list[bytes]:
    """The files that the steps up to split leave."""
    folder.mkdir()
    rows = [{"prompt": " ".join(WORDS[(i * 31 + k) % 900] for k in range(12)), "completion": "ok"} for i in range(1500)]
    rows += [{"prompt": f"write to a{i % 50}@b.com", "completion": ""} for i in range(100)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tunesmith.yaml").write_text("name: small\ndata:\n  sources:\n    - path: data.jsonl\n")
    command = ["run", "--until", "split", *arguments]
    script = f"import sys; {SMALL_PARTS}; sys.argv[1:] = {command!r}; from tunesmith.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ray" not in done.stderr
    steps = {name: next((folder / "output/steps" / name).glob("[!.]*")) for name in ("load", "clean", "split")}
    assert store.read_json(steps["clean"] / "record.json")["summary"]["dropped"] >= 100
    names = ("load/rows", "clean/rows", "clean/dropped", "split/train", "split/validation", "split/test")
    return [(steps[name.split("/")[0]] / f"{name.split('/')[1]}.jsonl").read_bytes() for name in names]


@pytest.mark.slow
def test_a_cluster_keeps_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert kept(tmp_path / "there", "--ray", "local") == kept(tmp_path / "here")


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ResourceError, match="there is no Ray cluster at auto"), parts.on_ray("auto"):
        pass


def test_without_ray_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed") as caught, parts.on_ray("local"):
        pass
    assert "tunesmith[ray]" in caught.value.next
    assert os.environ.get("RAY_ADDRESS") is None
