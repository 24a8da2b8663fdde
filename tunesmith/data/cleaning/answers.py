"""What an answer must be: something at all, JSON where the project says so, and JSON that follows its schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.core.schemas import AnswerSchema

_FENCE = re.compile(r"\s*```[ \t]*(?:json)?[ \t]*\n(?P<inside>.*?)\s*```\s*", re.IGNORECASE | re.DOTALL)


def empty(rows: Iterable[Row]) -> Iterator[Kept | Dropped]:
    """Drops rows whose answer, or whose whole prompt, shows nothing; an answer may only call a tool."""
    for row in rows:
        if not _visible(row.answer) and not row.messages[-1].get("tool_calls"):
            yield Dropped(row, "empty answer")
        elif not any(_visible(message["content"]) for message in row.messages[:-1] if message["role"] != "system"):
            yield Dropped(row, "empty prompt")
        else:
            yield Kept(row)


def _visible(text: str) -> bool:
    return text[:1].isalnum() or any(c.isprintable() and not c.isspace() for c in text)


def json_answers(rows: Iterable[Row]) -> Iterator[Kept | Dropped]:
    """Drops answers that are not JSON; what stands in a Markdown code fence is taken out of it and the change noted."""
    for row in rows:
        try:
            parse_json(row.answer)
        except ValueError as error:
            yield _unfenced(row) or Dropped(row, "answer is not JSON", str(error))
        else:
            yield Kept(row)


def follows_schema(rows: Iterable[Row], schema: Path) -> Iterator[Kept | Dropped]:
    """Drops answers that break a JSON Schema, whose draft is the one that it names (2020-12 when it names none).

    Formats are not asserted, as the standard has it, and nothing is fetched: a reference that leads out of the file is
    a ConfigError, and so is a file that cannot be read or is no schema.
    """
    asked = AnswerSchema.read(schema)
    for row in rows:
        try:
            fault = asked.fault(parse_json(row.answer))
        except ValueError as error:
            yield Dropped(row, "answer is not JSON", str(error))
        else:
            yield Dropped(row, "answer breaks the schema", fault) if fault else Kept(row)


def parse_json(text: str) -> Any:
    """The value of a JSON text, as RFC 8259 has it: NaN, infinities, half surrogates and deep nests are ValueErrors."""
    return orjson.loads(text)


def _unfenced(row: Row) -> Kept | None:
    fence = _FENCE.fullmatch(row.answer)
    if not fence:
        return None
    try:
        parse_json(fence["inside"])
    except ValueError:
        return None
    answer = {**row.messages[-1], "content": fence["inside"].strip()}
    return Kept(row.changed("JSON taken out of a code fence", [*row.prompt, answer]))
