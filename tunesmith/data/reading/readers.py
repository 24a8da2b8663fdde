"""Readers: the records of a file whose format is known.

A record that cannot be read comes out with its problem instead of its value, and reading goes on behind it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tunesmith.core.errors import DataError
from tunesmith.data.reading.values import Unusable, advice, decode, is_unicode, kind, named, too_deep, too_long

_MAX_CELL_CHARACTERS = 64 << 20  # a longer CSV cell is an unclosed quote that swallows the rest of the file
_BATCH_ROWS = 256
# Lists under these keys are parts of one record; under any other key, a list of objects is the file's list of records.
_PARTS = {
    "messages",
    "conversations",
    "conversation",
    "chat",
    "tools",
    "tool_calls",
    "history",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "choices",
    "input",
    "output",
    "functions",
    "preferred_output",
    "non_preferred_output",
}
_ARRAY = re.compile(r'\s*(?:\{\s*"(?P<key>[^"\\]*)"\s*:\s*)?\[')
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # Excel's own first line
_BETWEEN = re.compile(r"[\s,]*")


class Record(NamedTuple):
    """What stands at one place of a file: a value, or the problem with it.

    `line` counts from 1; in JSON arrays and Parquet files it is the record's number. `swallows` marks a problem that
    may hide more than one record: the rest of a broken array, the lines behind an unclosed quote.
    """

    line: int
    size_bytes: float
    value: Any = None
    text: str | None = None
    problem: Unusable | None = None
    swallows: bool = False


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def not_utf8() -> Unusable:
    return Unusable("not valid UTF-8", "save it as UTF-8: a byte in it belongs to another encoding")


def of_lines(lines: Iterable[str], first: int, as_json: bool) -> Iterator[Record]:
    for line, text in enumerate(lines, first):
        size = _size(text)
        if not text.strip():
            continue
        if not is_unicode(text):
            yield Record(line, size, text=text, problem=not_utf8())
        elif not as_json:
            yield Record(line, size, {"text": text.strip()}, text)
        else:
            try:
                yield Record(line, size, decode(text), text)
            except Unusable as problem:
                yield Record(line, size, text=text, problem=problem)


def of_json(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        whole = decode(text) if is_unicode(text) else None
    except Unusable:
        whole = None
    if whole is None:
        yield from _salvaged(text)
        return
    values = _unwrapped(path, whole)
    size = _size(text) / len(values)
    for number, value in enumerate(values, 1):
        yield Record(number, size, value)


def _unwrapped(path: Path, whole: Any) -> list[Any]:
    """The list of records: the file's array, the one list of objects in its object, or the object alone."""
    if isinstance(whole, list):
        if not whole:
            raise DataError(f"{path.name} holds no records", "its array is empty", "write the file again")
        return whole
    if not isinstance(whole, dict):
        raise DataError(
            f"{path.name} holds no records",
            f"it is {kind(whole)}, not a list of objects",
            "write it as one array of objects",
        )
    lists = {
        key: value
        for key, value in whole.items()
        if key not in _PARTS and isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    }
    if len(lists) > 1:
        raise DataError(
            f"{path.name} holds several lists of records",
            f"they stand under {named(lists)}",
            "write each list to a file of its own, so that data.sources can say which side it belongs to",
        )
    if _are_columns(list(whole.values())):
        raise DataError(
            f"{path.name} holds columns, not records",
            f"under each of {named(whole)} stand the values of all records",
            "write it record by record, with pandas as to_json(..., orient='records', lines=True)",
        )
    return next(iter(lists.values()), [whole])


def _are_columns(values: list[Any]) -> bool:
    """Whether an object is a table column by column: lists of one length, or objects with the same numbers as keys."""
    if len(values) < 2:
        return False
    if all(isinstance(value, list) and not any(isinstance(v, dict | list) for v in value) for value in values):
        return len(values[0]) > 1 and len({len(value) for value in values}) == 1
    if all(isinstance(value, dict) and value for value in values):
        return all(key.isdecimal() for key in values[0]) and all(value.keys() == values[0].keys() for value in values)
    return False


def _salvaged(text: str) -> Iterator[Record]:
    """What can be read of a broken JSON file, value by value; the rest, from the first fault on, as one record."""
    decoder = json.JSONDecoder()
    opening = _ARRAY.match(text)
    inside = opening is not None and opening["key"] not in _PARTS
    at = opening.end() if opening and inside else 0
    number = 0
    while (at := _skip(text, at)) < len(text) and not (inside and text[at] == "]"):
        number += 1
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            fix = f"the file cannot be read from line {_line_at(text, at)} on: {advice(text, error)}"
            yield _rest(number, text[at:], Unusable("not valid JSON", fix))
            return
        except RecursionError:
            yield _rest(number, text[at:], too_deep())
            return
        except ValueError:
            yield _rest(number, text[at:], too_long())
            return
        piece, at = text[at:end], end
        if is_unicode(piece):
            yield Record(number, _size(piece), value, piece)
        else:
            yield Record(number, _size(piece), text=piece, problem=not_utf8())
    if inside and at == len(text):
        fix = "the array is not closed: write or copy the file again, whole"
        yield _rest(number + 1, "", Unusable("not valid JSON", fix))
    elif inside and text[at:].strip("]} \t\r\n"):
        behind = len(text) - len(text[at:].lstrip("]} \t\r\n"))
        fix = f"take out what stands behind the array, from line {_line_at(text, behind)} on"
        yield _rest(number + 1, text[at:], Unusable("not valid JSON", fix))


def _rest(number: int, text: str, problem: Unusable) -> Record:
    return Record(number, _size(text), text=text, problem=problem, swallows=True)


def _skip(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    assert match is not None, "the pattern matches the empty text"
    return match.end()


def _line_at(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def delimiter(head: bytes) -> str:
    """The one that Excel names in the first line, else the commonest of the usual separators in the header line."""
    header = "".join(head.decode("utf-8-sig", "replace").lstrip().splitlines()[:1])
    named = _EXCEL_SEPARATOR.fullmatch(header)
    return named[1] if named else max(",;\t|", key=header.count)


def of_csv(path: Path, file: TextIO, delimiter: str) -> Iterator[Record]:
    """Strict CSV: a stray quote is a problem of its record, and reading starts afresh on the next line."""
    csv.field_size_limit(_MAX_CELL_CHARACTERS)  # the module's limit of 128 KiB is below a long document
    seen: list[str] = []

    def tapped() -> Iterator[str]:
        for text in file:
            seen.append(text)
            yield text

    reader = csv.reader(tapped(), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        seen.clear()
        line = reader.line_num + 1
        problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = []
            problem = Unusable(
                "broken quotes",
                f"close the quoted text that begins in line {line}, and write a quote inside it twice: {error}",
            )
        text = "".join(seen)
        if columns is None and _EXCEL_SEPARATOR.fullmatch(text):
            continue
        if columns is None:
            columns = _columns(path, cells, problem) if cells or problem else None
            continue
        if not cells and not problem:
            continue
        if problem is None and len(cells) != len(columns):
            problem = Unusable(
                "wrong number of columns",
                f"the header names {len(columns)} columns and this row has "
                f"{len(cells)}: put texts that hold `{delimiter}` in double quotes",
            )
        if not is_unicode(text):
            problem = not_utf8()
        yield Record(
            line,
            _size(text),
            None if problem else dict(zip(columns, cells)),
            text,
            problem,
            swallows=problem is not None and len(seen) > 1,
        )


def _columns(path: Path, cells: list[str], problem: Unusable | None) -> list[str]:
    if not is_unicode("".join(cells)):
        problem = not_utf8()
    if problem is not None:
        raise DataError(f"the header of {path.name} cannot be read", problem.reason, problem.fix)
    columns = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path.name} has two columns named `{twice}`",
            "only one of them could be read",
            "give each column a name of its own in the header line",
        )
    return columns


def of_parquet(path: Path) -> Iterator[Record]:
    import pyarrow  # a quarter of a second, which readers of text files need not wait
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            size = path.stat().st_size / max(file.metadata.num_rows, 1)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, size, value)
    # Broken pages show up while batches are read: as Arrow's own errors, as bad UTF-8, or as dates out of range.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path.name} is not a readable Parquet file",
            " ".join(str(error).split())[:200],
            "write or copy the file again, or export it as JSON Lines",
        ) from None
