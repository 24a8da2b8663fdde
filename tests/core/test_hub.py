"""Data sets of the hub: fetched once from a server that speaks as the hub does, chosen by their names, then offline."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pytest
from pyarrow import parquet

from tunesmith.core import hub
from tunesmith.core.data_section import Source
from tunesmith.core.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub with one data set, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Hub]:
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            served.asked.append(f"{self.command} {path}")
            for revision in ("main", "v1", COMMIT):
                if path == f"/api/datasets/org/name/revision/{revision}":
                    siblings = [{"rfilename": name} for name in served.files]
                    return self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
                if path.startswith(f"/api/datasets/org/name/tree/{revision}"):
                    tree = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in served.files.items()
                    ]
                    return self.answer(json.dumps(tree).encode())
                before = f"/datasets/org/name/resolve/{revision}/"
                if path.startswith(before) and path.removeprefix(before) in served.files:
                    content = served.files[path.removeprefix(before)]
                    return self.answer(content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        served.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield served
        running.shutdown()


def table(*prompts: str) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": list(prompts), "completion": ["c"] * len(prompts)}), file)
    return file.getvalue()


def tunesmith(folder: Path, url: str, path: str, *arguments: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with a hub and caches of its own."""
    (folder / "tunesmith.yaml").write_text(
        f"name: a\ndata:\n  sources: [{{path: '{path}'}}]\n  split: {{test: 0, validation: 0}}\n{more}"
    )
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Any) -> Path:
    """A cache of our own that has the base model."""
    ours = tmp_path / "cache/tunesmith"
    ours.mkdir(parents=True)
    (ours / "models").symlink_to(base.folder.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ours


def test_a_data_set_is_fetched_once_and_then_needs_no_network(tmp_path: Path, server: Hub, cache: Path) -> None:
    server.files = {
        "README.md": b"# About", "data/train-00000-of-00002.parquet": table("p1", "p2"),
        "data/train-00001-of-00002.parquet": table("p3"), "data/test-00000-of-00001.parquet": table("p4"),
        "raw.csv": b"prompt,completion\np9,c\n",
    }  # fmt: skip
    looked = tunesmith(tmp_path, server.url, "hf://org/name:train", "check")
    assert "`tunesmith run` fetches it" in looked.stdout
    assert server.asked == []
    ran = tunesmith(tmp_path, server.url, "hf://org/name:train", "run", "--until", "load")
    assert ran.returncode == 0, ran.stderr
    (folder,) = (tmp_path / "output/steps/load").glob("[!.]*")
    record = json.loads((folder / "record.json").read_text())
    assert [(one["path"], one["kept"]) for one in record["summary"]["sources"]] == [
        ("data/train-00000-of-00002.parquet", 2), ("data/train-00001-of-00002.parquet", 1),
    ]  # fmt: skip
    assert record["hashed"]["arguments"]["sources"][0]["path"] == {"hub": "hf://org/name@main:train", "commit": COMMIT}
    assert not any("test-0" in line or "raw.csv" in line for line in server.asked)
    again = tunesmith(tmp_path, "http://127.0.0.1:9", "hf://org/name:train", "run", "--until", "load")
    assert (again.returncode, "unchanged" in again.stderr) == (0, True)
    assert "3 prompt_completion" in tunesmith(tmp_path, "http://127.0.0.1:9", "hf://org/name:train", "check").stdout
    of_revision = tunesmith(tmp_path, server.url, "hf://org/name@v1/raw.csv", "run", "--until", "load")
    assert "1 records: 1 rows" in of_revision.stderr


def test_general_rows_and_documents_are_fetched_before_a_step_reads_them(
    tmp_path: Path, server: Hub, cache: Path
) -> None:
    """Else the step that fetches them would be refused for an input that changed meanwhile, with all that it made."""
    rows = [{"prompt": f"{word} number {i}?", "completion": f"{i}"} for i, word in enumerate(["What", "Which"] * 20)]
    server.files = {"general.jsonl": "".join(json.dumps(row) + "\n" for row in rows[30:]).encode()}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    grow = '{mix: {sources: [{path: "hf://org/name"}], share: 0.2}}'
    settings = ["--set", f"data.grow={grow}", "--set", "data.split.test=0.2"]
    looked = tunesmith(tmp_path, server.url, "a.jsonl", "check", *settings)
    assert "not here hf://org/name@main: `tunesmith run` fetches it" in looked.stdout
    documents = '--set=data.grow.synthesise={questions: {documents: ["hf://org/name@v1"]}}'
    looked = tunesmith(tmp_path, server.url, "a.jsonl", "check", *settings, documents)
    assert "not here hf://org/name@v1: `tunesmith run` fetches it" in looked.stdout
    ran = tunesmith(tmp_path, server.url, "a.jsonl", "run", "--until", "grow", *settings)
    assert (ran.returncode, "general rows" in ran.stderr) == (0, True), ran.stderr


def test_what_cannot_be_fetched_is_explained(tmp_path: Path, server: Hub, cache: Path) -> None:
    server.files = {"train.jsonl": b'{"prompt": "p", "completion": "c"}\n', "validation.jsonl": b"{}"}
    for path, told in (
        ("hf://org/none", "cannot fetch the data set org/none"),
        ("hf://org/name:test", "its splits: train, validation"),
        ("hf://org/name/trian.jsonl", "name train.jsonl"),
        ("hf://name", "names no data set of the hub"),
    ):
        refused = tunesmith(tmp_path, server.url, path, "run", "--until", "load")
        assert refused.returncode == 1
        assert told in " ".join(refused.stderr.split())
        assert "Traceback" not in refused.stderr
    offline = tunesmith(tmp_path, "http://127.0.0.1:9", "hf://org/name", "run", "--until", "load")
    assert "cannot fetch the data set org/name" in offline.stderr
    assert "Traceback" not in offline.stderr
    assert not (cache / "datasets").exists()


def test_what_was_broken_off_or_removed_is_fetched_again(tmp_path: Path, server: Hub, cache: Path) -> None:
    server.files = {"train.jsonl": b'{"prompt": "p", "completion": "c"}\n'}
    assert tunesmith(tmp_path, server.url, "hf://org/name", "run", "--until", "load").returncode == 0
    (fetched,) = (tmp_path / "hf").rglob("snapshots/*/train.jsonl")
    fetched.unlink()
    assert "fetches it" in tunesmith(tmp_path, server.url, "hf://org/name", "check").stdout
    assert tunesmith(tmp_path, server.url, "hf://org/name", "run", "--until", "load").returncode == 0
    assert fetched.is_file()


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("hf://org/name", ("org/name", "main", None, None)),
        ("hf://datasets/org/name", ("org/name", "main", None, None)),
        ("hf://org/na.me-1@v1.0:train", ("org/na.me-1", "v1.0", None, "train")),
        ("hf://org/name@refs/convert/parquet/en/x.parquet", ("org/name", "refs/convert/parquet", "en/x.parquet", None)),
        ("hf://org/name/en:test", ("org/name", "main", "en", "test")),
        ("hf://org/name/data/*.jsonl", ("org/name", "main", "data/*.jsonl", None)),
    ],
)
def test_addresses(written: str, parts: tuple[str | None, ...]) -> None:
    path = Source.model_validate({"path": written}).path
    found = hub.address(path)
    assert (found.name, found.revision, found.file, found.split) == parts
    assert hub.address(Path(str(found))) == found


@pytest.mark.parametrize("written", ["hf://", "hf://org", "hf://org/name@", "hf://org/name:a:b", "hf://a b/c"])
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="names no data set of the hub"):
        Source.model_validate({"path": written})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"), ("en/valid.jsonl.gz", "validation"), ("test_en.csv", "test"),
        ("train/0000.parquet", "train"), ("dev/part-1.jsonl", "validation"), ("gold-00001-of-00002.parquet", "gold"),
        ("contest.jsonl", "contest"), ("trainee.csv", "trainee"), ("val.json", "validation"),
    ],
)  # fmt: skip
def test_splits_are_told_by_names(name: str, split: str) -> None:
    assert hub.split_of(name) == split


def test_data_is_told_from_what_is_about_it() -> None:
    def chosen(names: list[str], written: str = "hf://o/n") -> list[str]:
        return hub.chosen(names, hub.address(Path(written)))

    assert chosen(["dataset_infos.json", "README.md", ".gitattributes", "b.json", "a.json"]) == ["a.json", "b.json"]
    assert chosen(["a.jsonl.gz", "b.csv", "c.json"]) == ["a.jsonl.gz"]
    assert chosen(["en/a.csv", "de/a.csv", "e.csv"], "hf://o/n/en") == ["en/a.csv"]
    assert chosen(["en/train.csv", "en/test.csv", "train.csv"], "hf://o/n/en:test") == ["en/test.csv"]
    with pytest.raises(DataError, match="no file of a kind"):
        chosen(["model.bin", "README.md"])


def test_general_rows_and_documents_may_come_from_the_hub(tmp_path: Path, server: Hub, cache: Path) -> None:
    """They are fetched before the steps run, as all other data sets are: what a step reads may not change under it."""
    rows = [{"prompt": f"What about thing {i * 7919}?", "completion": f"c{i}"} for i in range(9)]
    server.files = {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(), "a.md": b"# A\n\nText."}
    own = [{"prompt": f"question {i} of {'abcdefghi'[i] * 6}", "completion": "ok"} for i in range(9)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    grow = """
  grow:
    mix: {sources: [{path: 'hf://org/name/train.jsonl'}], share: 0.5}
    synthesise: {endpoint: {max_tokens: 1}, questions: {documents: ['hf://org/name/a.md']}}
"""
    looked = tunesmith(tmp_path, server.url, "own.jsonl", "check", more=grow)
    assert (looked.returncode, looked.stdout.count("`tunesmith run` fetches it")) == (0, 2)
    ran = tunesmith(tmp_path, server.url, "own.jsonl", "run", "--until", "grow", more=grow)
    assert ran.returncode == 0, ran.stderr
    assert "9 general rows (50.0%)" in ran.stderr
    assert "unchanged" in tunesmith(tmp_path, server.url, "own.jsonl", "run", "--until", "grow", more=grow).stderr
