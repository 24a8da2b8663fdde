"""The verbs over a run whose costly steps are played by quick ones: reports, halts and projects that share a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tunesmith
from tunesmith import lifecycle
from tunesmith.cli import app
from tunesmith.core import store
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.models.base import Base

Write = Callable[..., Path]
TINY = "train: {{epochs: {epochs}, evaluations: 1}}\nevaluate: {{generation: {{max_new_tokens: 2}}}}\n"


@pytest.fixture
def small(project: Write, tiny: Base) -> Path:
    """A project on the two-layer model: it runs in seconds and passes nothing."""
    assert tiny.folder is not None
    path = project(TINY.format(epochs=1), lines=40)
    path.write_text(path.read_text().replace("smollm2-135m-instruct", str(tiny.folder)))
    return path


def test_the_report_is_that_of_the_last_run(small: Path) -> None:
    """Run A, run B, run A again: every step is done, and the report is A's."""
    page = small.parent / "output/report.html"
    first = tunesmith.run(small)
    assert isinstance(first, tunesmith.Show)
    tunesmith.run(small, set=["data.split.test=0.4"])
    assert first.steps[-1].identity not in page.read_text()
    again = tunesmith.run(small)
    assert isinstance(again, tunesmith.Show)
    assert again.rows == first.rows == tunesmith.show(small).rows
    assert first.steps[-1].identity in page.read_text()


def test_until_the_verdict_has_the_verdicts_status(small: Path) -> None:
    halted = tunesmith.run(small, until="verdict")
    assert isinstance(halted, tunesmith.Halted)
    assert halted.exit_status in (3, 4)
    told = CliRunner().invoke(app, ["run", str(small), "--until", "verdict", "--json"])
    assert told.exit_code == halted.exit_status
    assert json.loads(told.stdout)["headline"] == halted.headline
    assert CliRunner().invoke(app, ["run", str(small), "--until", "split"]).exit_code == 0


def test_until_the_last_step_is_a_whole_run(small: Path) -> None:
    assert isinstance(tunesmith.run(small, until=lifecycle.STEPS[-1]), tunesmith.Show)
    assert tunesmith.show(small).exit_status in (3, 4)


def test_two_projects_in_one_folder_do_not_share_a_run(small: Path) -> None:
    tunesmith.run(small)
    other = small.with_name("other.yaml")
    other.write_text(small.read_text())
    with pytest.raises(ResourceError, match="holds no finished run"):
        tunesmith.show(other)


def test_a_forced_training_takes_the_verdict_along(small: Path) -> None:
    tunesmith.run(small)
    states = {s.step: s.state for s in tunesmith.status(small)}
    assert set(states.values()) == {"done"}
    tunesmith.run(small, force="train", until="train")
    states = {s.step: s.state for s in tunesmith.status(small)}
    assert [step for step, state in states.items() if state == "to run"] == ["tuned", "verdict", "export"]


def test_chat_refuses_another_base(small: Path, tiny: Base) -> None:
    tunesmith.run(small)
    assert tiny.folder is not None
    template = tiny.folder / "chat_template.jinja"
    before = template.read_text()
    try:
        template.write_text(before + " ")
        with pytest.raises(ResourceError, match="is not the one that was tuned"):
            tunesmith.Chat(small)
    finally:
        template.write_text(before)


def test_a_row_of_the_exam_tells_how_both_models_answered_it(small: Path) -> None:
    found = tunesmith.run(small)
    assert isinstance(found, tunesmith.Show)
    row = store.read_rows(Path(found.artifacts["test_rows"]))[0]
    (told,) = tunesmith.data_why(f"data.jsonl:{row.line}", small)
    assert (told.id, told.now) == (row.id, "test")
    assert [answer.model for answer in told.answers] == ["base", "tuned"]
    of_tuned = next(p for p in store.read_jsonl(Path(found.artifacts["predictions_tuned"])) if p["id"] == row.id)
    assert told.answers[1].text == of_tuned["answer"]
    assert "exact_match" in told.answers[0].figures
    shown = CliRunner().invoke(app, ["data", "why", row.id, str(small)], catch_exceptions=False).stdout
    assert "exact_match" in shown
    tunesmith.run(small, set=["data.split.test=0.3"], until="format")
    assert all(not history.answers for history in tunesmith.data_why(row.id, small))


def test_check_refuses_what_run_refuses(small: Path) -> None:
    for override in ("evaluate.gates=[{metric: rouge_l}]", "data.split={test: 0.6, validation: 0.5}"):
        with pytest.raises(ConfigError):
            tunesmith.check(small, set=[override])


def test_a_single_override_may_be_a_string(small: Path) -> None:
    assert tunesmith.check(small, set="train.epochs=2").project.train.epochs == 2
