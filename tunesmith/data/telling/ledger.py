"""The ledger of the data: what became of every record, counted from the files and held against the steps' records.

It knows no step by name but the first, which reads files. A step of the data left its rows as `rows.jsonl` or by side,
what it dropped in `dropped.jsonl` and what it could not read in `quarantine.jsonl`; a new one appears by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core.console import progress
from tunesmith.core.errors import DataError
from tunesmith.core.finished import Finished

SIDES = ("train", "validation", "test")
PERSONAL = {"replaced: ": "replaced", "contains: ": "noted"}  # notes in rows, with the kind behind them

_LEFT = {"dropped": "dropped.jsonl", "quarantined": "quarantine.jsonl"}
_STAGES = {
    "load": "reading",
    "judge": "judging",
    "split": "splitting",
    "format": "tokenising",
}  # of one stage
_BLOCK_BYTES = 1 << 20

Told = Callable[[float], None]  # how many bytes were read


@dataclass
class Loss:
    """Rows that left for one reason, dropped or quarantined, and where the first of them was read."""

    reason: str
    kind: str
    rows: int
    first: str


@dataclass
class Stage:
    """One stage of a step: `rows_in` + `made` = `kept` + `dropped` + `quarantined`."""

    step: str
    stage: str
    rows_in: int
    made: int
    kept: int
    dropped: int
    quarantined: int
    losses: list[Loss]


@dataclass
class Source:
    """A file, and where its records are now: `records` + `made` = `quarantined` + `dropped` + all of `kept`, which
    tells rows by side once they have one. Rows are `made` that a later stage added."""

    path: str
    records: int = 0
    quarantined: int = 0
    dropped: int = 0
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def made(self) -> int:
        return self.quarantined + self.dropped + sum(self.kept.values()) - self.records


@dataclass
class Ledger:
    """What the steps of the data that are done tell. `records` + `made` = all of `rows` + `dropped` + `quarantined`."""

    steps: dict[str, str]  # with their identities
    records: int
    made: int
    dropped: int
    quarantined: int
    rows: dict[str, int]  # by side, or as `rows`
    files: int  # that were counted
    stages: list[Stage]
    sources: list[Source]
    noted: dict[str, int]  # repairs, changes and remarks
    personal_data: dict[str, dict[str, int]]  # by kind: how many rows were replaced or noted
    lengths: dict[str, dict[str, Any]]
    labels: dict[str, dict[str, int]]
    groups: dict[str, int]
    certificate: dict[str, Any]
    vouched: str
    warnings: list[str]
    tokens: dict[str, dict[str, Any]]

    @property
    def equation(self) -> str:
        made = f" + {self.made:,} made" if self.made else ""
        kept = " + ".join(f"{count:,} {name}" for name, count in self.rows.items())
        gone = f"{self.dropped:,} dropped + {self.quarantined:,} quarantined"
        return f"{self.records:,} records{made} = {kept} + {gone}"

    def to_json(self) -> dict[str, Any]:
        sources = [{**asdict(source), "made": source.made} for source in self.sources]
        return {**asdict(self), "sources": sources}


def row_files(step: Finished) -> dict[str, Path]:
    """The files of rows that a step left: by side, or `rows` before there are sides."""
    if (step / "rows.jsonl").is_file():
        return {"rows": step / "rows.jsonl"}
    return {side: step / f"{side}.jsonl" for side in SIDES if (step / f"{side}.jsonl").is_file()}


def left_files(step: Finished) -> dict[str, Path]:
    """The files of what a step left out: `dropped` and `quarantined`."""
    return {kind: step / name for kind, name in _LEFT.items() if (step / name).is_file()}


def read(steps: Sequence[Finished]) -> Ledger:
    """The ledger of these steps, the first of which read files, in the order in which they ran.

    Raises DataError where the files do not hold what the records say, or where a row is not accounted for.
    """
    stages: list[Stage] = []
    sources: dict[str, Source] = {}
    rows: dict[str, int] = {}
    read_once = [path for step in steps for path in left_files(step).values()]
    read_once += [path for step in (steps[0], steps[-1]) for path in row_files(step).values()]
    with progress("data", sum(path.stat().st_size for path in read_once), "bytes") as bar:
        for step in steps:
            losses = _losses(step, sources, bar.advance)
            if step is steps[0]:
                for source in sources.values():
                    source.records = source.quarantined
                for _, row in _rows(step, bar.advance):
                    sources.setdefault(row["source"], Source(row["source"])).records += 1
            before, rows = sum(rows.values()), {name: _lines(path) for name, path in row_files(step).items()}
            came_in = step.summary["rows_in"] if step is steps[0] else before
            stages += _stages(step, came_in, sum(rows.values()), losses)
        for side, row in _rows(steps[-1], bar.advance):
            kept = sources.setdefault(row["source"], Source(row["source"])).kept
            kept[side] = kept.get(side, 0) + 1
    files = sum(len(row_files(step)) + len(left_files(step)) for step in steps)
    return _ledger(steps, stages, sources, rows, files)


def _ledger(
    steps: Sequence[Finished], stages: list[Stage], sources: dict[str, Source], rows: dict[str, int], files: int
) -> Ledger:
    told = {key: value for step in steps for key, value in step.summary.items()}  # the last word counts
    noted = Counter[str]()
    for step in steps:
        noted.update({**step.summary.get("repairs", {}), **step.summary.get("changes", {})})
    ledger = Ledger(
        steps={step.step: step.identity for step in steps},
        records=stages[0].rows_in,
        made=sum(stage.made for stage in stages),
        dropped=sum(stage.dropped for stage in stages),
        quarantined=sum(stage.quarantined for stage in stages),
        rows=rows,
        files=files,
        stages=stages,
        sources=sorted(sources.values(), key=lambda source: -source.records),
        noted=dict(noted.most_common()),
        personal_data=_personal_data(noted),
        lengths={name: told[f"{name}_words"] for name in ("prompt", "answer") if f"{name}_words" in told},
        labels=told.get("labels", {}),
        groups=told.get("groups", {}),
        certificate=told.get("certificate", {}),
        vouched=told.get("vouched", ""),
        warnings=[warning for step in steps for warning in step.summary.get("warnings", [])],
        tokens={side: told[side] for side in SIDES if isinstance(told.get(side), dict)},
    )
    last, by_source = steps[-1], sum(source.records for source in sources.values())
    _agree(last, "records, file by file,", by_source, ledger.records)
    _agree(last, "rows made, file by file,", sum(source.made for source in sources.values()), ledger.made)
    return ledger


def _stages(step: Finished, rows_in: int, kept: int, losses: dict[str, list[Loss]]) -> Iterator[Stage]:
    """The stages of a step as its files have them, where its record says the same."""
    summary = step.summary
    told = summary.get("stages") or [{"stage": _STAGES.get(step.step, step.step)}]
    losses = {told[0]["stage"]: losses.pop("", []), **losses}  # a step of one stage does not name it in its rows
    _agree(step, "rows that came in", rows_in, _rows_in_by_record(summary))
    _agree(step, "rows kept", kept, _kept_by_record(summary))
    for kind in _LEFT:
        _agree(step, f"{kind} rows", sum(_count(its, kind) for its in losses.values()), summary.get(kind, 0))
    for entry in told:
        mine = losses.pop(entry["stage"], [])
        dropped, quarantined = (_count(mine, kind) for kind in _LEFT)
        _agree(step, f"rows dropped at {entry['stage']}", dropped, entry.get("dropped", dropped))
        _agree(step, f"rows that came to {entry['stage']}", rows_in, entry.get("rows_in", rows_in))
        left = entry.get("kept", kept)
        made = left + dropped + quarantined - rows_in
        _agree(step, f"rows lost at {entry['stage']}", max(0, -made), 0)
        yield Stage(step.step, entry["stage"], rows_in, made, left, dropped, quarantined, mine)
        rows_in = left
    _agree(step, "rows after its last stage", kept, rows_in)
    _agree(step, "rows dropped at stages that it does not have", sum(_count(its) for its in losses.values()), 0)


def _losses(step: Finished, sources: dict[str, Source], told: Told) -> dict[str, list[Loss]]:
    """What a step left out, by stage (empty where a line names none), the commonest reason first."""
    found: dict[tuple[str, str, str], Loss] = {}
    for kind, path in left_files(step).items():
        for line in _read(path, told):
            source = sources.setdefault(line["source"], Source(line["source"]))
            source.dropped += kind == "dropped"
            source.quarantined += kind == "quarantined"
            key = line.get("stage", ""), kind, line["reason"]
            first = f"{line['source']}:{line['line']}"
            found.setdefault(key, Loss(line["reason"], kind, 0, first)).rows += 1
    stages: dict[str, list[Loss]] = {}
    for (stage, _, _), loss in sorted(found.items(), key=lambda item: -item[1].rows):
        stages.setdefault(stage, []).append(loss)
    return stages


def _count(losses: list[Loss], kind: str | None = None) -> int:
    return sum(loss.rows for loss in losses if kind in (None, loss.kind))


def _rows_in_by_record(summary: dict[str, Any]) -> int:
    if "rows_in" in summary:
        return int(summary["rows_in"])
    return sum(summary[side]["rows_in"] for side in SIDES)


def _kept_by_record(summary: dict[str, Any]) -> int:
    if "kept" in summary:
        return int(summary["kept"])
    return sum(told["rows"] if isinstance(told, dict) else told for told in (summary[side] for side in SIDES))


def _agree(step: Finished, what: str, counted: int, told: int) -> None:
    if counted != told:
        raise DataError(
            f"step {step.step} does not balance: {what} are {counted:,} by its files and {told:,} by its record",
            f"a file in {step.folder} was changed since the step wrote it",
            f"tunesmith run --force {step.step}",
        )


def _personal_data(noted: Counter[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for note, rows in noted.items():
        for beginning, what in PERSONAL.items():
            if note.startswith(beginning):
                found.setdefault(note.removeprefix(beginning), {})[what] = rows
    return found


def _rows(step: Finished, told: Told) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, path in row_files(step).items():
        for row in _read(path, told):
            yield name, row


def _read(path: Path, told: Told) -> Iterator[dict[str, Any]]:
    unsaid = 0
    with open(path, "rb") as file:
        for line in file:
            unsaid += len(line)
            if unsaid >= _BLOCK_BYTES:
                told(unsaid)
                unsaid = 0
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DataError(
                    f"{path} holds a line that is no JSON",
                    f"it was changed since a step wrote it ({error})",
                    f"tunesmith run --force {path.parents[1].name}",
                ) from None


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
