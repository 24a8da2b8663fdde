"""Columns of a record: which are there, and the turns that stand in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunesmith.data.reading.conversation import are_turns
from tunesmith.data.reading.values import Unusable, compact, kind, named, parse, short

INPUT = ("input", "context")  # what the instruction or question is about

Record = dict[str, Any]


def history(record: Record, notes: list[str]) -> list[Any]:
    """Alpaca's earlier rounds: pairs of what was asked and answered."""
    history = record.get("history") or []
    if isinstance(history, str):
        history = parse(history, notes)
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Unusable("history is not a list of pairs", "write `history` as [[question, answer], ...]")
    return [
        turn
        for asked, answered in history
        for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]


def null(name: str) -> Unusable:
    return Unusable("a needed value is null", f"write a value for `{short(name)}`, or take the record out")


def has(record: Record, name: str) -> bool:
    """Parquet and CSV give every record every column: one that is null is not there."""
    return record.get(name) is not None


def first(record: Record, names: Iterable[str]) -> str | None:
    """The first of these columns that the record has (`has`, written out: it is asked of every record)."""
    for name in names:
        if record.get(name) is not None:
            return name
    return None


def only(record: Record, names: Iterable[str]) -> str | None:
    """The one of these columns that the record has; raises Unusable where several could be meant."""
    found = [name for name in names if record.get(name) is not None]
    if len(found) > 1:
        raise Unusable(
            "several columns could be the answer",
            f"say in the project file which of {named(found)} counts: `fields: {{answer: {found[0]}}}`",
        )
    return found[0] if found else None


def with_input(record: Record, name: str) -> list[Any]:
    """The prompt's turns, with the text of an `input` or `context` column on the next line."""
    added = [text for key in INPUT if key != name and has(record, key) and (text := compact(record[key])).strip()]
    if not added or isinstance(record[name], list | dict):
        return turns(record[name], "user", name)
    return [{"role": "user", "content": "\n".join(filter(None, [compact(record[name]), *added]))}]


def turns(value: Any, role: str, column: str) -> list[Any]:
    """A column as turns: a list of messages, one message, or any other value as the text of one turn."""
    if value is None:
        raise null(column)
    turns = value if isinstance(value, list) else [value]
    return turns if not isinstance(value, str) and are_turns(turns) else [{"role": role, "content": compact(value)}]


def turn_list(value: Any, column: str, notes: list[str]) -> list[Any]:
    if isinstance(value, str):
        try:
            value = parse(value, notes)
        except Unusable as problem:
            raise Unusable("messages are not a list", f"write `{column}` as a JSON list: {problem.fix}") from None
    if not isinstance(value, list):
        raise Unusable("messages are not a list", f"write `{column}` as a list; it is {kind(value)}")
    return value
