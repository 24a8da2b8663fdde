"""The first project file: made from a file, a folder, a glob or a compressed file, it is a project that checks."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from tunesmith import api, terminal
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
    monkeypatch.setattr(out, "file", printed)
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


def test_init_tells_what_is_not_there(logs: Path) -> None:
    for data in ("our lgos", "our logs/*.csv"):
        with pytest.raises(ConfigError) as error:
            api.init(data)
        assert "did you mean" in error.value.what
