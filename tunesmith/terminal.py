"""The short forms for a terminal: the last run, and what a check found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from tunesmith.api import Check
from tunesmith.core.console import out
from tunesmith.result import Figure, Pretraining, Show

_FORM = {"records": ", one a record", "lines": ", one a line", "file": ""}
_COLOUR = {"PASS": "green", "FAIL": "red", "NOT ENOUGH DATA": "yellow"}


def show(found: Show, project: Path) -> None:
    """Base against tuned with intervals, verdict, ledger, and what to do next."""
    table = Table("metric", "base", "tuned", "gain", box=None, pad_edge=False)
    for name, tuned in found.metrics.tuned.items():
        table.add_row(
            name, _figure(found.metrics.base[name]), _figure(tuned), _figure(found.metrics.gain[name], sign=True)
        )
    rows, tokens, training = found.rows, found.tokens, found.training
    out.print()
    out.print(table)
    out.print(
        f"\n95 % intervals over {rows.test} frozen test rows"
        + ("; perplexity: lower is better, gain is the relative fall" if "perplexity" in found.metrics.tuned else "")
    )
    out.print(f"\n[bold {_COLOUR[found.verdict]}]{found.verdict}[/]")
    for gate in found.gates:
        out.print(f"  {escape(gate.sentence)}")
    made = f" + {rows.made:,} made" if rows.made else ""
    out.print(
        f"\nrows     {rows.records:,} records{made} = {rows.train:,} train + {rows.validation:,} validation "
        f"+ {rows.test:,} test + {rows.dropped:,} dropped + {rows.quarantined:,} quarantined"
    )
    for kind, came in found.yields.items():
        out.print(
            f"new      {escape(kind)}: {came.asked:,} asked, {came.parsed:,} rows, {came.grounded:,} grounded, "
            f"{came.unique:,} unique, {came.kept:,} kept"
        )
    out.print(f"tokens   {tokens.train:,} in the training rows, {tokens.learnt_train:,} of them learnt")
    if found.pretraining:
        out.print(_pretraining(found.pretraining))
    out.print(
        f"training {training.seconds:,.0f} s, {training.tokens_per_second:,.0f} tokens/s, "
        f"{training.peak_memory_bytes / 1e9:.1f} GB at the peak, best step {training.best_step} of {training.steps}"
    )
    before = found.pretraining.training.warnings if found.pretraining else []
    for warning in [*before, *training.warnings]:
        out.print(f"[yellow]warning[/]  {escape(warning)}")
    out.print(f"\nreport   {_near(found.artifacts['report'])}", markup=False)
    out.print(f"model    {_near(found.artifacts.get('merged') or found.artifacts['adapter'])}", markup=False)
    out.print(f"chat     tunesmith chat {_near(str(project))}", markup=False)


def check(found: Check) -> None:
    """The base model, and for each source its records, shapes and faults."""
    where = found.base.folder or "not on this machine yet; `tunesmith run` fetches it"
    out.print(f"project  {found.project.name}\nmodel    {found.base.name} ({where})", markup=False)
    for source in found.sources:
        shapes = ", ".join(f"{count} {shape}" for shape, count in source["shapes"].items())
        out.print(
            f"source   {source['path']}: first {source['rows_in']} records: {shapes or 'none readable'}", markup=False
        )
        for reason, count in source["reasons"].items():
            out.print(f"         {count} cannot be read: {reason}", markup=False)
    for text in found.texts:
        count = f"{'' if text['whole_file'] else 'at least '}{text['documents']:,}"
        noun = "document" if text["documents"] == 1 else "documents"
        out.print(f"text     {text['path']}: {count} {noun}{_FORM[text['form']]}", markup=False)
        for document in text["first"]:
            file = f"{document['source']}:" if text["files"] > 1 else ""
            out.print(f"         {file}{document['line']}: {document['text']}", markup=False)
        for reason, times in text["reasons"].items():
            out.print(f"         {times} cannot be read: {reason}", markup=False)
    out.print("\nnext: tunesmith run")


def messages() -> Iterator[str]:
    """Lines that a person types, or that come through a pipe."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def _pretraining(stage: Pretraining) -> str:
    loss, merged = stage.training.validation_loss, stage.merged_validation_loss
    told = "" if loss is None else f", validation loss {loss:.3f}"
    told += "" if merged is None else f", {merged:.3f} merged"
    read = f"{stage.documents:,} documents, {stage.tokens:,} tokens learnt"
    return f"texts    {read} in {stage.training.seconds:,.0f} s{told}"


def _figure(figure: Figure, sign: bool = False) -> str:
    if figure.value is None:
        return "not measured"
    plus = "+" if sign else ""
    if figure.low is None or figure.high is None:
        return f"{figure.value:{plus}.3f}  [dim](too few rows for bounds)[/]"
    return f"{figure.value:{plus}.3f} [dim]{figure.low:{plus}.3f}–{figure.high:{plus}.3f}[/]"


def _near(path: str) -> str:
    """Relative to the working folder where that is shorter."""
    full = Path(path).resolve()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else path
