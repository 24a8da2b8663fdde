"""Plain JSON values: from text and foreign objects, and back to compact text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import orjson

_LONG = 19  # digits of a number that may not fit in 64 bits
_LONG_NUMBER = re.compile(rf"\d{{{_LONG}}}")
NO_DIGIT = bytes(set(range(256)) - set(b"0123456789"))  # to be taken out where digits are counted
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_LEVELS = 100  # orjson writes 254 levels and Python recurses some 1,000 deep; no real record comes near either
_DAY = re.compile(r"(?:19|20)\d{6}")
_FINER = (1e3, 1e6, 1e9)  # of such units a second has so many
_YEARS = (946_684_800, 4_102_444_800)  # 2000 to 2100, in seconds since 1970
_MAX_BITS = 4096  # Python refuses to write whole numbers of more than 4,300 digits


class Unusable(Exception):
    """A record that cannot become a row: `reason` is a fixed phrase to count by, `fix` one sentence for its owner."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


class Foreign(Unusable):
    """A value that JSON cannot hold, of the kind `kind`."""

    def __init__(self, kind: str, where: str = "") -> None:
        told = f"{kind} in {where}" if where else kind
        super().__init__("a value that JSON cannot hold", f"write the {told} as text, number, list or object")
        self.kind = kind


def decode(text: str) -> Any:
    """The value of a JSON text, also with NaN, numbers of any size and lone surrogates; raises Unusable."""
    try:
        # orjson is the fast way, but it turns whole numbers beyond 64 bits into floats without a word.
        content = text.encode("utf-8", "surrogatepass")
        if len(content.translate(None, NO_DIGIT)) < _LONG or not _LONG_NUMBER.search(text):
            return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except RecursionError:
        raise too_deep() from None
    except json.JSONDecodeError as error:
        raise Unusable("not valid JSON", advice(text, error)) from None
    except ValueError:
        raise too_long() from None


def advice(text: str, error: json.JSONDecodeError) -> str:
    """One sentence that says what to change so that the text becomes JSON."""
    rest = text[error.pos :].lstrip()
    where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
    if not rest:
        return "it stops in the middle of a value: write or copy the file again, whole"
    if rest.startswith("\0"):
        return f"take out the NUL bytes at {where}: the file was not written whole, or is no text"
    if rest.startswith("\ufeff"):
        return f"take out the byte order mark (U+FEFF) at {where}: it may stand at the beginning of a file alone"
    if error.msg.startswith("Unterminated string"):
        return f"close the text that begins at {where}: a quote is missing, or the file was cut short"
    if rest.startswith("'"):
        return f"put keys and texts in double quotes ({where}): write the file with json.dumps, not with str"
    if rest.startswith(("//", "/*", "#")):
        return f"take out the comment at {where}: JSON has none"
    if text[: error.pos].rstrip(" \t\r\n,]}") != text[: error.pos].rstrip() and rest[0] in "]}":
        return f"take out the comma before {where}"
    if error.msg.startswith("Extra data") and rest.rstrip() == ",":
        return f"take out the comma at {where}: each line is a record of its own"
    if error.msg.startswith("Extra data"):
        return f"put what begins at {where} on a line of its own"
    if error.msg.startswith("Invalid control character"):
        return f"write line breaks and tabs inside texts as \\n and \\t ({where})"
    return f"mend {where}: {error.msg[:1].lower()}{error.msg[1:]}, but `{short(rest, 20)}` stands there"


def too_deep() -> Unusable:
    return Unusable("nested too deeply", f"flatten it: a record may have {_MAX_LEVELS} levels of lists and objects")


def too_long() -> Unusable:
    return Unusable("a number is too long", "write the long number as text, in quotes")


def is_unicode(text: str) -> bool:
    """False where lone surrogates stand: as JSON escapes, or for bytes that were not UTF-8."""
    return text.isascii() or not _SURROGATE.search(text)


def repaired(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, so that it can be written as UTF-8."""
    return text if is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain(value: Any, notes: list[str], level: int = 0) -> Any:
    """A copy of the value made of JSON's own types alone; each repair leaves a note.

    Dates and bytes that are UTF-8, as Parquet and `convert` hand them over, become text. Raises Unusable for what JSON
    cannot hold.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if is_unicode(value):
            return value
        notes.append("lone surrogates replaced by U+FFFD")
        return repaired(value)
    if level > _MAX_LEVELS:
        raise too_deep()
    if isinstance(value, dict):
        if {*map(type, value), *map(type, value.values())} == {str} and is_unicode("".join((*value, *value.values()))):
            return dict(value)  # most records, and most messages
        return {plain(k if isinstance(k, str) else str(k), notes): plain(v, notes, level + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, notes, level + 1) for item in value]
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise too_long()
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        notes.append("NaN or Infinity read as null")
        return None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    raise Foreign(type(value).__name__)


def plain_record(record: Any, used: Collection[str] | None, notes: list[str]) -> Any:
    """As `plain`, but a column that JSON cannot hold is left out where it is not `used`, and told by its name where it
    is: pictures and keys stand beside many texts. Without `used` it stays as it is."""
    try:
        return plain(record, notes)
    except Foreign:
        if not isinstance(record, dict):
            raise
    found: dict[str, Any] = {}
    for name, value in record.items():
        try:
            found |= plain({name: value}, notes)
        except Foreign as problem:
            if used is None:
                found[name] = value
            elif name in used:
                raise Foreign(problem.kind, f"`{short(name)}`") from None
            else:
                notes.append(f"column of {problem.kind} left out")
    return found


def parse(text: str, notes: list[str]) -> Any:
    """The plain value of a JSON text that stands inside a record."""
    return plain(decode(text), notes)


def seconds(value: Any) -> float | None:
    """Seconds since 1970; of a number, the number itself, so that versions can be counted, too. A number that is a time
    between 2000 and 2100 in milliseconds, microseconds or nanoseconds is taken for one, and eight digits may be a day.
    """
    if value in (None, ""):
        return None
    with suppress(ValueError):
        if _DAY.fullmatch(text := compact(value).strip()):
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            in_seconds = (number / per_second for per_second in _FINER)
            return next((one for one in in_seconds if _YEARS[0] <= one < _YEARS[1]), number)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        fix = f"write it as 2026-01-31, 2026-01-31T12:00 or a number; {short(value)} stands there"
        raise Unusable("time cannot be read", fix) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def compact(value: Any) -> str:
    """A plain value as text: a text as it is, anything else as JSON on one line with its keys in their order."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def storable(value: Any, name: str) -> Any:
    """The plain value itself; raises Unusable where a row file cannot hold it (numbers beyond 64 bits)."""
    try:
        orjson.dumps(value)
    except TypeError:
        raise Unusable("a number is too long", f"write the long number in `{name}` as text, in quotes") from None
    return value


def short(value: Any, limit: int = 40) -> str:
    """The beginning of a value's text, for a message."""
    text = " ".join(compact(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def named(keys: Any) -> str:
    """The names of columns or keys, for a message: at most eight."""
    names = [short(key) for key in keys]
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(f"`{name}`" for name in names[:8]) + rest if names else "no keys"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return next((name for type_, name in names.items() if isinstance(value, type_)), type(value).__name__)
