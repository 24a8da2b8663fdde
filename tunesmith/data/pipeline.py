"""Clean rows from raw ones: a chain of stages, each of which keeps or drops every row that it sees and says why.

A row's own faults are found where it stands, part by part, on every core. Whether it contradicts or repeats others is
then ruled over the traits of all rows that are left. Last, the parts are put together as the rulings leave them.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core.clean_section import Clean, Length
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.core.step import Artifact
from tunesmith.data import judge, parts, sketches, traits
from tunesmith.data.cleaning import (
    answers,
    benchmarks,
    choosing,
    contradictions,
    dedup,
    filters,
    pii,
    repair,
    review,
    semantic,
)
from tunesmith.data.cleaning.benchmarks import Questions
from tunesmith.data.traits import Finding, Places, Ruling, Traits, prompt_text

VERSION = 7

Stage = Callable[[Iterable[Row]], Iterator[Kept | Dropped]]
Judgement = Callable[[Traits, Places], Iterable[Ruling | Finding]]
Rulings = dict[int, list[tuple[str, Ruling]]]  # by the row's place: the stage, and what it says

_MAX_LABELS = 30  # a field with more distinct values is no label,
_MORE_LABELS, _ROWS_OF_EACH = 100, 5  # unless each of them has so many rows
_LABEL_CHARACTERS = 60
_BINS = 20  # of a histogram, up to the 95th percentile
_MANY_LABELS = 300  # nor will one with more of them in a single part become one when rows are dropped


def stages(clean: Clean) -> Iterator[tuple[str, Stage]]:
    """What is seen in a row by itself, in its order; a new stage is one more line.

    Texts are repaired before anything looks at them. A placeholder may break the schema that the text before it
    followed, so what was replaced is held against the schema again. Filters come last: a row that they drop shows in a
    report no personal data that was found in it.
    """
    if clean.repair == "mend":
        yield "text repair", repair.mend
    yield "empty answers", answers.empty
    if clean.answer == "json":
        yield "JSON answers", answers.json_answers
    if clean.answer_schema:
        yield "answer schema", partial(answers.follows_schema, schema=clean.answer_schema)
    yield "personal data", partial(pii.personal_data, mode=clean.personal_data, finder=clean.find_personal)
    if clean.answer_schema and clean.personal_data in ("replace", "surrogate"):
        yield "answer schema after replacement", partial(answers.follows_schema, schema=clean.answer_schema)
    if clean.length != Length(unit=clean.length.unit):
        yield "length", partial(filters.length, limits=clean.length)
    if clean.repetition.lines is not None or clean.repetition.runs is not None:
        yield "repetition", partial(filters.repetition, limits=clean.repetition)
    if clean.languages:
        yield "languages", partial(filters.languages, wanted=clean.languages)
    if clean.toxicity.above is not None:
        yield "toxicity", partial(filters.toxicity, limit=clean.toxicity)


@dataclass(frozen=True)
class Whole:
    """What judgements look at besides traits: sketches of the prompts, and behind them of benchmarks' questions; and
    which question each row shares a run of words with; how prompts become vectors, and who chooses among answers."""

    prompts: sketches.Sketches | None
    questions: Questions | None
    shared_N: NDArray[np.int32]
    embed: semantic.Embed
    choose: choosing.Choose


def judgements(clean: Clean, whole: Whole) -> Iterator[tuple[str, Judgement]]:
    """What is seen in all rows together. Contradictions come before duplicates: a majority is counted over rows that
    are still there to vote."""
    prompts = whole.prompts
    if whole.questions and prompts:
        known = partial(benchmarks.known, prompts=prompts, shared_N=whole.shared_N, questions=whole.questions)
        yield "benchmarks", known
    resolved = partial(
        contradictions.resolve,
        mode=clean.contradictions,
        one_right=clean.single_answer,
        reviewed=review.decisions(clean.reviewed) if clean.reviewed else None,
        choose=whole.choose,
    )
    yield "contradictions", resolved
    if clean.duplicates == "drop":
        yield "exact duplicates", dedup.exact
    if clean.near_duplicates is not None and prompts:
        keep_equal = clean.duplicates == "keep"
        yield (
            "near-duplicates",
            partial(dedup.near, prompts=prompts, threshold=clean.near_duplicates, keep_equal=keep_equal),
        )
    if clean.semantic_duplicates:
        similarity, keep_equal = clean.semantic_duplicates.similarity, clean.duplicates == "keep"
        meant = partial(semantic.duplicates, embed=whole.embed, similarity=similarity, keep_equal=keep_equal)
        yield "semantic duplicates", meant


def run(clean: Clean, raw: Artifact, out: Path, kept: Path | None = None) -> dict[str, Any]:
    """Writes `rows.jsonl` and `dropped.jsonl` (each row with its reason, detail and stage), and `review.jsonl`, if rows
    wait for a person. Parts of the work that are done stand in `kept`, where a run that goes on finds them.

    Raises ConfigError for an answer schema or for decisions that cannot be used, DataError when no row is left.
    """
    if clean.answer_schema and clean.answer != "json":
        raise ConfigError(
            "data.clean.answer_schema needs JSON answers",
            f"data.clean.answer is `{clean.answer}`",
            "write `answer: json` beside it, or take `answer_schema` out",
        )
    pieces = list(parts.cut(raw / "rows.jsonl"))
    rows_in = sum(piece.lines for piece in pieces)
    questions = benchmarks.read(clean.benchmarks) if clean.benchmarks else None
    cut = _cut(clean, rows_in)
    with parts.workplace(kept, out) as work:
        asked = []
        if questions and cut:
            asked.append(work / "benchmarks")
            benchmarks.write(asked[0], questions, cut)
        done = parts.each("clean", partial(_part, clean, cut, asked), pieces, work)
        folders = [one.folder for one in done]
        found, rows = _Found.of(done, clean.answer == "json"), traits.together(folders, traits.COMPARED)
        rows_at = partial(_rows_at, folders)
        of_vectors = clean.semantic_duplicates.endpoint if clean.semantic_duplicates else None
        for endpoint in (clean.judge, of_vectors):
            found.warnings += judge.sent_along(endpoint, found.changes)
        prompts = sketches.read([*folders, *asked], work / "shingles", cut) if cut else None
        embed = semantic.embedder(clean.semantic_duplicates, prompts, rows_at, work / "vectors")
        choose = choosing.chooser(clean.judge, rows_at)
        whole = Whole(prompts, questions, benchmarks.together(folders if questions else []), embed, choose)
        rulings = _judge(judgements(clean, whole), rows, found)
        left = _write(done, rows, rulings, out, found)
    if found.reasons[contradictions.WAITS]:
        review.write(out)
    lost = found.reasons.total()
    assert rows_in == len(left) + lost, f"{rows_in} rows in, {len(left)} kept, dropped: {found.reasons}"
    if not len(left):
        raise DataError(
            "no row is left after cleaning",
            _why_none(rows_in, found.reasons),
            "read output/failed/clean/dropped.jsonl, then mend the data or loosen `data.clean`",
        )
    return _summary(rows_in, rows, left, found)


def _cut(clean: Clean, rows: int) -> sketches.Banding | None:
    """How prompts are sketched, if they must be: for the lowest of the similarities that are asked for."""
    asked = [clean.near_duplicates] if clean.near_duplicates is not None else []
    asked += [benchmarks.ALIKE] if clean.benchmarks else []
    asked += [1.0] if clean.semantic_duplicates and clean.semantic_duplicates.embedding == "characters" else []
    return sketches.banding(min(asked), rows) if asked else None


@dataclass
class _Found:
    """What became of the rows: a ledger of the stages, and counts over the rows that are left."""

    json: bool  # whether answers are JSON, whose values are counted
    stages: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    many: set[str] = field(default_factory=set)  # fields that have too many values in some part
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)  # what judgements say of many rows together
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, done: list[parts.Done], json: bool) -> _Found:
        """Of all parts."""
        found = cls(json)
        for one in done:
            found.reasons.update(one.found["reasons"])
            found.changes.update(one.found["changes"])
            found.many.update(one.found["many"])
            for label, values in one.found["labels"].items():
                found.labels.setdefault(label, Counter()).update(values)
        for entries in zip(*(one.found["stages"] for one in done)):
            sums = {key: sum(entry[key] for entry in entries) for key in entries[0] if key != "stage"}
            found.stages.append({"stage": entries[0]["stage"], **sums, "seconds": round(sums["seconds"], 3)})
        return found

    def enter(self, stage: str, rows_in: int, dropped: int, seconds: float) -> None:
        counts = {"rows_in": rows_in, "kept": rows_in - dropped, "dropped": dropped}
        self.stages.append({"stage": stage, **counts, "seconds": round(seconds, 3)})

    def count(self, rows: Iterable[Row], sign: int = 1) -> None:
        """Counts rows, or takes them out again."""
        for row in rows:
            for note in row.changes:
                self.changes[_kind(note)] += sign
            for label, value in _labels(row) if self.json else [("answer", _beginning(row.answer))]:
                self.labels.setdefault(label, Counter())[value] += sign

    def few_labels(self) -> dict[str, dict[str, int]]:
        """How often each value stands in the fields of JSON answers, or among answers, commonest first, where there are
        a few values."""
        counted = {
            name: {value: n for value, n in values.most_common() if n}
            for name, values in self.labels.items()
            if name not in self.many
        }
        return {name: values for name, values in counted.items() if values and _are_few(values)}


def _part(
    clean: Clean, cut: sketches.Banding | None, asked: list[Path], part: parts.Part, folder: Path
) -> dict[str, Any]:
    """The stages over the rows of one part: what they leave and drop, and the traits and sketches of what is left."""
    lines: list[bytes | None] = list(part.read())
    rows = [Row.from_json(orjson.loads(line)) for line in lines if line]
    found = _Found(clean.answer == "json")
    with open(folder / "dropped.jsonl", "wb") as dropped:
        for name, stage in stages(clean):
            started = time.perf_counter()
            results = list(stage(rows))
            assert len(results) == len(rows), f"{name} lost or made rows: {len(rows)} in, {len(results)} out"
            left = []
            for result, row, line in zip(results, rows, lines):
                if isinstance(result, Kept):
                    left.append((result.row, line if result.row is row else None))
                else:
                    found.reasons[result.reason] += 1
                    dropped.write(_dropped(result, name))
            found.enter(name, len(rows), len(rows) - len(left), time.perf_counter() - started)
            rows, lines = [row for row, _ in left], [line for _, line in left]
    with open(folder / "rows.jsonl", "wb") as file:
        file.writelines(line or _line(row) for row, line in zip(rows, lines))
    traits.write(folder, traits.of(rows, traits.compared, traits.COMPARED))
    if cut:
        prompts = [prompt_text(row) for row in rows]
        sketches.write(folder, prompts, cut)
        for questions in asked:
            benchmarks.shared(questions, prompts).tofile(folder / "shared")
    found.count(rows)
    many = [label for label, values in found.labels.items() if len(values) > _MANY_LABELS]
    few = {label: values for label, values in found.labels.items() if label not in many}
    return {"stages": found.stages, "reasons": found.reasons, "changes": found.changes, "labels": few, "many": many}


def _rows_at(folders: list[Path], places: Places) -> Iterator[Row]:
    """The rows at these places, which ascend. Only they are parsed."""
    wanted, place = set(places.tolist()), 0
    for folder in folders:
        with open(folder / "rows.jsonl", "rb") as file:
            for line in file:
                if place in wanted:
                    yield Row.from_json(orjson.loads(line))
                place += 1


def _judge(judgements: Iterable[tuple[str, Judgement]], rows: Traits, found: _Found) -> Rulings:
    left, rulings = np.arange(len(rows)), defaultdict(list)
    for name, judgement in judgements:
        started = time.perf_counter()
        gone = []
        for said in judgement(rows, left):
            if isinstance(said, Finding):
                found.findings[said.name] = said.facts
                found.warnings += said.warnings
                continue
            rulings[said.place].append((name, said))
            if said.reason:
                gone.append(said.place)
        found.enter(name, len(left), len(gone), time.perf_counter() - started)
        left = np.setdiff1d(left, np.array(gone, np.int64), assume_unique=True)
    return dict(rulings)


def _write(done: list[parts.Done], rows: Traits, rulings: Rulings, out: Path, found: _Found) -> Places:
    """Puts the parts together, and returns the places of the rows that are left. Only rows with a ruling are parsed."""
    left, places, before = np.ones(len(rows), bool), sorted(rulings), 0
    with open(out / "rows.jsonl", "wb") as kept, open(out / "dropped.jsonl", "wb") as dropped:
        for one in done:
            dropped.write((one.folder / "dropped.jsonl").read_bytes())
            with open(one.folder / "rows.jsonl", "rb") as file:
                lines, start = file.readlines(), 0
            for place in places[bisect_left(places, before) : bisect_left(places, before + len(lines))]:
                at = place - before
                kept.writelines(lines[start:at])
                left[place], line = _ruled(lines[at], rulings[place], rows, found)
                (kept if left[place] else dropped).write(line)
                start = at + 1
            kept.writelines(lines[start:])
            before += len(lines)
    assert before == len(rows), f"{before} rows where {len(rows)} were noted"  # files that a power cut left short
    return np.flatnonzero(left)


def _ruled(line: bytes, said: list[tuple[str, Ruling]], rows: Traits, found: _Found) -> tuple[bool, bytes]:
    """Whether a row is left under these rulings, and what is written of it."""
    row = Row.from_json(orjson.loads(line))
    found.count([row], -1)
    for stage, ruling in said:
        detail = ruling.detail.format(rows.read_at(ruling.other))
        if ruling.reason:
            found.reasons[ruling.reason] += 1
            return False, _dropped(Dropped(row, ruling.reason, detail), stage)
        row = row.changed(detail, row.messages)
    found.count([row])
    return True, _line(row)


def _line(row: Row) -> bytes:
    return orjson.dumps(row.to_json(), option=orjson.OPT_APPEND_NEWLINE)


def _dropped(dropped: Dropped, stage: str) -> bytes:
    told = {"reason": dropped.reason, "detail": dropped.detail, "stage": stage}
    return orjson.dumps({**dropped.row.to_json(), **told}, option=orjson.OPT_APPEND_NEWLINE)


def _labels(row: Row) -> Iterator[tuple[str, str]]:
    """The plain values in the fields of a JSON answer."""
    answer = answers.parse_json(row.answer)
    for name, value in answer.items() if isinstance(answer, dict) else ():
        if not isinstance(value, dict | list):
            yield name, value if isinstance(value, str) else orjson.dumps(value).decode()


def _summary(rows_in: int, rows: Traits, left: Places, found: _Found) -> dict[str, Any]:
    reasons = dict(found.reasons.most_common())
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    kept = f"{len(left):,} of {rows_in:,} rows kept" + (f"; dropped: {told}" if told else "")
    return {
        "headline": "; ".join([kept, *(warning.rstrip(".") for warning in found.warnings)]),
        "rows_in": rows_in,
        "kept": len(left),
        "dropped": rows_in - len(left),
        "reasons": reasons,
        "changes": {change: n for change, n in found.changes.most_common() if n},
        "stages": found.stages,
        "labels": found.few_labels(),
        "prompt_words": _lengths(rows["prompt_words"][left]),
        "answer_words": _lengths(rows["answer_words"][left]),
        **found.findings,
        "warnings": found.warnings,
    }


def _beginning(answer: str) -> str:
    return answer if len(answer) <= _LABEL_CHARACTERS else answer[:_LABEL_CHARACTERS] + "…"


def _are_few(values: dict[str, int]) -> bool:
    few, each = len(values) <= _MAX_LABELS, sum(values.values()) / len(values)
    return few or (len(values) <= _MORE_LABELS and each >= _ROWS_OF_EACH)


def _why_none(rows_in: int, reasons: Counter[str]) -> str:
    top = ", ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(3))
    return f"all {rows_in:,} rows were dropped: {top}" if rows_in else "there was none to begin with"


def _kind(note: str) -> str:
    """The note without the place that it may end with."""
    return re.sub(r" \S.*:\d+$", "", note)


def _lengths(words_N: Places) -> dict[str, Any]:
    """Median, 95th percentile and maximum of the number of words; and how many rows have how many. The last bin of that
    histogram begins where few are longer, and ends with the longest."""
    ordered = np.sort(words_N)
    median, high, most = (int(ordered[math.ceil(share * len(ordered)) - 1]) for share in (0.5, 0.95, 1))
    width = math.ceil((high + 1) / _BINS)
    edges = [*range(0, high + width, width)]
    edges = [*edges, most + 1] if most >= edges[-1] else edges
    counts = np.histogram(ordered, edges)[0].tolist()
    return {"p50": median, "p95": high, "max": most, "histogram": [counts, edges]}
