"""A row's whole history: where it was read and as what, what each step changed in it, where it is now, and why.

A row is followed by the file and line that it was read from, which no step changes; its id is that of its content, and
changes with it. Files are read line by line, and only lines that may be about the row are parsed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tunesmith.core import store
from tunesmith.core.console import counted
from tunesmith.core.errors import DataError
from tunesmith.core.finished import Finished
from tunesmith.core.records import Row
from tunesmith.data import sketches
from tunesmith.data.telling.ledger import SIDES, left_files, row_files
from tunesmith.data.traits import prompt_text
from tunesmith.models.tokens import Tokens

Line = dict[str, Any]
Place = tuple[str, int]  # file and line

_MOST = 10  # histories that are told at once, of rows that say the same
_LEAST_ID = 4  # hex digits that may stand for an id
_ALIKE_SHOWN = 3  # other rows of a group
_NEAREST_AMONG = 20_000  # rows of another side: among more, the nearest one is not looked for
_AT_ONCE = 2_000  # rows whose prompts are compared at once
_COMPARED_WORDS = 2_000  # of one text: the time to compare grows with their square
_GROUPS = "{}.groups.npy"  # of a side, in the split
_WORD = re.compile(r"\s+|\w+|[^\s\w]")


@dataclass(frozen=True)
class Text:
    """A text that a step changed: `pieces` of it, each of which is `same`, `before` or `after`."""

    role: str
    pieces: list[tuple[str, str]]


@dataclass(frozen=True)
class Other:
    """Another row, as it was read."""

    where: str
    messages: list[Line]


@dataclass
class Event:
    """What one step did: in sentences, in the texts that it changed, and in the rows that the sentences end with."""

    step: str
    told: list[str]
    changed: list[Text] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What a model said to a row of the exam, and its figures."""

    model: str
    text: str
    finish: str
    figures: dict[str, float | None]


@dataclass
class History:
    """`now` is a side, `rows` before there are sides, `dropped` or `quarantined`. `messages` are those of the row as it
    was read, none where it could not be. The last one tells how many `more` have the name that was asked for."""

    where: str
    id: str
    now: str
    messages: list[Line]
    events: list[Event]
    answers: list[Answer] = field(default_factory=list)
    more: int = 0


@dataclass(frozen=True)
class _Found:
    """A line about the row among a step's files: `kind` tells which file, `index` its place there."""

    step: Finished
    kind: str
    index: int
    line: Line


def of(steps: Sequence[Finished], query: str, evaluated: Mapping[str, Finished]) -> list[History]:
    """The histories of the rows that `query` names: a content id, its beginning, or `file:line`. Of many that say the
    same, the first are told.

    `evaluated` holds the steps base, tuned and verdict, where they are done. Raises DataError where no row has that
    name, or rows of several contents have it.
    """
    id, places = (None, _at(steps, query)) if re.search(r".:\d{1,18}$", query) else _with_id(steps, query)
    of_place: dict[Place, list[list[_Found]]] = {place: [] for place in places[:_MOST]}
    for step in steps:
        for place, found in _about(step, of_place).items():
            _follow(of_place[place], found)
    tracks = [track for its in of_place.values() for track in its if id is None or _had(track, id)]
    histories = []
    for track in tracks[:_MOST]:
        first, last = track[0].line, track[-1]
        history = History(f"{first['source']}:{first['line']}", last.line.get("id", ""), last.kind,
                          first.get("messages", []), list(_events(track)))  # fmt: skip
        if last.kind == "test":
            history.answers = list(_answers(last.line, evaluated))
        histories.append(history)
    histories[-1].more = len(tracks[_MOST:]) + len(places[_MOST:])
    events = [event for history in histories for event in history.events]
    shown = referred(steps[0], {sentence for event in events for sentence in event.told})
    for event in events:
        others = (shown[sentence] for sentence in event.told if sentence in shown)
        event.others += [Other(f"{line['source']}:{line['line']}", line["messages"]) for line in others]
    return histories


def _at(steps: Sequence[Finished], query: str) -> list[Place]:
    """The places that a person may mean: the file may be named by its path."""
    file, _, number = query.replace("\\", "/").rpartition(":")
    in_line, files = b'"line":%d,' % int(number), dict[str, None]()
    for step in steps:
        for _, _, line in _lines(step, lambda line: in_line in line):
            if line["line"] == int(number):
                files[line["source"]] = None
    found = [
        (name, int(number)) for name in files if f"/{name}".endswith(f"/{file}") or f"/{file}".endswith(f"/{name}")
    ]
    if found:
        return found
    others = f"files that have a record there: {', '.join(files)}" if files else "no file has a record there"
    raise DataError(
        f"no record was read at {query}",
        f"{others} (in JSON arrays and Parquet files, records are counted from 1)",
        "name a place that `tunesmith data` shows, or one that stands in the files of output/steps",
    )


def _with_id(steps: Sequence[Finished], query: str) -> tuple[str, list[Place]]:
    """The whole id, and the places of the rows that had this content at some time."""
    digits = query.casefold()
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_ID},16}}", digits):
        raise DataError(
            f"`{query}` names no row",
            f"a row is named by its place (train.jsonl:17) or by its id: 16 hex digits, of which the first {_LEAST_ID} "
            "may do",
            "name a place that `tunesmith data` shows",
        )
    begins, places, ids = b'{"id":"' + digits.encode(), dict[Place, None](), dict[str, str]()
    for step in steps:
        for _, _, line in _lines(step, lambda line: line.startswith(begins)):
            places[line["source"], line["line"]] = None
            ids.setdefault(line["id"], f"{line['source']}:{line['line']}")
    if len(ids) > 1:
        few = ", ".join(f"{id} ({place})" for id, place in islice(ids.items(), 3))
        raise DataError(f"{len(ids)} ids begin with {query}", few, "write more digits")
    if not places:
        raise DataError(
            f"no row has the id {query}",
            f"none had it after {', '.join(step.step for step in steps)}",
            "name a place that `tunesmith data` shows",
        )
    return next(iter(ids)), list(places)


def _had(track: list[_Found], id: str) -> bool:
    """Whether the row had this content at some time: others that were made of it stand at its place, too."""
    return any(found.line.get("id") == id for found in track)


def _lines(step: Finished, promising: Callable[[bytes], bool]) -> Iterator[tuple[str, int, Line]]:
    """The kind of the file, the place in it, and the line, of those that look promising."""
    for kind, path in {**row_files(step), **left_files(step)}.items():
        with open(path, "rb") as file:
            for index, line in enumerate(file):
                if promising(line):
                    yield kind, index, orjson.loads(line)


def _about(step: Finished, places: Collection[Place]) -> dict[Place, list[_Found]]:
    """What a step has about the rows that were read at these places."""
    numbers = re.compile(b'"line":(?:%s),' % b"|".join(b"%d" % number for _, number in places))
    found: dict[Place, list[_Found]] = {}
    for kind, index, line in _lines(step, lambda line: numbers.search(line) is not None):
        if (place := (line["source"], line["line"])) in places:
            found.setdefault(place, []).append(_Found(step, kind, index, line))
    return found


def _follow(tracks: list[list[_Found]], found: list[_Found]) -> None:
    """Adds what a step has about the rows of one place to their tracks: first where a row is as it was, then the rest.
    What is left over was made there."""
    alive = [track for track in tracks if track[-1].kind not in ("dropped", "quarantined")]
    for unchanged in (True, False):
        for track in list(alive):
            one = next((one for one in found if not unchanged or one.line["id"] == track[-1].line["id"]), None)
            if one:
                track.append(one)
                found.remove(one)
                alive.remove(track)
    tracks += [[one] for one in found]


def _events(track: list[_Found]) -> Iterator[Event]:
    for before, now in zip([None, *track], track):
        event = Event(now.step.step, [])
        event.told += _begun(now) if before is None else now.line["changes"][len(before.line["changes"]) :]
        if before and now.kind != "quarantined":
            event.changed += _changes(before.line, now.line)
        if now.kind == "dropped":
            told = ", ".join(filter(None, (now.line["reason"], now.line.get("detail", ""))))
            event.told.append(f"dropped at {now.line.get('stage', now.step.step)}: {told}")
        elif now.kind in SIDES:
            if (now.step / _GROUPS.format(now.kind)).is_file():
                event.told += _side(now)
            if (now.step / f"{now.kind}.ends.npy").is_file():
                ids, learnt = Tokens(now.step.folder, now.kind).row(now.index)
                event.told.append(f"{len(ids):,} tokens, of which {int(learnt.sum()):,} are learnt")
        if not event.told and not event.changed:
            event.told.append("kept as it was")
        yield event


def _begun(now: _Found) -> Iterator[str]:
    line = now.line
    if now.kind == "quarantined":
        yield f"could not be read: {line['reason']}"
        yield f"to mend it: {line['fix']}"
        yield f"it begins: {line['record']}"
        return
    to = f", to {now.kind}" if now.kind in SIDES else ""
    yield f"added here{to}" if now.step.record["inputs"] else f"read as {line['shape']}"
    if line["parents"]:
        yield f"made from {', '.join(line['parents'])}"
    yield from line["changes"]


def _changes(before: Line, now: Line) -> Iterator[Text]:
    for (role, old), (new_role, new) in zip_longest(_texts(before), _texts(now), fillvalue=("", "")):
        if old != new:
            yield Text(role or new_role, list(_pieces(old, new)))


def _texts(line: Line) -> Iterator[tuple[str, str]]:
    for message in line["messages"]:
        calls = message.get("tool_calls")
        yield message["role"], str(message["content"]) + (orjson.dumps(calls).decode() if calls else "")
    if line["rejected"] is not None:
        yield "rejected answer", line["rejected"]


def _pieces(before: str, after: str) -> Iterator[tuple[str, str]]:
    old, new = _WORD.findall(before), _WORD.findall(after)
    if max(len(old), len(new)) > _COMPARED_WORDS:
        yield "before", before
        yield "after", after
        return
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", "".join(old[a1:a2])
            continue
        if a2 > a1:
            yield "before", "".join(old[a1:a2])
        if b2 > b1:
            yield "after", "".join(new[b1:b2])


def _side(now: _Found) -> Iterator[str]:
    """Where the split put it, and why there; each of the others that it names ends a sentence."""
    pin, alike = now.line["split"], list(_group(now))
    if pin != "auto":
        yield f"{now.kind}: its file is pinned to {pin} (data.sources.split)"
    elif any(line["split"] == "train" for line in alike):
        yield "train: a row of its group is pinned to it (data.sources.split)"
    else:
        yield f"{now.kind}: the hash of {'its prompt' if not alike else 'a prompt of its group'} fell there"
    if not alike and pin == "auto":
        yield "no other row's prompt is like its own"
    elif alike:
        others = counted(len(alike), "row")
        yield f"in one group, which stays on one side, with {others} of like prompts or prompts like those"
    shown = _alike(now.line, alike[:_AT_ONCE])
    yield from (f"{similarity:.2f} like {where}" for similarity, where in shown[:_ALIKE_SHOWN])
    yield from _nearest(now, "train" if now.kind != "train" else "test")


def _group(now: _Found) -> Iterator[Line]:
    """The other rows of its group, as the split noted them."""
    group_S = np.load(now.step / _GROUPS.format(now.kind))
    members = set(np.flatnonzero(group_S == group_S[now.index]).tolist()) - {now.index}
    if members:
        with open(row_files(now.step)[now.kind], "rb") as file:
            yield from (orjson.loads(line) for i, line in enumerate(islice(file, max(members) + 1)) if i in members)


def _nearest(now: _Found, side: str) -> Iterator[str]:
    """The row of another side whose prompt is the most like its own."""
    if side not in row_files(now.step) or now.step.summary[side] > _NEAREST_AMONG:
        return
    rows, best = store.read_jsonl(row_files(now.step)[side]), (0.0, "")
    while batch := list(islice(rows, _AT_ONCE)):
        best = max(best, _alike(now.line, batch)[0])
    if best[0]:
        yield f"of all prompts in {side}, the nearest is {best[0]:.2f} like it: {best[1]}"


def _alike(line: Line, others: list[Line]) -> list[tuple[float, str]]:
    """How alike their prompts are, and where they were read; the most alike first."""
    sets = sketches.shingled([prompt_text(Row(line["messages"], "", 0, "")) for line in (line, *others)])
    those = np.arange(1, len(others) + 1)
    alike = sketches.similarities(sets, (those, np.zeros_like(those))).tolist()
    return sorted(((s, f"{other['source']}:{other['line']}") for s, other in zip(alike, others)), reverse=True)


def referred(step: Finished, sentences: Collection[str]) -> dict[str, Line]:
    """The rows whose places end sentences, by sentence, as a step left or dropped them."""
    ends = {match["line"] for sentence in sentences if (match := re.search(r":(?P<line>\d+)$", sentence))}
    found: dict[str, Line] = {}
    if ends:
        numbers = re.compile(b'"line":(?:%s),' % "|".join(ends).encode())
        for kind, _, line in _lines(step, lambda line: numbers.search(line) is not None):
            where = f" {line['source']}:{line['line']}"
            if kind != "quarantined":
                found.update({sentence: line for sentence in sentences if f" {sentence}".endswith(where)})
    return found


def _answers(line: Line, evaluated: Mapping[str, Finished]) -> Iterator[Answer]:
    """What base and tuned said to it."""
    begins, scores = b'{"id":"%s"' % line["id"].encode(), dict[str, Any]()
    if "verdict" in evaluated:
        scores = next(_beginning(evaluated["verdict"] / "scores.jsonl", begins), {})
    for model in ("base", "tuned"):
        for said in islice(_beginning(evaluated[model] / "predictions.jsonl", begins), 1) if model in evaluated else ():
            yield Answer(model, said["answer"], said["finish"], scores.get(model, {}))


def _beginning(path: Path, begins: bytes) -> Iterator[Line]:
    with open(path, "rb") as file:
        yield from (orjson.loads(line) for line in file if line.startswith(begins))
