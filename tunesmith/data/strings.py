"""Every text that a row holds, wherever it stands: in messages, in arguments of tool calls, in a rejected answer, in
what is said of its tools.

Whole numbers in arguments count as texts of their digits: an account number may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tunesmith.core.records import Row


def texts(value: Any) -> Iterator[str]:
    """Those in a JSON value, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def of_row(row: Row) -> list[str]:
    """Those of its messages, of its rejected answer and of its tools."""
    found: list[str] = []
    for message in row.messages:
        found.append(message["content"])
        if len(message) > 2:  # more than role and content
            found += texts([value for key, value in message.items() if key not in ("role", "content")])
    if row.rejected is not None:
        found.append(row.rejected)
    if row.tools:
        found += texts(row.tools)
    return found


def changed(row: Row, change: Callable[[str], str]) -> Row:
    """The row with each of these texts changed; keys and roles stay."""
    messages = [{**_changed(message, change), "role": message["role"]} for message in row.messages]
    rejected = None if row.rejected is None else change(row.rejected)
    return replace(row, messages=messages, rejected=rejected, tools=_changed(row.tools, change))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int) and not isinstance(value, bool):
        new = change(str(value))
        return value if new == str(value) else int(new) if new.isdecimal() else new
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return {key: _changed(item, change) for key, item in value.items()} if isinstance(value, dict) else value
