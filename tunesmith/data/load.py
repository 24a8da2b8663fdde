"""Step 1: any file in, canonical conversation rows out; what cannot be read is quarantined with its fix.

`rows.jsonl` holds the rows, `quarantine.jsonl` the records that are none, each with file, line, reason and what to
change. Nothing is lost between the two: records in = rows + quarantined, for every file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core.data_section import Source
from tunesmith.core.errors import DataError
from tunesmith.core.records import Quarantined, Row
from tunesmith.data import files, parts, shapes
from tunesmith.data.convert import converter
from tunesmith.data.values import Unusable, plain, repaired

VERSION = 3

_SHOWN_CHARACTERS = 500  # of a quarantined record
_QUARANTINE = "output/failed/load/quarantine.jsonl"  # where a refused step's folder is kept


@dataclass
class Ledger:
    """What became of the records of one file."""

    path: str
    rows_in: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    first: dict[str, Quarantined] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.shapes.total()

    @property
    def quarantined(self) -> int:
        return self.reasons.total()

    def add(self, of_part: dict[str, Any]) -> None:
        self.rows_in += of_part["rows_in"]
        for name in ("shapes", "reasons", "repairs"):
            vars(self)[name].update(of_part[name])
        for reason, quarantined in of_part["first"].items():
            self.first.setdefault(reason, Quarantined(**quarantined))

    def enter(self, outcome: Row | Quarantined) -> None:
        self.rows_in += 1
        if isinstance(outcome, Row):
            self.shapes[outcome.shape] += 1
            self.repairs.update(outcome.changes)
        else:
            self.reasons[outcome.reason] += 1
            self.first.setdefault(outcome.reason, outcome)


def run(
    sources: list[Source], system: str | None, max_quarantined: float, out: Path, kept: Path | None = None
) -> dict[str, Any]:
    """Reads every source into `out`/rows.jsonl and `out`/quarantine.jsonl; returns the counts. Parts of files that are
    read stand in `kept`, where a run that goes on finds them.

    `system` goes before every row without a system message. Raises DataError when a file cannot be read at all, when
    more than the share `max_quarantined` of the records is quarantined, or when no row is left.
    """
    pieces = [replace(piece, source=i) for i, source in enumerate(sources) for piece in files.pieces(source.path)]
    with parts.workplace(kept, out) as work:
        done = parts.each("load", partial(_part, sources, system, max_quarantined), pieces, work)
        parts.concatenate(done, "quarantine.jsonl", out / "quarantine.jsonl")
        parts.concatenate(done, "rows.jsonl", out / "rows.jsonl")
    ledgers = [Ledger(source.path.name) for source in sources]
    for piece, one in zip(pieces, done):
        ledgers[piece.source].add(one.found)
    for source, ledger in zip(sources, ledgers):
        if not ledger.rows_in:
            raise _nothing_in(source.path)
    summary = _summary(ledgers)
    if not summary["kept"] or summary["quarantined"] / summary["rows_in"] > max_quarantined:
        raise _refusal(ledgers, summary, max_quarantined)
    return summary


def preview(source: Source, limit: int = 200) -> dict[str, Any]:
    """What `run` would make of a file's first records, with the names of its columns and three example rows."""
    ledger = Ledger(source.path.name)
    columns: dict[str, None] = {}
    examples: list[Row] = []
    for record, outcome in islice(_outcomes(source, None, files.records(source.path)), limit):
        ledger.enter(outcome)
        if isinstance(record.value, dict):
            columns.update(dict.fromkeys(repaired(str(key)) for key in record.value))
        if isinstance(outcome, Row) and len(examples) < 3:
            examples.append(outcome)
    if not ledger.rows_in:
        raise _nothing_in(source.path)
    return {
        "rows_in": ledger.rows_in,
        "kept": ledger.kept,
        "quarantined": ledger.quarantined,
        "shapes": dict(ledger.shapes.most_common()),
        "reasons": dict(ledger.reasons.most_common()),
        "columns": list(columns),
        "examples": [row.to_json() for row in examples],
    }


def _part(
    sources: list[Source], system: str | None, max_quarantined: float, part: parts.Part, folder: Path
) -> dict[str, Any]:
    """The rows and the quarantine of a part of a file, in files of its folder."""
    source, ledger = sources[part.source], Ledger(part.path.name)
    size_bytes = part.path.stat().st_size
    with open(folder / "rows.jsonl", "wb") as rows, open(folder / "quarantine.jsonl", "wb") as quarantine:
        for record, outcome in _outcomes(source, system, files.records_of(part)):
            ledger.enter(outcome)
            if isinstance(outcome, Row):
                rows.write(orjson.dumps(outcome.to_json(), option=orjson.OPT_APPEND_NEWLINE))
                continue
            quarantine.write(orjson.dumps(asdict(outcome), option=orjson.OPT_APPEND_NEWLINE))
            if record.swallows and record.size_bytes > max_quarantined * size_bytes:
                raise _broken_off(outcome, record.size_bytes / size_bytes)
    assert ledger.rows_in == ledger.kept + ledger.quarantined, f"{ledger.path}: the ledger does not balance"
    return {**vars(ledger), "first": {reason: asdict(quarantined) for reason, quarantined in ledger.first.items()}}


def _outcomes(
    source: Source, system: str | None, records: Iterable[files.Record]
) -> Iterator[tuple[files.Record, Row | Quarantined]]:
    """Each record, and the row or the quarantined record that it becomes."""
    convert = converter(source.convert) if source.convert else None
    name = repaired(source.path.name)
    for record in records:
        notes: list[str] = []
        try:
            if record.problem is not None:
                raise record.problem
            value = plain(record.value, notes)
            if convert is not None:
                value = plain(convert(value), notes)
            found = shapes.read(value, source.fields, system, notes)
        except Unusable as problem:
            yield record, Quarantined(name, record.line, problem.reason, repaired(problem.fix), _beginning(record))
        else:
            yield (
                record,
                Row(
                    found.messages,
                    name,
                    record.line,
                    found.shape,
                    source.split,
                    found.tools,
                    found.rejected,
                    found.time,
                    changes=found.notes,
                ),
            )


def _beginning(record: files.Record) -> str:
    try:
        text = json.dumps(record.value, ensure_ascii=False, default=str) if record.text is None else record.text
    except RecursionError:
        text = "(nested too deeply to be shown)"
    return repaired(text.lstrip()[:_SHOWN_CHARACTERS].rstrip())


def _summary(ledgers: Iterable[Ledger]) -> dict[str, Any]:
    whole = Ledger("")
    for ledger in ledgers:
        whole.rows_in += ledger.rows_in
        whole.shapes += ledger.shapes
        whole.reasons += ledger.reasons
        whole.repairs += ledger.repairs
    return {
        "headline": f"{whole.rows_in:,} records: {whole.kept:,} rows, {whole.quarantined:,} quarantined",
        "rows_in": whole.rows_in, "kept": whole.kept, "quarantined": whole.quarantined,
        "shapes": dict(whole.shapes.most_common()), "reasons": dict(whole.reasons.most_common()),
        "repairs": dict(whole.repairs.most_common()),
        "sources": [{"path": ledger.path, "rows_in": ledger.rows_in, "kept": ledger.kept,
                     "quarantined": ledger.quarantined, "shapes": dict(ledger.shapes.most_common())}
                    for ledger in ledgers],
    }  # fmt: skip


def _refusal(ledgers: list[Ledger], summary: dict[str, Any], max_quarantined: float) -> DataError:
    if not summary["rows_in"]:
        return DataError("there is nothing to load", "data.sources names no file", "name a file under data.sources")
    first: dict[str, Quarantined] = {}
    for ledger in ledgers:
        first = {**ledger.first, **first}
    reasons = list(summary["reasons"].items())[:3]
    why = "; ".join(
        f"{reason}: {count:,}, first at {first[reason].source}:{first[reason].line}" for reason, count in reasons
    )
    raising = "" if not summary["kept"] else f"; or raise data.max_quarantined (now {max_quarantined:g})"
    return DataError(
        f"{summary['quarantined']:,} of {summary['rows_in']:,} records cannot be used",
        why,
        f"read {_QUARANTINE}; for the commonest: {first[reasons[0][0]].fix}{raising}",
    )


def _broken_off(problem: Quarantined, share: float) -> DataError:
    """One broken record that hides others must not count as one: the budget is then held against the bytes."""
    return DataError(
        f"{share:.0%} of {problem.source} cannot be read, from record or line {problem.line} on",
        problem.reason,
        problem.fix,
    )


def _nothing_in(path: Path) -> DataError:
    return DataError(
        f"{path.name} holds no records",
        "there is no line or row in it besides blank ones and a header",
        "write the file again, or take it out of data.sources",
    )
