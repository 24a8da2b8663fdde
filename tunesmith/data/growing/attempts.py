"""What is tried to make a new row: what a model is asked, and what its reply becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from tunesmith.core.records import Message, Row
from tunesmith.models.endpoint import Asked


class Unread(Exception):
    """A reply that is no row: a short phrase to count by, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Attempt:
    """What is tried once. `row` is what is known of it before, and all of it where no model is asked. `then` asks a
    second time, about the first reply. `read` makes rows of the last one, or raises Unread; `fault` tells what keeps a
    row from standing on its source. `rows` is how many it is to bring, as far as the model does what it is asked."""

    parent: str
    row: Row
    asked: Asked | None = None
    then: Callable[[str], Asked] | None = None
    read: Callable[[str], list[Row]] | None = None
    fault: Callable[[Row], str] = lambda row: ""
    rows: int = 1


def synthetic(kind: str, source: str, line: int, messages: list[Message], parents: list[str]) -> Row:
    """A new row; it trains, whatever the files of its parents are pinned to."""
    return Row(messages, source, line, f"synthetic:{kind}", split="train", parents=parents)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def text_of(value: Any) -> str:
    """What a model wrote in a field: its text, or what else it put there as compact JSON; null is no text."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else orjson.dumps(value).decode()
