"""What changed between two versions of the data: settings, rows that came and went, sides, answers, reasons of drops.

Of each row that is compared memory holds the hashes of its content, its prompt and its answer, and its side; only the
few that are shown are read whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core import compared
from tunesmith.core.finished import Finished
from tunesmith.core.records import content_id
from tunesmith.data.telling.ledger import row_files

Mask = NDArray[np.bool_]
Pair = tuple[int | None, int | None]  # places before and after

_ROW = np.dtype([("id", "u8"), ("prompt", "u8"), ("answer", "u8"), ("side", "i1")])
_SAMPLES = 3
_SHOWN_CHARACTERS = 1_000
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Version:
    """The step whose rows are compared, and how many there are: by side, or as `rows` before there are sides."""

    step: str
    identity: str
    started: str
    rows: dict[str, int]


@dataclass(frozen=True)
class Said:
    """A row in one of the versions."""

    where: str
    side: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """A row as it was before and as it is after; None where it is not."""

    before: Said | None
    after: Said | None


@dataclass(frozen=True)
class Difference:
    """Rows before + `added` - `removed` = rows after. Where a row went and one with the same prompt came, it counts as
    neither: it is `answered_otherwise`, or, with the same answer, `asked_otherwise` (another system message, other
    tools, or the prompt's words in another case or with other marks). `moved` rows are the same, on another side:
    from, to, how many. `reasons` has how many rows left for each, before and after."""

    before: Version
    after: Version
    settings: list[str]
    same: int
    added: int
    removed: int
    answered_otherwise: int
    asked_otherwise: int
    moved: list[tuple[str, str, int]]
    reasons: dict[str, tuple[int, int]]
    samples: dict[str, list[Sample]]


def of(before: Sequence[Finished], after: Sequence[Finished], keys: Mapping[str, str]) -> Difference:
    """Compares the rows as the last step left them that both versions have. `keys` tells for a `STEP.ARGUMENT` what the
    project file calls it."""
    in_both = [(old, new) for old in before for new in after if old.step == new.step]
    old, new = in_both[-1]
    before, after = before[: before.index(old) + 1], after[: after.index(new) + 1]
    names = list(dict.fromkeys([*row_files(old), *row_files(new)]))
    rows, now = _rows(old, names), _rows(new, names)
    removed, added = _beyond(rows, now), _beyond(now, rows)
    again = _pairs(rows["prompt"][removed], now["prompt"][added])
    asked = _pairs(_said(rows[removed]), _said(now[added]))
    moved = _moved(rows, now)
    sides = Counter[tuple[str, str]]()
    for i, j, times in moved:
        sides[names[rows["side"][i]], names[now["side"][j]]] += times
    reasons = [Counter[str](), Counter[str]()]
    for version, counted in zip((before, after), reasons):
        for step in version:
            counted.update(step.summary.get("reasons", {}))
    return Difference(
        before=_version(old, rows, names),
        after=_version(new, now, names),
        settings=list(_settings(before, after, keys)),
        same=int((~removed).sum()),
        added=int(added.sum()) - again,
        removed=int(removed.sum()) - again,
        answered_otherwise=again - asked,
        asked_otherwise=asked,
        moved=[(*pair, count) for pair, count in sides.most_common()],
        reasons={reason: (reasons[0][reason], reasons[1][reason]) for reason in reasons[0] | reasons[1]},
        samples=_samples(old, new, _chosen(rows, now, removed, added, moved)),
    )


def _rows(step: Finished, names: list[str]) -> NDArray[Any]:
    def read() -> Iterator[tuple[int, int, int, int]]:
        for name, path in row_files(step).items():
            with open(path, "rb") as file:
                for line in map(orjson.loads, file):
                    answer = content_id([line["messages"][-1], line["rejected"]])
                    yield int(line["id"], 16), int(line["group"], 16), int(answer, 16), names.index(name)

    return np.fromiter(read(), _ROW)


def _beyond(rows: NDArray[Any], others: NDArray[Any]) -> Mask:
    """The rows that the others lack: where a content stands more often here than there, the last of them."""
    order = np.argsort(rows["id"], kind="stable")
    ids, theirs = rows["id"][order], np.sort(others["id"])
    times_before = np.arange(len(ids)) - np.searchsorted(ids, ids)
    times_there = np.searchsorted(theirs, ids, "right") - np.searchsorted(theirs, ids)
    beyond = np.zeros(len(rows), bool)
    beyond[order] = times_before >= times_there
    return beyond


def _pairs(some: NDArray[np.uint64], others: NDArray[np.uint64]) -> int:
    """How many of some have a partner of equal value among the others, each its own."""
    (values, times), (theirs, their_times) = (np.unique(keys, return_counts=True) for keys in (some, others))
    _, mine, their = np.intersect1d(values, theirs, return_indices=True)
    return int(np.minimum(times[mine], their_times[their]).sum())


def _said(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Prompt and answer in one number."""
    said: NDArray[np.uint64] = rows["prompt"] * _MIX ^ rows["answer"]
    return said


def _moved(rows: NDArray[Any], now: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Places before and after of contents that changed sides, and how many rows each is."""
    ids, times = np.unique(rows["id"], return_counts=True)
    their_ids, their_times = np.unique(now["id"], return_counts=True)
    ids, mine, theirs = np.intersect1d(ids, their_ids, return_indices=True)
    firsts = [np.unique(version["id"], return_index=True)[1] for version in (rows, now)]
    at, then = firsts[0][mine], firsts[1][theirs]
    differ = rows["side"][at] != now["side"][then]
    both = np.minimum(times[mine], their_times[theirs])
    return list(zip(at[differ].tolist(), then[differ].tolist(), both[differ].tolist()))


def _version(step: Finished, rows: NDArray[Any], names: list[str]) -> Version:
    counted = np.bincount(rows["side"], minlength=len(names)).tolist()
    return Version(step.step, step.identity, step.record["started"], dict(zip(names, counted)))


def _settings(before: Sequence[Finished], after: Sequence[Finished], keys: Mapping[str, str]) -> Iterator[str]:
    old, new = ({step.step: step.record["hashed"] for step in steps} for steps in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if name in old and name in new:
            told = compared.settings(old[name], new[name], keys)
            yield from (f"step {name}: {line}" if line.startswith("the step") else line for line in told)
        else:
            yield f"step {name} is only in the version {'before' if name in old else 'after'}"


def _chosen(
    rows: NDArray[Any], now: NDArray[Any], removed: Mask, added: Mask, moved: list[tuple[int, int, int]]
) -> dict[str, list[Pair]]:
    """Places before and after of the rows to show, those with the lowest hashes."""
    gone, came = np.flatnonzero(removed), np.flatnonzero(added)
    both = np.intersect1d(rows["prompt"][gone], now["prompt"][came])
    answered, asked = list[Pair](), list[Pair]()
    for prompt in both.tolist():
        i, j = (int(of[version["prompt"][of] == prompt][0]) for version, of in ((rows, gone), (now, came)))
        (asked if rows["answer"][i] == now["answer"][j] else answered).append((i, j))
        if min(len(asked), len(answered)) >= _SAMPLES or len(asked) + len(answered) >= 100:
            break
    lost = gone[~np.isin(rows["prompt"][gone], both)]
    new = came[~np.isin(now["prompt"][came], both)]
    return {
        "added": [(None, j) for j in new[np.argsort(now["id"][new])][:_SAMPLES].tolist()],
        "removed": [(i, None) for i in lost[np.argsort(rows["id"][lost])][:_SAMPLES].tolist()],
        "answered_otherwise": answered[:_SAMPLES],
        "asked_otherwise": asked[:_SAMPLES],
        "moved": [(i, j) for i, j, _ in moved[:_SAMPLES]],
    }


def _samples(old: Finished, new: Finished, chosen: dict[str, list[Pair]]) -> dict[str, list[Sample]]:
    pairs = [pair for of_kind in chosen.values() for pair in of_kind]
    before, after = _at(old, {i for i, _ in pairs}), _at(new, {j for _, j in pairs})
    return {
        kind: [Sample(before.get(i), after.get(j)) for i, j in of_kind] for kind, of_kind in chosen.items() if of_kind
    }


def _at(step: Finished, places: set[int | None]) -> dict[int | None, Said]:
    """The rows at these places, where the files of all sides are counted through."""
    found: dict[int | None, Said] = {}
    place = 0
    for side, path in row_files(step).items():
        with open(path, "rb") as file:
            for line in file:
                if place in places:
                    row = orjson.loads(line)
                    asked = "\n".join(str(m["content"]) for m in row["messages"][:-1] if m["role"] != "system")
                    said = (asked[:_SHOWN_CHARACTERS], str(row["messages"][-1]["content"])[:_SHOWN_CHARACTERS])
                    found[place] = Said(f"{row['source']}:{row['line']}", side, *said)
                place += 1
    return found
