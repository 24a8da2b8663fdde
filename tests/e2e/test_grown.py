"""A run whose training rows are balanced, grown and mixed, on a small model: the rest of the run reads what came of it,
and the ledger, the terminal and the report account for every row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished import folder_of, summary_of
from typer.testing import CliRunner

import tunesmith
from tunesmith.cli import app
from tunesmith.core import store
from tunesmith.core.errors import ConfigError
from tunesmith.models import base as bases

SUPPORT = Path(__file__).parents[2] / "recipes/support"
GROW = {
    "balance": {"field": "category", "cap": 6, "weights": {"account": 2}},
    "synthesise": {"noise": {"rows": 9}},
    "mix": {"share": 0.2, "sources": [{"path": "general.jsonl"}]},
}


@pytest.fixture(scope="module")
def project(lively: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    tickets = (SUPPORT / "data/tickets.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    (folder / "tickets.jsonl").write_text("\n".join(tickets) + "\n", encoding="utf-8")
    general = ({"prompt": f"What is {i * 7919} in words?", "answer": f"A number, the {i}th."} for i in range(30))
    store.write_jsonl(folder / "general.jsonl", [*general, {"prompt": "Who never answers?"}])
    settings: dict[str, Any] = {
        "name": "grown",
        "model": str(lively.folder),
        "data": {
            "sources": [{"path": "tickets.jsonl", "fields": {"prompt": "message", "answer": "ticket"}}],
            "clean": {"answer": "json"},
            "grow": GROW,
        },
        "train": {"epochs": 1, "evaluations": 1},
        "evaluate": {"generation": {"max_new_tokens": 2}},
    }
    (folder / "tunesmith.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shown(project: Path) -> tunesmith.Show:
    found = tunesmith.run(project)
    assert isinstance(found, tunesmith.Show)
    return found


def test_what_trains_is_what_growing_left(shown: tunesmith.Show) -> None:
    grown, dataset = summary_of(shown, "grow"), summary_of(shown, "format")
    assert dataset["train"]["rows_in"] == grown["train"]
    shapes = {row.shape for row in store.read_rows(folder_of(shown, "format") / "train.jsonl")}
    assert "synthetic:noise" in shapes
    sources = {row.source for row in store.read_rows(folder_of(shown, "format") / "train.jsonl")}
    assert sources == {"tickets.jsonl", "general.jsonl"}
    for side in ("validation", "test"):
        name = f"{side}.jsonl"
        assert (folder_of(shown, "grow") / name).read_bytes() == (folder_of(shown, "split") / name).read_bytes()
    assert store.read_json(folder_of(shown, "format") / "certificate.json")["grown"]["leaks"] == 0


def test_the_ledger_accounts_for_rows_that_were_made(shown: tunesmith.Show) -> None:
    rows, grown = shown.rows, summary_of(shown, "grow")
    assert rows.made == grown["made"] > 30
    assert rows.records + rows.made == rows.quarantined + rows.dropped + rows.train + rows.validation + rows.test
    assert rows.reasons["over the cap of its label"] == grown["reasons"]["over the cap of its label"]
    assert Path(shown.artifacts["dropped_in_growing"]).is_file()
    assert [item["line"] for item in store.read_jsonl(Path(shown.artifacts["quarantined_in_growing"]))] == [31]


def test_what_was_made_is_counted_stage_by_stage_and_file_by_file(shown: tunesmith.Show, project: Path) -> None:
    found = tunesmith.data(project)
    stages = {stage.stage: stage for stage in found.stages if stage.step == "grow"}
    assert list(stages) == ["balancing", "growing", "mixing"]
    assert stages["growing"].made == 9
    assert (stages["mixing"].made, stages["mixing"].quarantined) == (31, 1)
    assert all(s.rows_in + s.made == s.kept + s.dropped + s.quarantined for s in found.stages)
    assert (found.made, found.quarantined, found.dropped) == (shown.rows.made, 1, shown.rows.dropped)
    general = next(source for source in found.sources if source.path == "general.jsonl")
    assert (general.records, general.made, general.quarantined) == (0, 31, 1)
    [history] = tunesmith.data_why("general.jsonl:31", project)
    assert history.now == "quarantined"


def test_the_terminal_and_the_report_tell_of_them(shown: tunesmith.Show, project: Path) -> None:
    told = " ".join(CliRunner().invoke(app, ["show", str(project)]).stdout.split())
    assert f"80 records + {shown.rows.made} made = {shown.rows.train} train" in told
    assert "noise: 9 asked, 9 rows, 9 grounded, 9 unique, 9 kept" in told
    page = Path(shown.artifacts["report"]).read_text(encoding="utf-8")
    assert "<h3>New rows</h3>" in page
    assert "<h3>Balanced by label</h3>" in page
    assert "over the cap of its label" in page
    assert "Certified anew" in page
    assert f"{shown.rows.made} made" in page
    rows = [" ".join(text.split()) for text in re.sub("<[^>]*>", " ", page.partition("File by file")[2]).split("\n")]
    assert "file records made quarantined dropped train validation test" in rows
    assert any(row.startswith("general.jsonl 0 31 1") for row in rows)


def test_the_step_is_one_of_the_project_only_with_its_section(shown: tunesmith.Show, project: Path) -> None:
    names = [status.step for status in tunesmith.status(project)]
    assert names.index("split") + 1 == names.index("grow") == names.index("format") - 1
    assert names == [step.step for step in shown.steps]
    changed = [status.step for status in tunesmith.status(project, set=["data.grow.mix.share=0.3"]) if status.why]
    assert changed[0] == "grow"
    assert tunesmith.why("format", project, set=["data.grow.mix.share=0.3"]) == [
        "data.grow.mix.share: 0.2 -> 0.3 (via grow)"
    ]
    plain = project / "plain.yaml"
    settings = yaml.safe_load((project / "tunesmith.yaml").read_text(encoding="utf-8"))
    del settings["data"]["grow"]
    plain.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert [status.step for status in tunesmith.status(plain)] == [name for name in names if name != "grow"]
    with pytest.raises(ConfigError, match=r"there is no step `grow` without a `data\.grow` section"):
        tunesmith.run(plain, until="grow")


def test_the_base_is_an_input_only_where_it_is_asked(shown: tunesmith.Show, project: Path) -> None:
    hashed = store.read_json(folder_of(shown, "grow") / "record.json")["hashed"]["arguments"]
    assert hashed["base"] is None
    asking = json.dumps({"paraphrase": {}})
    [line] = [s for s in tunesmith.status(project, set=[f"data.grow.synthesise={asking}"]) if s.step == "grow"]
    assert any(reason.startswith("base: null -> ") for reason in line.why)
