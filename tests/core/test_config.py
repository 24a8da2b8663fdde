"""The project file: every mistake is named with its line, its key and the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tunesmith.core import config
from tunesmith.core.config import load_project
from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Project
from tunesmith.core.section import Section

Write = Callable[..., Path]


def sections(section: type[BaseModel] = Project, at: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield at, section
    for name, field in section.model_fields.items():
        for candidate in [field.annotation, *config._arguments(field.annotation)]:
            if isinstance(candidate, type) and issubclass(candidate, Section):
                yield from sections(candidate, f"{at}.{name}".strip("."))


def test_a_project_loads_and_is_frozen(project: Write) -> None:
    loaded = load_project(project())
    assert loaded.name == "small"
    assert loaded.data.sources[0].path.is_absolute()
    with pytest.raises(ValueError, match="frozen"):
        loaded.__setattr__("name", "other")


@pytest.mark.parametrize(("at", "section"), [pytest.param(a, s, id=a or "project") for a, s in sections()])
def test_a_typo_in_any_key_is_named_with_the_nearest_key(project: Write, at: str, section: type[BaseModel]) -> None:
    """Every key of every section, misspelt by dropping its third letter."""
    for key in section.model_fields:
        typo = key[:2] + key[3:] if len(key) > 3 else key + "x"
        dotted = f"{at}.{typo}".strip(".").replace("sources.", "sources.0.").replace("gates.", "gates.0.")
        extra = "evaluate: {gates: [{metric: perplexity}]}\n" if "gates" in at else ""
        extra += "pretrain: {texts: [data.jsonl]}\n" if "pretrain" in at else ""
        extra = "  grow: {mix: {sources: [{path: data.jsonl}]}}\n" + extra if "mix" in at else extra
        with pytest.raises(ConfigError) as error:
            load_project(project(extra), [f"{dotted}=1"])
        assert typo in error.value.what
        assert f"did you mean `{key}`" in error.value.why
        assert f"`{key}`" in error.value.next


def test_a_typo_in_the_file_is_named_with_its_line(project: Write) -> None:
    path = project("train:\n  epochs: 1\n  learnig_rate: 0.1\n")
    with pytest.raises(ConfigError) as error:
        load_project(path)
    line = path.read_text().splitlines().index("  learnig_rate: 0.1") + 1
    assert f"{path}:{line}" in error.value.what
    assert "learning_rate" in error.value.why


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no settings"),
        ("- 1\n", "no settings"),
        ("name: [\n", "valid YAML"),
        ("name: a\nname: b\n", "stands twice"),
        ("name: a\n", "`data` is missing"),
        ("name: a b\ndata: {sources: []}\n", "`name`"),
        ("name: a\ndata: {sources: [{path: nowhere.jsonl}]}\n", "data.sources.0.path"),
        ('name: a\ndata: {sources: [{path: "${TUNESMITH_NOT_SET}/x.jsonl"}]}\n', "data.sources.0.path"),
        ("name: a\nmodel: !foo x\n", ":2 is not valid YAML"),
        ("name: a\ndata:\n  system: 2024-13-45\n", ":3 is not valid YAML"),
        ("name: a\nmodel: !!int x\n", ":2 is not valid YAML"),
        ("name: a\nmodel: !!bool x\n", ":2 is not valid YAML"),
        ("name: a\nmodel: !!timestamp x\n", ":2 is not valid YAML"),
        ("name: a\n? [a, b]\n: c\n", ":2 is not valid YAML"),
        ("name: a\nb: &a [*a]\n", "is not valid YAML"),
        ("name: a\nb: " + "[" * 5000, "is not valid YAML"),
        ("name: a\n1: b\ndata: {sources: []}\n", "tunesmith.yaml:"),
        ("name: a\0\n", "is not valid YAML"),
        ('name: a\ndata: {sources: [{path: "a\\0b"}]}\n', "data.sources.0.path"),
        (f"name: a\ndata: {{sources: [{{path: {'x' * 5000}}}]}}\n", "data.sources.0.path"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tunesmith.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_project(path)
    assert words in error.value.what
    assert error.value.why
    assert error.value.next


def test_a_typo_in_a_required_key_is_told_before_the_missing_key(project: Write) -> None:
    with pytest.raises(ConfigError) as error:
        load_project(project("pretrain: {txts: [data.jsonl]}\n"))
    assert "pretrain.txts" in error.value.what
    assert "did you mean `texts`?; also wrong: pretrain.texts" in error.value.why


def test_a_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no project file") as error:
        load_project(tmp_path / "tunesmith.yaml")
    assert "tunesmith init" in error.value.next


def test_a_missing_source_names_the_near_one(project: Write) -> None:
    with pytest.raises(ConfigError) as error:
        load_project(project(), ["data.sources.0.path=dta.jsonl"])
    assert "data.jsonl" in error.value.why


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate=0.5", 0.5),
        ("train.epochs=2", 2.0),
        ("train.patience=null", None),
    ],
)
def test_overrides_are_laid_over_the_file(project: Write, override: str, value: Any) -> None:
    key = override.partition("=")[0].split(".")[1]
    assert load_project(project(), [override]).train.model_dump()[key] == value


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs",
        "=3",
        "name.x.y=3",
        "data.sources.7.path=x",
        "data.sources.².path=x",
        "train.epochs=-1",
        "train.epochs=many",
        "train.learning_rate=.inf",
        "train.weight_decay=.nan",
        "evaluate.gates=[{metric: perplexity, margin: .nan}]",
        "train.seed=-1",
        "train.seed=99999999999999999999999999",
        "train.epochs=1.0e+12",
        "train.threads=5000",
        "pretrain={texts: [data.jsonl], block_tokens: 1}",
        "train=&a [*a]",
    ],
)
def test_bad_overrides_are_explained(project: Write, override: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_project(project(), [override])
    assert error.value.next


@pytest.mark.parametrize("value", ["2024-13-45", "!foo x", "[" * 5000])
def test_an_override_that_is_no_yaml_is_text(project: Write, value: str) -> None:
    assert load_project(project(), [f"data.system={value}"]).data.system == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.split.test=0.95", "less than 1"),
        ("data.clean={answer_schema: data.jsonl}", "answer: json"),
        ("data.clean={reviewed: data.jsonl}", "contradictions: review"),
        ("data.clean={judge: {url: 'http://a/v1', model: m}}", "contradictions: judge"),
        ("data.clean={contradictions: judge}", "needs `judge"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(project: Write, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_project(project(), [override])
    assert override.partition("=")[0] in error.value.what
    assert words in error.value.why


def test_a_contradiction_in_the_file_is_named_with_its_line(project: Write) -> None:
    path = project("  split:\n    validation: 0.5\n    test: 0.5\n")
    with pytest.raises(ConfigError) as error:
        load_project(path)
    line = path.read_text().splitlines().index("  split:") + 1
    assert f"{path}:{line}: `data.split`" in error.value.what


def test_an_empty_section_means_its_defaults(project: Write) -> None:
    loaded = load_project(project("  split:\ntrain:\nevaluate:\n  generation:\n"))
    assert loaded == load_project(project())
    with pytest.raises(ConfigError, match="--set data cannot"):
        load_project(project(), ["data=null"])


def test_a_tilde_in_a_path_is_the_home_folder(project: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/d.jsonl").touch()
    loaded = load_project(project(), ["data.sources.0.path=~/d.jsonl"])
    assert loaded.data.sources[0].path == tmp_path / "home/d.jsonl"


def test_only_projects_close_by_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/tunesmith.yaml").touch()
    with pytest.raises(ConfigError) as error:
        load_project(Path("tunesmith.yaml"))
    assert "tunesmith init" in error.value.next
    (tmp_path / "a/b/tunesmith.yaml").touch()
    with pytest.raises(ConfigError) as error:
        load_project(Path("tunesmith.yaml"))
    assert error.value.next == "tunesmith run a/b/tunesmith.yaml"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_project_name_that_no_file_can_have_is_explained(name: str) -> None:
    with pytest.raises(ConfigError, match="no project file"):
        load_project(Path(name))
