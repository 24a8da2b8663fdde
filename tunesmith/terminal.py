"""The short forms for a terminal: the last run, what a check found, the ledger of the data, a row's history."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.api import Check
from tunesmith.core.console import counted, out
from tunesmith.data.reading.values import named
from tunesmith.data.telling.difference import Difference, Said
from tunesmith.data.telling.history import Event, History
from tunesmith.data.telling.ledger import PERSONAL, Ledger, Loss, Source
from tunesmith.result import Figure, Pretraining, Show

_FORM = {"records": ", one a record", "lines": ", one a line", "file": ""}
_COLOUR = {"PASS": "green", "FAIL": "red", "NOT ENOUGH DATA": "yellow"}
_PIECE = {"same": "", "before": "red strike", "after": "green"}
_MOST_SOURCES = 12  # rows of their table
_MOST_VALUES = 8  # of a label
_TEXT_CHARACTERS = 1_200  # of a message
_AROUND_CHARACTERS = 40  # of what stays the same beside a change


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
        records = f"first {source['rows_in']} records: {shapes or 'none readable'}"
        out.print(f"source   {source['path']}{_files(source)}: {records}", markup=False)
        _told(source)
        if unread := source["unread"]:
            told = "what stands there is in no row; `fields` or a `convert` file can say what it is for"
            out.print(f"         not read: {named(unread)} ({told})", markup=False)
    for text in found.texts:
        count = f"{'' if text['whole_file'] else 'at least '}{text['documents']:,}"
        noun = "document" if text["documents"] == 1 else "documents"
        out.print(f"text     {text['path']}{_files(text)}: {count} {noun}{_FORM[text['form']]}", markup=False)
        for document in text["first"]:
            file = f"{document['source']}:" if text["files"] > 1 else ""
            out.print(f"         {file}{document['line']}: {document['text']}", markup=False)
        _told(text)
    for path in found.to_fetch:
        out.print(f"not here {path}: `tunesmith run` fetches it", markup=False)
    unread = next((source["path"] for source in found.sources if not source["kept"]), None)
    mend = f"mend what cannot be read of {unread}, then tunesmith check again"
    out.print(f"\nnext: {mend if unread else 'tunesmith run'}", markup=False)


def _files(found: dict[str, Any]) -> str:
    return f" ({found['files']:,} files)" if found["files"] > 1 else ""


def _told(found: dict[str, Any]) -> None:
    """What of a source or text cannot be read, and which files are passed over."""
    for reason, count in found["reasons"].items():
        out.print(f"         {count} cannot be read: {reason}", markup=False)
        if reason in found.get("fixes", {}):
            out.print(f"           {found['fixes'][reason]}", markup=False)
    for why, names in found["skipped"].items():
        out.print(
            f"         {len(names)} skipped, {why}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}", markup=False
        )


def ledger(found: Ledger) -> None:
    """Every stage's rows in and out with the reasons, where each file's records are, and what is known of the rows."""
    made = bool(found.made)
    table = _table("stage", "in", *(["made"] if made else []), "left out", "kept", "why, and the first of them")
    for stage in found.stages:
        gone, why = stage.dropped + stage.quarantined, Text("\n").join(map(_loss, stage.losses))
        numbers = [_count(stage.rows_in), *([_count(stage.made)] if made else []), _count(gone), _count(stage.kept)]
        table.add_row(stage.stage, *numbers, why, style="" if gone or stage.made else "dim")
    out.print(table, soft_wrap=False)
    out.print()
    out.print(_sources(found), soft_wrap=False)
    out.print()
    grid = _grid()
    for label, text in _facts(found):
        grid.add_row(label, text)
    counted = f"at each of {len(found.stages)} stages rows in = kept + left out, counted in {found.files} files"
    grid.add_row()
    grid.add_row(Text("balanced", "bold green"), f"{found.equation}; {counted}")
    out.print(grid, soft_wrap=False)
    out.print("\na row's history: tunesmith data why FILE:LINE", style="dim")


def histories(found: list[History]) -> None:
    """Each row with what became of it, step by step."""
    for history in found:
        where = Text.assemble((history.where, "bold"), f"  {_NOW.get(history.now, f'now in {history.now}')}")
        out.print(where.append(f"  id {history.id}" if history.id else "", "dim"), soft_wrap=False)
        out.print()
        grid, shown = _grid(), set[str]()
        for message in history.messages:
            grid.add_row(message["role"], _shown(_said(message)))
        if history.messages:
            grid.add_row()
        for event in history.events:
            for label, text in _event(event, shown):
                grid.add_row(label, text)
        for answer in history.answers:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in answer.figures.items() if value is not None)
            stopped = "" if answer.finish == "stop" else "; cut at the token limit"
            grid.add_row(answer.model, _shown(answer.text))
            grid.add_row("", Text(figures + stopped, "dim"))
        out.print(grid, soft_wrap=False)
        out.print()
        if history.more:
            out.print(f"and {counted(history.more, 'row')} more of that name", style="dim")


def difference(found: Difference) -> None:
    """Settings, counts, and a few rows of each kind."""
    table = _table("", "before", "after")
    for side in found.before.rows | found.after.rows:
        table.add_row(side, *(_count(version.rows.get(side, 0)) for version in (found.before, found.after)))
    for reason, (old, new) in found.reasons.items():
        table.add_row(f"left out: {_shown(reason)}", _count(old), _count(new), style="dim" if old == new else "")
    versions = (found.before, found.after)
    out.print(Text("\n".join(f"{v.step} {v.identity} of {v.started[:16].replace('T', ' ')}" for v in versions), "dim"))
    out.print()
    out.print(table, soft_wrap=False)
    out.print()
    grid = _grid()
    for setting in found.settings or ["no setting differs"]:
        grid.add_row("setting", _shown(setting))
    grid.add_row("rows", f"{found.same:,} the same, {found.added:,} added, {found.removed:,} removed")
    if found.answered_otherwise:
        grid.add_row("", f"{counted(found.answered_otherwise, 'row')} answered otherwise, to the same prompt")
    if found.asked_otherwise:
        told = "asked otherwise: another system message or other tools, or the same words in other writing"
        grid.add_row("", f"{counted(found.asked_otherwise, 'row')} {told}")
    for here, there, count in found.moved:
        grid.add_row("moved", f"{counted(count, 'row')} from {here} to {there}")
    for kind, samples in found.samples.items():
        for sample in samples:
            grid.add_row()
            grid.add_row(kind.split("_")[0], _sample(sample.before, sample.after))
    out.print(grid, soft_wrap=False)


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


_NOW = {"rows": "kept", "dropped": "dropped", "quarantined": "quarantined"}


def _sources(found: Ledger) -> Table:
    """Where each file's records are; small files beyond the first ones in one line."""
    names = list(found.rows)
    table = _table("file", "records", *(["made"] if found.made else []), "quarantined", "dropped", *names)

    def add(label: str, sources: list[Source]) -> None:
        made = [sum(source.made for source in sources)] if found.made else []
        own = [sum(source.records for source in sources), *made, sum(source.quarantined for source in sources)]
        own += [sum(source.dropped for source in sources)]
        table.add_row(
            _shown(label, 60), *map(_count, own), *(_count(sum(s.kept.get(n, 0) for s in sources)) for n in names)
        )

    most = len(found.sources) if len(found.sources) <= _MOST_SOURCES else _MOST_SOURCES - 1
    for source in found.sources[:most]:
        add(source.path, [source])
    if rest := found.sources[most:]:
        add(f"{len(rest):,} more files", rest)
    return table


def _facts(found: Ledger) -> Iterator[tuple[str, RenderableType]]:
    for side, told in found.tokens.items():
        count = found.groups.get(side, 0)
        groups = f" in {count:,} {'group' if count == 1 else 'groups'}" if count else ""
        yield (
            side,
            (
                f"{counted(told['rows'], 'row')}{groups}, {told['tokens']:,} tokens, {told['learnt_tokens']:,} learnt; "
                f"a row has {told['median']:,} (median), {told['p95']:,} (95 %), {told['longest']:,} at most"
            ),
        )
    for name, words in found.lengths.items():
        yield name, f"{counted(words['p50'], 'word')} (median), {words['p95']:,} (95 %), {words['max']:,} at most"
    for kind, rows in found.personal_data.items():
        yield "personal", f"{kind}: " + ", ".join(f"{what} in {counted(count, 'row')}" for what, count in rows.items())
    for note, count in found.noted.items():
        if not note.startswith(tuple(PERSONAL)):
            yield "noted", _shown(f"{note}: {counted(count, 'row')}")
    for label, values in found.labels.items():
        few = ", ".join(f"{_shown(value, 30)} {count:,}" for value, count in islice(values.items(), _MOST_VALUES))
        more = f", {len(values) - _MOST_VALUES:,} more" if len(values) > _MOST_VALUES else ""
        yield "label", _shown(f"{label}: {few}{more}")
    if found.vouched:
        yield "split", found.vouched
    for warning in found.warnings:
        yield "warning", Text(warning, "yellow")


def _event(event: Event, shown: set[str]) -> Iterator[tuple[str, RenderableType]]:
    """Label and text of each line; the rows that were `shown` before are not shown again."""
    step = event.step
    for told in event.told:
        yield step, _shown(told)
        step = ""
        for other in (other for other in event.others if told.endswith(f" {other.where}") and other.where not in shown):
            shown.add(other.where)
            rows = _grid()
            for message in other.messages:
                if message["role"] != "system":
                    rows.add_row(message["role"], _shown(_said(message), _TEXT_CHARACTERS // 3))
            yield "", Padding(rows, (0, 0, 0, 2), style="dim")
    for text in event.changed:
        yield step, Text.assemble((f"{text.role}: ", "dim"), *_changed(text.pieces, "before"))
        yield "", Text.assemble((" " * (len(text.role) - 3) + "now: ", "dim"), *_changed(text.pieces, "after"))
        step = ""


def _changed(pieces: list[tuple[str, str]], version: str) -> Iterator[tuple[str, str]]:
    """The text in one of its versions, as far as it changed."""
    for i, (kind, text) in enumerate(pieces):
        if kind == "same" and len(text) > 2 * _AROUND_CHARACTERS:
            end, begin = text[:_AROUND_CHARACTERS] if i else "", text[-_AROUND_CHARACTERS:]
            text = f"{end}…{begin if i < len(pieces) - 1 else ''}"
        if kind in ("same", version):
            yield _shown(text), _PIECE[kind]


def _sample(before: Said | None, after: Said | None) -> Text:
    """One row, and where it is another after than before, both."""
    said = after or before
    assert said is not None
    sides = list(dict.fromkeys(one.side for one in (before, after) if one))
    text = Text.assemble((f"{said.where}  {' -> '.join(sides)}\n", "dim"), _shown(said.prompt, _TEXT_CHARACTERS // 3))
    if before and after and before.answer != after.answer:
        return text.append(f"\nbefore: {_shown(before.answer)}", "red").append(
            f"\nafter:  {_shown(after.answer)}", "green"
        )
    return text.append(f"\n{_shown(said.answer, _TEXT_CHARACTERS // 3)}", "dim")


def _said(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    return str(message["content"]) + (json.dumps(calls, ensure_ascii=False) if calls else "")


def _shown(text: str, characters: int = _TEXT_CHARACTERS) -> str:
    """A text of somebody else's, without what a terminal would obey."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:characters])
    return plain + ("…" if len(text) > characters else "")


def _loss(loss: Loss) -> Text:
    return Text.assemble(f"{loss.reason} ", (f"{loss.rows:,}", "bold"), (f"  {_shown(loss.first, 60)}", "dim"))


def _table(first: str, *rest: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in rest:
        table.add_column(
            name, justify="left" if name.startswith("why") else "right", no_wrap=not name.startswith("why")
        )
    return table


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    return grid


def _count(count: int) -> str:
    return f"{count:,}"


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
