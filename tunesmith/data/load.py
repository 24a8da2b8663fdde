"""Step 1: any file in, canonical conversation rows out; what cannot be read is quarantined with its fix.

`rows.jsonl` holds the rows, `quarantine.jsonl` the records that are none, each with file, line, reason and what to
change. Nothing is lost between the two: records in = rows + quarantined, for every file.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import inputs
from tunesmith.core.data_section import Fields, Source
from tunesmith.core.errors import DataError
from tunesmith.core.records import Quarantined, Row
from tunesmith.data import parts, strings
from tunesmith.data.cleaning import pii
from tunesmith.data.reading import collect, files, readers, shapes
from tunesmith.data.reading.convert import converter
from tunesmith.data.reading.values import Unusable, compact, decode, plain, plain_record, repaired

VERSION = 6

_SHOWN_CHARACTERS = 500  # of a quarantined record
_READ = 0.5  # of the rows in which something stands in a column, have it; in fewer it stands by chance
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
            if outcome.changes:
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
    with collect.workplace(kept, out) as unpacked, parts.workplace(kept, out) as work:
        pieces, skipped = _pieces(sources, unpacked)
        done = parts.each("load", partial(_part, sources, system, max_quarantined), pieces, work)
        for name in ("rows.jsonl", "quarantine.jsonl"):
            parts.concatenate([one.folder / name for one in done], out / name)
    ledgers: dict[tuple[int, str], Ledger] = {}
    for piece, one in zip(pieces, done):
        ledgers.setdefault((piece.source, piece.name), Ledger(piece.name)).add(one.found)
    for ledger in ledgers.values():
        if not ledger.rows_in:
            raise _nothing_in(ledger.path)
    summary = _summary(list(ledgers.values()), skipped)
    if not summary["kept"] or summary["quarantined"] / summary["rows_in"] > max_quarantined:
        raise _refusal(list(ledgers.values()), summary, max_quarantined)
    return summary


def preview(source: Source, limit: int = 200) -> dict[str, Any]:
    """What `run` would make of the first records of a source, with the names of its columns and three example rows."""
    ledger = Ledger(str(source.path))
    columns: dict[str, None] = {}
    filled, read = Counter[str](), Counter[str]()
    examples: list[Row] = []
    skipped: list[collect.Skipped] = []
    with tempfile.TemporaryDirectory() as unpacked:
        for record, outcome in islice(_first(source, Path(unpacked), skipped), limit):
            ledger.enter(outcome)
            if isinstance(record.value, dict):
                columns.update(dict.fromkeys(repaired(str(key)) for key in record.value))
            if not isinstance(outcome, Row):
                continue
            for column, is_read in _columns(record.value, outcome, source.fields):
                filled[column] += 1
                read[column] += is_read
            if len(examples) < 3:
                examples.append(outcome)
    if not ledger.rows_in:
        raise _nothing_in(source.path.name)
    known = (source.fields.group, source.fields.time)
    return {
        "files": len(inputs.files(source.path)),
        "skipped": collect.told(skipped),
        "rows_in": ledger.rows_in,
        "kept": ledger.kept,
        "quarantined": ledger.quarantined,
        "shapes": dict(ledger.shapes.most_common()),
        "reasons": dict(ledger.reasons.most_common()),
        "fixes": {reason: f"{one.source}:{one.line}: {_masked(one.fix)}" for reason, one in ledger.first.items()},
        "columns": list(columns),
        "unread": [] if source.convert else [c for c in filled if c not in known and read[c] <= filled[c] * _READ],
        "examples": [row.to_json() for row in examples],
    }


def _columns(record: Any, row: Row, fields: Fields) -> Iterator[tuple[str, bool]]:
    """The columns of a record in which something stands, and whether the row is made of it, or of texts in it."""
    if not isinstance(record, dict):
        return
    whole, label = "\n".join(strings.of_row(row)), shapes.label_of(record, fields)
    for column, value in record.items():
        if found := _texts(value):
            is_pair = row.rejected is not None and column in ("chosen", "rejected")
            yield repaired(str(column)), is_pair or column == label or any(text in whole for text in found)


def _texts(value: Any) -> list[str]:
    """What stands in a column, also in JSON that it holds as text."""
    found = list(strings.texts(value))
    with suppress(Unusable):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            found += strings.texts(decode(value))
        if isinstance(value, bool | float):
            found.append(compact(plain(value, [])))
    return [text.strip() for text in found if text.strip()]


def _pieces(sources: list[Source], unpacked: Path) -> tuple[list[parts.Part], dict[str, list[str]]]:
    """The parts of all files, and the names of those that are not read, by the reason."""
    items: list[tuple[int, collect.Item]] = []
    skipped: list[collect.Skipped] = []
    for i, source in enumerate(sources):
        found = list(collect.collected(source.path, _why_not(source), unpacked / f"{i:03d}"))
        passed_over = [one for one in found if isinstance(one, collect.Skipped)]
        if len(found) == len(passed_over):
            raise collect.nothing_to_read(source.path, collect.told(passed_over), files.EXAMPLES)
        skipped += passed_over
        items += [(i, one) for one in found if isinstance(one, collect.Item)]
    names = _told_apart([(sources[i].path, one.name) for i, one in items])
    pieces = [replace(p, source=i, name=name) for (i, one), name in zip(items, names) for p in files.pieces(one.path)]
    return pieces, collect.told(skipped)


def _told_apart(named: list[tuple[Path, str]]) -> list[str]:
    """The names of files, each with the source that it is of; where two are equal, with as many folders before them as
    it takes to tell where a row was read. What stays equal is one file that is named twice."""
    names = [name for _, name in named]
    folders = [path.parts if path.is_dir() else path.parts[:-1] for path, _ in named]
    for level in range(1, 1 + max(map(len, folders), default=0)):
        times = Counter(names)
        names = [
            "/".join([*of_source[-level:], own]) if times[name] > 1 else name
            for name, of_source, (_, own) in zip(names, folders, named)
        ]
    return names


def _first(
    source: Source, unpacked: Path, skipped: list[collect.Skipped]
) -> Iterator[tuple[readers.Record, Row | Quarantined]]:
    """The records of a source, file after file, each unpacked when its turn comes, and only in its beginning."""
    read = 0
    for one in collect.collected(source.path, _why_not(source), unpacked, head=True):
        if isinstance(one, collect.Skipped):
            skipped.append(one)
            continue
        read += 1
        yield from _outcomes(source, None, one.name, files.records(one.path))
    if not read:
        raise collect.nothing_to_read(source.path, collect.told(skipped), files.EXAMPLES)


def _why_not(source: Source) -> collect.WhyNot:
    return partial(files.why_not, texts=source.convert is not None)


def _part(
    sources: list[Source], system: str | None, max_quarantined: float, part: parts.Part, folder: Path
) -> dict[str, Any]:
    """The rows and the quarantine of a part of a file, in files of its folder."""
    source, ledger = sources[part.source], Ledger(part.name)
    size_bytes, swallowed_bytes = part.path.stat().st_size, 0.0
    first: Quarantined | None = None
    with open(folder / "rows.jsonl", "wb") as rows, open(folder / "quarantine.jsonl", "wb") as quarantine:
        for record, outcome in _outcomes(source, system, part.name, files.records_of(part)):
            ledger.enter(outcome)
            if isinstance(outcome, Row):
                rows.write(orjson.dumps(outcome.to_json(), option=orjson.OPT_APPEND_NEWLINE))
                continue
            quarantine.write(orjson.dumps(asdict(outcome), option=orjson.OPT_APPEND_NEWLINE))
            if record.swallows:
                swallowed_bytes, first = swallowed_bytes + record.size_bytes, first or outcome
                if swallowed_bytes > max_quarantined * size_bytes:
                    raise _broken_off(first, swallowed_bytes / size_bytes)
    assert ledger.rows_in == ledger.kept + ledger.quarantined, f"{ledger.path}: the ledger does not balance"
    return {**vars(ledger), "first": {reason: asdict(quarantined) for reason, quarantined in ledger.first.items()}}


def _outcomes(
    source: Source, system: str | None, file: str, records: Iterable[readers.Record]
) -> Iterator[tuple[readers.Record, Row | Quarantined]]:
    """Each record, and the row or the quarantined record that it becomes."""
    convert = converter(source.convert) if source.convert else None
    name, fields = repaired(file), source.fields if source.fields != Fields() else None
    used = {*shapes.NAMES, *source.fields.model_dump(exclude_none=True).values()}
    for record in records:
        notes: list[str] = []
        try:
            if record.problem is not None:
                raise record.problem
            value = convert(plain_record(record.value, None, notes)) if convert else record.value
            found = shapes.read(plain_record(value, used, notes), fields, system, notes)
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
                    thread=found.thread,
                ),
            )


def _beginning(record: readers.Record) -> str:
    try:
        text = json.dumps(record.value, ensure_ascii=False, default=str) if record.text is None else record.text
    except RecursionError:
        text = "(nested too deeply to be shown)"
    return repaired(text.lstrip()[:_SHOWN_CHARACTERS].rstrip())


def _summary(ledgers: list[Ledger], skipped: dict[str, list[str]]) -> dict[str, Any]:
    whole = Ledger("")
    for ledger in ledgers:
        whole.rows_in += ledger.rows_in
        whole.shapes += ledger.shapes
        whole.reasons += ledger.reasons
        whole.repairs += ledger.repairs
    return {
        "headline": f"{whole.rows_in:,} records: {whole.kept:,} rows, {whole.quarantined:,} quarantined"
        + (f"; {collect.sentence(skipped)}" if skipped else ""),
        "rows_in": whole.rows_in, "kept": whole.kept, "quarantined": whole.quarantined,
        "shapes": dict(whole.shapes.most_common()), "reasons": dict(whole.reasons.most_common()),
        "repairs": dict(whole.repairs.most_common()),
        "sources": [{"path": ledger.path, "rows_in": ledger.rows_in, "kept": ledger.kept,
                     "quarantined": ledger.quarantined, "shapes": dict(ledger.shapes.most_common())}
                    for ledger in ledgers],
        "skipped": skipped,
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
        f"read {_QUARANTINE}; for the commonest: {_masked(first[reasons[0][0]].fix)}{raising}",
    )


def _masked(fix: str) -> str:
    """As it may stand in a message, which goes further than the quarantine: a fix can quote the record."""
    for _, start, end in reversed(pii.find(fix)):
        fix = f"{fix[:start]}[masked]{fix[end:]}"
    return fix


def _broken_off(problem: Quarantined, share: float) -> DataError:
    """Broken records that hide others must not count as one each: the budget is then held against their bytes."""
    return DataError(
        f"{share:.0%} of {problem.source} cannot be read, from record or line {problem.line} on",
        problem.reason,
        _masked(problem.fix),
    )


def _nothing_in(name: str) -> DataError:
    return DataError(
        f"{name} holds no records",
        "there is no line or row in it besides blank ones and a header",
        "write the file again, or take it out of data.sources",
    )
