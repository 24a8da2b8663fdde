"""The first project file: made from a file, a folder, a glob or a compressed file, it is a project that checks."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from tunesmith import api, terminal
from tunesmith.core import hub, store
from tunesmith.core.console import out
from tunesmith.core.errors import ConfigError, DataError

LINES = b'{"prompt": "p", "completion": "c"}\n' * 3


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "our logs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "deep/b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "notes.md").write_text("# Notes\n\nSome.")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("data", "name", "records", "files"),
    [
        ("our logs", "our-logs", 6, 3),
        ("our logs/**/*.jsonl*", "our-logs", 6, 2),
        ("our logs/deep/b.jsonl.gz", "b", 3, 1),
        ("our logs/a.jsonl", "a", 3, 1),
    ],
)
def test_what_init_writes_checks(logs: Path, data: str, name: str, records: int, files: int) -> None:
    path = api.init(data)
    found = api.check(path)
    assert found.project.name == name
    assert (found.sources[0]["kept"], found.sources[0]["files"]) == (records, files)


def test_check_tells_how_many_files_there_are_and_which_are_skipped(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (logs.parent / "tunesmith.yaml").write_text(
        "name: a\ndata: {sources: [{path: our logs}]}\npretrain: {texts: ['our logs/*.md', 'our logs/deep']}\n"
    )
    printed = io.StringIO()
    monkeypatch.setattr(out, "_file", printed)
    (logs / "deep/c.png").write_bytes(b"\x89PNG")
    (logs / "deep/b.jsonl.gz").unlink()
    with pytest.raises(DataError, match="there is no file to read in"):
        api.check()
    (logs / "deep/d.txt").write_text("Text.\n\nMore.")
    terminal.check(api.check())
    shown = printed.getvalue()
    assert "(4 files): first 3 records: 3 prompt_completion" in shown
    assert "2 skipped, text has no answers: deep/d.txt, notes.md" in shown
    assert "1: # Notes" in shown
    assert "d.txt:1: Text." in shown
    assert "1 skipped, of a kind that holds no text: c.png" in shown


def test_check_tells_how_to_mend_what_cannot_be_read(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (logs.parent / "tunesmith.yaml").write_text(
        "name: a\ndata: {sources: [{path: our logs/a.jsonl, fields: {prompt: promt}}]}\n"
    )
    printed = io.StringIO()
    monkeypatch.setattr(out, "_file", printed)
    terminal.check(api.check())
    shown = " ".join(printed.getvalue().split())
    assert "3 cannot be read: a column named in `fields` is missing a.jsonl:1: `fields.prompt` names `promt`" in shown
    assert "did you mean `prompt`?" in shown
    assert "next: tunesmith run" not in shown


def test_init_tells_what_is_not_there(logs: Path) -> None:
    for data in ("our lgos", "our logs/*.csv"):
        with pytest.raises(ConfigError) as error:
            api.init(data)
        assert "did you mean" in error.value.what


@pytest.mark.parametrize(
    "name",
    [
        "2024", "2024-01-31", "2024-13-45", "null", "yes", "0x1F", "1_000", "~", "a b", "we$HOME", "${UNSET}", "#1",
        "- a", "it's", 'say "x"', "new\nline", "a: b", "{x}", "x[1]", "日本", "re\u2028line", "\ttab",
    ],
)  # fmt: skip
def test_no_name_of_a_file_or_column_breaks_what_init_writes(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.csv").write_text(f'"{name.replace(chr(34), chr(34) * 2)}",no\nq,a\n')
    path = api.init(tmp_path / f"{name}.csv", tmp_path / "tunesmith.yaml")
    (found,) = api.check(path).sources
    assert (found["path"], found["shapes"]) == (str(tmp_path / f"{name}.csv"), {"fields": 1})
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    (found,) = api.check(api.init(folder, tmp_path / "other.yaml")).sources
    assert (found["path"], found["kept"]) == (str(folder), 3)


def test_init_looks_at_a_data_set_of_the_hub_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hf://org/name@main is not on this machine"):
        api.init("hf://org/name")
    with pytest.raises(ConfigError, match=r"names no data set of the hub"):
        api.init("hf://name")
    (tmp_path / "cache/tunesmith").mkdir(parents=True)
    (tmp_path / "cache/tunesmith/models").symlink_to(base.folder.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/train.jsonl").write_bytes(LINES)
    note = {"commit": "0" * 40, "folder": str(tmp_path / "fetched"), "files": ["train.jsonl"]}
    store.write_json(hub._note(hub.address(Path("hf://org/name@v1"))), note)
    found = api.check(api.init("hf://org/name@v1"))
    assert found.project.name == "name"
    assert [(one["path"], one["kept"]) for one in found.sources] == [("hf://org/name@v1", 3)]
