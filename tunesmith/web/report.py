"""The report of a run: one HTML file that needs nothing else, made from what the steps left on disk.

No figure is made up or computed anew here: each is read from `show`, from a step's record.json or from a file beside it.
The page has no scripts and asks for nothing: its own policy forbids both, whatever text the rows may hold.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.core import store
from tunesmith.show import Figure, Show
from tunesmith.web import charts, excerpts
from tunesmith.web.excerpts import Loss

Record = dict[str, Any]

UNBOUNDED = frozenset({"perplexity"})  # metrics that have no place between 0 and 1
SECTIONS = {"verdict": "Verdict", "answers": "Answers", "data": "Data", "tokens": "What is learnt", "plan": "Plan",
            "training": "Training", "run": "The run"}  # templates/section_*.html
_FIELDS, _VALUES, _LABEL_CHARACTERS = 40, 30, 60  # rows of the field table; bars of a label; of a label's name


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
    return environment().get_template("report.html").render(
        found=found, sections=SECTIONS, summaries=summaries, excerpts=excerpts, charts=charts, lead=_lead(found),
        metrics=_metrics(found, summaries["verdict"]), fields=_fields(summaries["verdict"]["fields"]),
        answers=excerpts.answers(folders["verdict"] / "scores.jsonl", folders["base"] / "predictions.jsonl",
                                 folders["tuned"] / "predictions.jsonl", folders["format"] / "test.jsonl"),
        flow=_flow(found, folders, summaries), labels=_labels(summaries["clean"]["labels"]),
        token_rows=excerpts.token_rows(folders["format"] / "samples.json", folders["format"] / "train.jsonl",
                                       summaries["format"]["proof"]["end_tokens"]),
        curves=_curves(folders["train"] / "metrics.jsonl", found), versions=_versions(records),
        artifacts={name: _near(path, output) for name, path in found.artifacts.items() if name != "report"})


def environment() -> Environment:
    """Where templates come from, and how they write numbers: figures of metrics have three decimals everywhere."""
    pages = Environment(loader=PackageLoader("tunesmith.web"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(metric=_metric, interval=_interval, share=lambda x: "–" if x is None else _metric(x), p_value=_p_value, count=lambda n: f"{n:,}",
                         plain=_plain, gigabytes=lambda n: f"{n / 1e9:.1f} GB", bytes=_bytes, address=quote)
    return pages


def _lead(found: Show) -> str:
    rows = f"{found.rows.test:,} frozen test rows"
    if found.verdict == "PASS":
        return f"On {rows} the tuned model is better than its base by what the project demands."
    if found.verdict == "FAIL":
        return f"On {rows} the tuned model does not reach what the project demands of it."
    if not found.rows.test:
        return "There are no test rows, so nothing was measured, and what was not measured is never a pass."
    return f"{rows[0].upper()}{rows[1:]} are too few to tell whether the tuned model reaches what the project demands of it."


def _metrics(found: Show, verdict: Record) -> list[Record]:
    """Each metric's figures with the p-value of no difference and, where they have one, their place between 0 and 1."""
    rows = []
    for name, tuned in found.metrics.tuned.items():
        base, bounded = found.metrics.base[name], name not in UNBOUNDED
        measured = base.value is not None or tuned.value is not None
        rows.append({"name": name, "base": base, "tuned": tuned, "gain": found.metrics.gain[name],
                     "p_value": verdict["gains"][name]["p_value"], "test": verdict["gains"][name]["test"],
                     "strip": charts.strip(base, tuned) if bounded and measured else None})
    return rows


def _fields(tables: dict[str, dict[str, Record]]) -> dict[str, Any]:
    """The fields of JSON answers, the commonest first; a field that one model alone named has no figures for the other."""
    base, tuned = tables["base"], tables["tuned"]
    nothing = dict.fromkeys(("precision", "recall", "f1"))
    names = sorted(base.keys() | tuned.keys(), key=lambda name: (-(tuned.get(name) or base[name])["support"], name))
    rows = [{"name": name[:_LABEL_CHARACTERS], "support": (tuned.get(name) or base[name])["support"],
             "base": base.get(name, nothing), "tuned": tuned.get(name, nothing)} for name in names[:_FIELDS]]
    return {"rows": rows, "more": max(0, len(names) - _FIELDS)}


def _flow(found: Show, folders: dict[str, Path], summaries: dict[str, Record]) -> list[Record]:
    """Stage by stage: how many rows left, why, and how many remain. The last remain as train, validation and test."""
    losses: list[Loss] = [*excerpts.quarantined(folders["load"] / "quarantine.jsonl", "reading"),
                          *excerpts.dropped(folders["clean"] / "dropped.jsonl", "cleaning"),
                          *excerpts.dropped(folders["split"] / "dropped.jsonl", "splitting"),
                          *excerpts.dropped(folders["format"] / "dropped.jsonl", "tokenising")]
    stages = [("reading", found.rows.quarantined), *((s["stage"], s["dropped"]) for s in summaries["clean"]["stages"]),
              ("splitting", summaries["split"]["dropped"]), ("tokenising", summaries["format"]["dropped"])]
    flow, left = [], found.rows.records
    for stage, gone in stages:
        left -= gone
        flow.append({"stage": stage, "gone": gone, "left": left, "losses": [loss for loss in losses if loss.stage == stage]})
    assert left == found.rows.train + found.rows.validation + found.rows.test
    return flow


def _labels(labels: dict[str, dict[str, int]]) -> list[Record]:
    """For each field of the answers, how often it has each of its values."""
    return [{"field": field[:_LABEL_CHARACTERS],
             "values": [{"name": value[:_LABEL_CHARACTERS] or "(empty)", "count": count, "bar": charts.bar(count / max(values.values()))}
                        for value, count in list(values.items())[:_VALUES]]}
            for field, values in labels.items()]


def _curves(metrics: Path, found: Show) -> dict[str, Any]:
    """Loss by step, and small curves of what else was noted at each. A figure that was not finite is null in the file."""
    entries = list(store.read_jsonl(metrics))

    def points(name: str) -> list[charts.Point]:
        return [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]

    validation = points("validation_loss")
    small = {"learning rate": "learning_rate", "tokens a second": "tokens_per_second", "gradient norm": "gradient_norm",
             "token accuracy": "token_accuracy"}
    return {"loss": charts.loss(points("loss"), validation, found.training.best_step), "validation": validation,
            "small": {title: charts.series(points(name), title) for title, name in small.items()}}


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
    return "not measured" if value is None else f"{value:{'+' if sign else ''}.3f}"


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
    if value is None:
        return "none"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
