"""START HERE: from raw examples to a tuned model that was measured against its base.

`lifecycle` is the whole story, one step a line. A step is a plain function; its arguments are its only inputs, and it
runs again only when one of them changed (core/step.py). The modules named here import no torch until a step runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.data_section import Data, Judge
from tunesmith.core.errors import settings_named
from tunesmith.core.project import Pretrain, Project
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import format, grow, judge, load, pipeline, split, texts
from tunesmith.evaluate import gates, predict
from tunesmith.export import export
from tunesmith.models.base import Base
from tunesmith.plan import combine, planner
from tunesmith.train import run as training
from tunesmith.train import stage


@dataclass(frozen=True)
class Lifecycle:
    """What each step made."""

    raw: Artifact
    clean: Artifact
    judged: Artifact
    splits: Artifact
    grown: Artifact
    dataset: Artifact
    plan: Artifact
    start: Base | Artifact
    tuned: Artifact
    before: Artifact
    after: Artifact
    verdict: Artifact
    exported: Artifact


# fmt: off
def lifecycle(p: Project, base: Base, step: Steps) -> Lifecycle:
    """Each line is one resumable step; its arguments are its only inputs."""
    data, scoring, answers = p.data, p.evaluate, (p.data.clean.answer, p.data.clean.answer_schema)
    gates.check(scoring.gates, *answers)
    combine.check(p, base)
    raw      = step("load", load.run, data.sources, data.system, data.max_quarantined)  # any format in, rows out
    clean    = step("clean", pipeline.run, data.clean, raw)  # repair, personal data, duplicates; before the split
    judged   = scored(data.judge, base, clean, step) if data.judge else clean  # rows below a score go, if any is set
    splits   = step("split", split.run, data.split, data.pinned, judged)  # one prompt, one side; test is frozen
    grown    = enlarged(data, base, splits, step) if data.grow else splits    # the training side alone, if at all
    dataset  = step("format", format.run, data.format, base, grown)   # template, loss mask, ledger, stop proof
    plan     = step("plan", planner.run, p.train, base, dataset)      # every value is a Decision(value, reason)
    start    = pretrained(p.pretrain, data.max_quarantined, base, step) if p.pretrain else base  # raw text, if any
    tuned    = step("train", training.run, plan, start, dataset)      # packed rows, the method, the best checkpoint
    before   = step("base", predict.run, scoring.generation, base, None, dataset)
    after    = step("tuned", predict.run, scoring.generation, start, tuned, dataset)
    verdict  = step("verdict", gates.run, scoring.gates, *answers, before, after)  # PASS, FAIL or NOT ENOUGH DATA
    exported = step("export", export.run, p.export, p.name, start, tuned, plan, dataset, verdict)
    return Lifecycle(raw, clean, judged, splits, grown, dataset, plan, start, tuned, before, after, verdict, exported)


def scored(j: Judge, base: Base, clean: Artifact, step: Steps) -> Artifact:
    """The stage that asks a model about every row. The base is one of its inputs only where it is that model."""
    return step("judge", judge.run, j, None if j.endpoint.url else base, clean)


def enlarged(data: Data, base: Base, splits: Artifact, step: Steps) -> Artifact:
    """The stage that balances, grows and mixes. The base is one of its inputs only where it is asked for rows."""
    assert data.grow is not None
    asked = base if data.grow.asks_base else None
    return step("grow", grow.run, data.grow, data.clean, data.system, data.max_quarantined, asked, splits)


def pretrained(p: Pretrain, max_quarantined: float, base: Base, step: Steps) -> Artifact:
    """The stage before the rows, continued pretraining: its result is a whole model, on which the rows are learnt."""
    with settings_named({"train.": "pretrain.train.", "data.format.max_tokens": "pretrain.block_tokens"}):
        blocks = step("texts", texts.run, p.texts, p.block_tokens, max_quarantined, base)  # documents, each token once
        plan   = step("pretrain-plan", planner.run, p.train, base, blocks)
        return step("pretrain", stage.run, plan, base, blocks)  # the same loop; then merged into one model
# fmt: on


STEPS = (
    "load", "clean", "judge", "split", "grow", "format", "plan", "texts", "pretrain-plan", "pretrain", "train", "base",
    "tuned", "verdict", "export",
)  # fmt: skip
KEYS = {  # settings that are a step's arguments, as the project file names them
    "load.sources": "data.sources",
    "load.system": "data.system",
    "load.max_quarantined": "data.max_quarantined",
    "clean.clean": "data.clean",
    "judge.judge": "data.judge",
    "split.split": "data.split",
    "split.pinned": "data.sources",
    "grow.grow": "data.grow",
    "grow.clean": "data.clean",
    "grow.system": "data.system",
    "grow.max_quarantined": "data.max_quarantined",
    "format.format": "data.format",
    "texts.texts": "pretrain.texts",
    "texts.block_tokens": "pretrain.block_tokens",
    "texts.max_quarantined": "data.max_quarantined",
    "pretrain-plan.train": "pretrain.train",
    "base.generation": "evaluate.generation",
    "tuned.generation": "evaluate.generation",
    "verdict.gates": "evaluate.gates",
    "verdict.answer": "data.clean.answer",
    "verdict.answer_schema": "data.clean.answer_schema",
}
OF_DATA = STEPS[: STEPS.index("format") + 1]
OPTIONAL = {  # steps that a project has only with this section
    "judge": "data.judge",
    "grow": "data.grow",
    "texts": "pretrain",
    "pretrain-plan": "pretrain",
    "pretrain": "pretrain",
}


def steps_of(p: Project) -> tuple[str, ...]:
    """The names of a project's steps, in the order in which they run."""
    sections = {"data.judge": p.data.judge, "data.grow": p.data.grow, "pretrain": p.pretrain}
    return tuple(name for name in STEPS if name not in OPTIONAL or sections[OPTIONAL[name]])


def output_of(project_file: Path) -> Path:
    """Everything that runs write: `output/` beside tunesmith.yaml, `output-NAME/` beside NAME.yaml."""
    name = "output" if project_file.name == "tunesmith.yaml" else f"output-{project_file.stem}"
    return project_file.resolve().parent / name
