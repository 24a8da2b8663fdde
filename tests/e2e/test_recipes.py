"""The recipes' data goes through the real stages: every planted fault is found and named as the README says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served import model_of, serving

import tunesmith
from tunesmith.core import inputs, store
from tunesmith.core.config import load_project
from tunesmith.core.data_section import Grow
from tunesmith.core.project import Project
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import grow, load, pipeline, split
from tunesmith.data.growing import grounded
from tunesmith.data.reading.documents import Document
from tunesmith.data.reading.documents import read as read_documents
from tunesmith.data.reading.passages import passages
from tunesmith.models import base as bases

RECIPES = Path(__file__).parents[2] / "recipes"
WHAT_HAPPENS = {
    "duplicate": {"duplicate"},
    "near-duplicate": {"near-duplicate"},
    "contradiction": {"contradiction"},
    "personal data": {"replaced"},
    "empty answer": {"empty answer", "a needed value is null", "a column named in `fields` is missing"},
    "not JSON": {"answer is not JSON"},
    "schema": {"answer breaks the schema"},
    "broken line": {"not valid JSON"},
}


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Artifact]:
    project = load_project(RECIPES / "support/tunesmith.yaml")
    steps = Steps(tmp_path_factory.mktemp("support"))
    raw = steps("load", load.run, project.data.sources, project.data.system, project.data.max_quarantined)
    clean = steps("clean", pipeline.run, project.data.clean, raw)
    return raw, clean, steps("split", split.run, project.data.split, project.data.pinned, clean)


def fates(raw: Artifact, clean: Artifact) -> dict[int, str]:
    """What became of each line of raw.jsonl: quarantine or drop reason, `replaced`, or `kept`."""
    found = {item["line"]: item["reason"] for item in store.read_jsonl(raw / "quarantine.jsonl")}
    found |= {d["line"]: d["reason"] for d in store.read_jsonl(clean / "dropped.jsonl") if d["source"] == "raw.jsonl"}
    for row in store.read_rows(clean / "rows.jsonl"):
        if row.source == "raw.jsonl":
            found[row.line] = "replaced" if any(note.startswith("replaced:") for note in row.changes) else "kept"
    return found


def test_every_planted_fault_is_found_and_nothing_else(support: tuple[Artifact, Artifact, Artifact]) -> None:
    found = fates(*support[:2])
    planted = {
        fault["line"]: fault["fault"] for fault in json.loads((RECIPES / "support/data/faults.json").read_text())
    }
    assert {line: found[line] for line, fault in planted.items() if found[line] not in WHAT_HAPPENS[fault]} == {}
    assert {found[line] for line in found if line not in planted} == {"kept"}


def test_the_readme_lists_every_planted_fault() -> None:
    readme = (RECIPES / "support/README.md").read_text()
    table = [line for line in readme.splitlines() if line.startswith("|")]
    listed = {
        int(n)
        for line in table
        for n in line.split("|")[1].replace(",", " ").replace("and", " ").split()
        if n.isdigit()
    }
    planted = {fault["line"] for fault in json.loads((RECIPES / "support/data/faults.json").read_text())}
    assert planted <= listed


def test_the_tickets_are_many_and_distinct(support: tuple[Artifact, Artifact, Artifact]) -> None:
    rows = [row for row in store.read_rows(support[1] / "rows.jsonl") if row.source == "tickets.jsonl"]
    assert len(rows) >= 480
    assert len({row.group for row in rows}) == len(rows)


def test_no_prompt_stands_on_two_sides(support: tuple[Artifact, Artifact, Artifact]) -> None:
    groups = [{row.group for row in store.read_rows(support[2] / f"{side}.jsonl")} for side in split.SIDES]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_booking_keeps_the_publishers_exam_apart(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_REAL_DATA", str(real_data))
    project = load_project(RECIPES / "booking/tunesmith.yaml")
    steps = Steps(tmp_path)
    raw = steps("load", load.run, project.data.sources, project.data.system, project.data.max_quarantined)
    clean = steps("clean", pipeline.run, project.data.clean, raw)
    splits = steps("split", split.run, project.data.split, project.data.pinned, clean)
    assert raw.summary["rows_in"] == 4_099 + 3_731
    assert (splits.summary["train"], splits.summary["test"]) == (1_000, 500)
    sides = {side: store.read_rows(splits / f"{side}.jsonl") for side in split.SIDES}
    assert {row.source for row in sides["test"]} == {"test.json"}
    assert {row.source for row in sides["train"]} == {"train.json"}
    assert not {row.group for row in sides["test"]} & {row.group for row in sides["train"] + sides["validation"]}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Steps, Artifact]:
    project = load_project(RECIPES / "documents/tunesmith.yaml")
    steps = Steps(tmp_path_factory.mktemp("documents"))
    raw = steps("load", load.run, project.data.sources, project.data.system, project.data.max_quarantined)
    clean = steps("clean", pipeline.run, project.data.clean, raw)
    return project, steps, steps("split", split.run, project.data.split, project.data.pinned, clean)


def passages_of(project: Project) -> list[str]:
    assert project.data.grow
    assert project.data.grow.synthesise
    assert project.data.grow.synthesise.questions
    [handbook] = project.data.grow.synthesise.questions.documents
    files = [found for path in inputs.files(handbook).values() for found in read_documents(path)]
    assert all(isinstance(one, Document) for one in files)
    return [passage.text for one in files if isinstance(one, Document) for passage in passages(one, 200)]


def test_the_handbook_answers_every_question_of_the_exam(documents: tuple[Project, Steps, Artifact]) -> None:
    """Each answer's numbers, and nearly all its words, stand in one passage."""
    project, _, splits = documents
    texts = passages_of(project)
    rows = [row for side in split.SIDES for row in store.read_rows(splits / f"{side}.jsonl")]
    assert [splits.summary[side] for side in split.SIDES] == [6, 10, 34]
    assert splits.summary["dropped"] == 0

    def answers(text: str, row: Row) -> bool:
        said = grounded.content(row.answer)
        words = len(said & grounded.content(text)) >= 0.7 * len(said)
        return words and grounded.numbers(row.answer) <= grounded.numbers(text)

    assert [row.answer for row in rows if not any(answers(text, row) for text in texts)] == []


def test_questions_are_made_of_every_page_of_the_handbook(
    documents: tuple[Project, Steps, Artifact], tiny: bases.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a server whose model always asks about the first half of the sentence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    project, steps, splits = documents
    data = project.data
    assert data.grow

    def half(messages: list[dict[str, str]], seed: int) -> str:
        words = messages[-1]["content"].partition("Answer: ")[2].rstrip(".").split()
        return f"What about {' '.join(words[: len(words) // 2 + 1])}?"

    with serving(model_of(tiny, half)) as served:
        url = {"endpoint": {"url": served.url, "model": "small", "max_tokens": 40}}
        settings = Grow.model_validate({"synthesise": {**data.grow.synthesise.model_dump(), **url}})
        grown = steps("grow", grow.run, settings, data.clean, data.system, data.max_quarantined, None, splits)
    rows = [row for row in store.read_rows(grown / "train.jsonl") if row.shape == "synthetic:questions"]
    assert {row.source for row in rows} == {path.name for path in (RECIPES / "documents/handbook").iterdir()}
    assert grown.summary["synthesise"]["sources"]["documents"] == 10
    told = grown.summary["synthesise"]["kinds"]["questions"]
    assert told["asked"] == len(served.asked) == told["kept"] + grown.summary["dropped"]
    assert told["kept"] > 100
    assert all(row.messages[0]["content"] == data.system for row in rows)


def test_the_documents_recipe_can_be_checked_as_it_stands(base: bases.Base) -> None:
    assert tunesmith.check(RECIPES / "documents").base == base
