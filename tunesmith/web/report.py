"""The report of a run: one HTML file that needs nothing else, made from what the steps left on disk.

No figure is worked out here: each stands in `show` or in a step's record.json, or is counted in a file beside it.
The page has no scripts and asks for nothing: its own policy forbids both, whatever text the rows may hold.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.core import store
from tunesmith.core.finished import Finished
from tunesmith.data.telling import ledger
from tunesmith.data.telling.ledger import Ledger, left_files
from tunesmith.lifecycle import OF_DATA
from tunesmith.result import Figure, Show
from tunesmith.web import charts, excerpts

Record = dict[str, Any]

UNBOUNDED = frozenset({"perplexity"})  # metrics that have no place between 0 and 1
SECTIONS = {
    "verdict": "Verdict",
    "answers": "Answers",
    "data": "Data",
    "tokens": "What is learnt",
    "plan": "Plan",
    "pretraining": "Pretraining",  # where the project has such a stage
    "training": "Training",
    "run": "The run",
}  # templates/section_*.html

_FIELDS = 40  # rows of the field table
_FILES = 12  # rows of the table of files
_VALUES = 30  # of a label
_LABEL_CHARACTERS = 60  # of the name of a field or of its value


def write(output: Path, found: Show) -> Path:
    """Writes `report.html` into a project's output folder, whole or not at all, and returns its path."""
    path = output / "report.html"
    store.write_text(path, render(output, found))
    return path


def render(output: Path, found: Show) -> str:
    """The page. `output` is where it will stand: its links to the run's files start there."""
    folders = {step.step: Path(step.folder) for step in found.steps}
    records = {name: store.read_json(folder / "record.json") for name, folder in folders.items()}
    summaries: dict[str, Record] = {name: record["summary"] for name, record in records.items()}
    data = folders["format"]
    steps = [Finished(folders[name], records[name]) for name in OF_DATA if name in records]
    counted = ledger.read(steps)
    return (
        environment()
        .get_template("report.html")
        .render(
            found=found,
            sections={id: name for id, name in SECTIONS.items() if found.pretraining or id != "pretraining"},
            summaries=summaries,
            charts=charts,
            lead=_lead(found),
            metrics=_metrics(found, summaries["verdict"]),
            fields=_fields(summaries["verdict"]["fields"]),
            answers=excerpts.answers(
                folders["verdict"] / "scores.jsonl",
                folders["base"] / "predictions.jsonl",
                folders["tuned"] / "predictions.jsonl",
                data / "test.jsonl",
            ),
            counted=counted,
            flow=_flow(counted, steps),
            noted=_noted(counted, steps),
            sources=_sources(counted),
            personal=excerpts.personal(steps),
            labels=_labels(counted.labels),
            balanced=_balanced(summaries.get("grow", {}).get("balance") or {"values": {}}),
            token_rows=excerpts.token_rows(
                data / "samples.json", data / "train.jsonl", summaries["format"]["proof"]["end_tokens"]
            ),
            curves=_curves(folders["train"] / "metrics.jsonl"),
            stage_curves=_curves(folders["pretrain"] / "metrics.jsonl") if found.pretraining else {},
            versions=_versions(records),
            artifacts={name: _near(path, output) for name, path in found.artifacts.items() if name != "report"},
        )
    )


def environment() -> Environment:
    """Where templates come from, and how they write numbers: figures of metrics have three decimals everywhere."""
    pages = Environment(
        loader=PackageLoader("tunesmith.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        metric=_metric,
        share=_share,
        interval=_interval,
        p_value=_p_value,
        plain=_plain,
        count=_count,
        tenths=_tenths,
        gigabytes=_gigabytes,
        megabytes=_megabytes,
        wrapping=_wrapping,
        address=quote,
    )
    return pages


def _lead(found: Show) -> str:
    if not found.rows.test:
        return "There are no test rows, so nothing was measured, and what was not measured is never a pass."
    reached = {
        "PASS": "the tuned model reaches what the project demands of it: every gate passed.",
        "FAIL": "the tuned model does not reach what the project demands of it.",
        "NOT ENOUGH DATA": "it cannot be told whether the tuned model reaches what the project demands of it.",
    }
    return f"On {found.rows.test:,} frozen test rows {reached[found.verdict]}"


def _metrics(found: Show, verdict: Record) -> list[Record]:
    """Each metric's figures, the p-value of no difference, and whether both lie between 0 and 1."""
    rows = []
    for name, tuned in found.metrics.tuned.items():
        base, gain = found.metrics.base[name], verdict["gains"][name]
        rows.append(
            {
                "name": name,
                "base": base,
                "tuned": tuned,
                "gain": found.metrics.gain[name],
                "p_value": gain["p_value"],
                "test": gain["test"],
                "bounded": name not in UNBOUNDED and (base.value, tuned.value) != (None, None),
            }
        )
    return rows


def _fields(tables: dict[str, dict[str, Record]]) -> Record:
    """The fields of JSON answers, the commonest first. One that a single model named has no figures for the other."""
    nothing = dict.fromkeys(("precision", "recall", "f1"))
    support = {name: row["support"] for table in tables.values() for name, row in table.items()}
    names = sorted(support, key=lambda name: (-support[name], name))
    rows = [
        {
            "name": name[:_LABEL_CHARACTERS],
            "support": support[name],
            **{model: table.get(name, nothing) for model, table in tables.items()},
        }
        for name in names[:_FIELDS]
    ]
    return {"rows": rows, "more": len(names) - len(rows)}


def _flow(counted: Ledger, steps: list[Finished]) -> list[Record]:
    """Stage by stage: how many rows left, or were made, and how many remain, with samples of those that left."""
    losses = []
    for step in steps:
        first = next(stage.stage for stage in counted.stages if stage.step == step.step)
        paths = left_files(step)
        losses += excerpts.quarantined(paths["quarantined"], first) if "quarantined" in paths else []
        losses += excerpts.dropped(paths["dropped"], first) if "dropped" in paths else []
    excerpts.with_others(losses, steps)
    return [
        {
            "stage": stage.stage,
            "made": stage.made,
            "gone": stage.dropped + stage.quarantined,
            "left": stage.kept,
            "losses": [loss for loss in losses if loss.stage == stage.stage],
        }
        for stage in counted.stages
    ]


def _noted(counted: Ledger, steps: list[Finished]) -> list[excerpts.Loss]:
    """What was done to rows that were kept, or seen in them, with samples."""
    notes = excerpts.noted(steps[-1], counted.noted)
    excerpts.with_others(notes, steps)
    return notes


def _sources(counted: Ledger) -> list[Record]:
    """Where each file's records are; of many files, the largest, and the others in one line."""
    most = len(counted.sources) if len(counted.sources) <= _FILES else _FILES - 1
    lines = [(source.path[:_LABEL_CHARACTERS], [source]) for source in counted.sources[:most]]
    if rest := counted.sources[most:]:
        lines.append((f"{len(rest):,} more files", rest))
    return [
        {
            "path": name,
            "records": sum(source.records for source in group),
            "made": sum(source.made for source in group),
            "quarantined": sum(source.quarantined for source in group),
            "dropped": sum(source.dropped for source in group),
            "kept": [sum(source.kept.get(side, 0) for source in group) for side in counted.rows],
        }
        for name, group in lines
    ]


def _labels(labels: dict[str, dict[str, int]]) -> list[Record]:
    """For each field of the answers, how often it has each of its values; of many, the commonest."""
    return [
        {
            "field": field[:_LABEL_CHARACTERS],
            "most": max(values.values()),
            "bars": [
                (excerpts.masked(value, _LABEL_CHARACTERS).text, count)
                for value, count in list(values.items())[:_VALUES]
            ],
            "more": len(values) - _VALUES,
            "rarest": min(values.values()),
        }
        for field, values in labels.items()
    ]


def _balanced(balance: Record) -> list[Record]:
    """The values that training rows were balanced by, with their rows before and after."""
    return [
        {
            "name": excerpts.masked(name, _LABEL_CHARACTERS).text,
            "told": excerpts.masked(its.get("told", "")).text,
            "before": its["before"],
            "after": its["after"],
        }
        for name, its in balance["values"].items()
    ]


def _curves(metrics: Path) -> dict[str, list[charts.Point]]:
    """The points of each curve of the training, by step. A figure that was not finite is null in the file."""
    entries = list(store.read_jsonl(metrics))
    names = ("loss", "validation_loss", "learning_rate", "tokens_per_second", "gradient_norm", "token_accuracy")
    return {name: [(e["step"], e[name]) for e in entries if e.get(name) is not None] for name in names}


def _versions(records: dict[str, Record]) -> dict[str, str]:
    """What each step ran with; a step that was not run again keeps the versions of its own time."""
    found: dict[str, dict[str, None]] = {}
    for record in records.values():
        for name, version in record["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _near(path: str, output: Path) -> str:
    return Path(os.path.relpath(path, output)).as_posix()


def _metric(value: float | None, sign: bool = False) -> str:
    return "not measured" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else _metric(value)


def _interval(figure: Figure) -> str:
    if figure.value is None:
        return ""
    if figure.low is None or figure.high is None:
        return "too few rows for bounds"
    return f"{figure.low:.3f} to {figure.high:.3f}"


def _p_value(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plain(value: Any) -> str:
    """A value of the plan."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def _count(value: int) -> str:
    return f"{value:,}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.1f} GB"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.1f} MB"


def _wrapping(name: str) -> Markup:
    """A name that may be broken after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))
