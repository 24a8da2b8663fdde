"""One prompt, several answers: noise where one answer is right, and all well where many are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.answers import parse_json
from tunesmith.data.dedup import context

Mode = Literal["drop", "majority", "report"]


def resolve(rows: Iterable[Row], mode: Mode) -> Iterator[Kept | Dropped]:
    """Finds rows of one context whose answers differ, and drops them all, the outvoted ones, or none.

    JSON answers are compared by value, others up to whitespace. In a majority each row has one vote and a tie drops
    all; `report` keeps all and notes in each row one that it contradicts. Rows pinned to the exam have no part in the
    votes of the others. Holds all rows in memory: the last may contradict the first.
    """
    rows = list(rows)
    contexts = [context(row) for row in rows]
    meanings = [_meaning(row) for row in rows]
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[tuple[str, str], Row] = {}  # the first row that says this in this context
    for row, place, meaning in zip(rows, contexts, meanings):
        votes[place][meaning] += 1
        first.setdefault((place, meaning), row)
    for row, place, meaning in zip(rows, contexts, meanings):
        said = votes[place]
        if len(said) == 1:
            yield Kept(row)
            continue
        other = first[place, next(other for other, _ in said.most_common() if other != meaning)]
        if mode == "report":
            yield Kept(row.changed(f"contradicts {other.source}:{other.line}", row.messages))
        elif mode == "majority" and all(said[meaning] > n for other, n in said.items() if other != meaning):
            yield Kept(row)
        else:
            yield Dropped(row, "contradiction", f"{len(said)} answers to one prompt; see {other.source}:{other.line}")


def _meaning(row: Row) -> str:
    """A text that is the same for answers that say the same."""
    try:
        said = {"json": _one_number(parse_json(row.answer))}
    except ValueError:
        said = {"text": " ".join(row.answer.split())}
    return json.dumps([said, row.messages[-1].get("tool_calls")], sort_keys=True)


def _one_number(value: Any) -> Any:
    """2 for 2.0, at any depth: JSON knows one kind of number. True stays apart from 1, as it would not by `==`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_one_number(item) for item in value]
    return {key: _one_number(item) for key, item in value.items()} if isinstance(value, dict) else value
