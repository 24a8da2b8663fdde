"""What the documents say is what the code does: generated pages are fresh, and README's commands exist and run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

import tunesmith
from tunesmith.cli import app
from tunesmith.core.config import load_project

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def generated() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in generated()])
def test_generated_pages_are_fresh(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run `make docs`"


def test_readme_shows_demo_and_test_first() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first is not None
    assert [line.split()[1] for line in first[1].splitlines()] == ["demo", "test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_every_command_of_the_readme_exists() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    named = re.findall(r"^tunesmith (\w+)", blocks, re.MULTILINE) + re.findall(r"`tunesmith (\w+)", README)
    assert {"init", "check", "run", "show", "chat", "why"} <= set(named) <= known


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_first_steps_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: object) -> None:
    """init, check and run (up to tokenising) on a file of the name that README uses."""
    (tmp_path / "tickets.jsonl").write_bytes((ROOT / "recipes/support/data/tickets.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "tunesmith init" in b)
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [c[0] for c in commands] == ["init", "check", "run", "show", "chat", "data"]
    for arguments in [commands[0], commands[1], [*commands[2], "--until", "format"], commands[5]]:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "output/steps/format").is_dir()


def test_the_settings_of_the_page_on_data_are_settings(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for name in ("a.jsonl", "exam.csv", "gsm8k.jsonl", "tickets/a.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for block in blocks:
        project = yaml.safe_load(block)
        project["data"].setdefault("sources", [{"path": "a.jsonl"}])
        (tmp_path / "tunesmith.yaml").write_text(yaml.safe_dump({"name": "a", **project}), encoding="utf-8")
        assert load_project(tmp_path / "tunesmith.yaml").data.sources


def test_python_verbs_are_those_of_the_command_line() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert commands - {"chat"} <= set(tunesmith.__all__)
    assert "Chat" in tunesmith.__all__


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/tunesmith.yaml")), ids=lambda p: p.parent.name)
def test_recipes_load(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "restaurant8k").mkdir()
    for name in ("train.json", "test.json"):
        (tmp_path / "restaurant8k" / name).write_text("[]")
    monkeypatch.setenv("TUNESMITH_REAL_DATA", str(tmp_path))
    assert load_project(path).name == yaml.safe_load(path.read_text())["name"]
