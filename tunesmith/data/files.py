"""Files as records: JSON Lines, JSON, CSV, TSV, Parquet and plain text, told apart by name and by content.

A record that cannot be read comes out with its problem instead of its value, and reading goes on behind it. A file that
cannot be read at all is a DataError. JSON Lines, CSV and text are streamed; a JSON array is read as a whole, Parquet by
batches of rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from tunesmith.core.errors import DataError
from tunesmith.data.parts import Part, cut
from tunesmith.data.values import Unusable, advice, decode, is_unicode, kind, named, too_deep, too_long

Format = Literal["lines", "json", "csv", "tsv", "parquet", "text"]

_HEAD_BYTES = 1 << 16  # what is looked at to tell formats apart
_MAX_CELL_CHARACTERS = 64 << 20  # a longer CSV cell is an unclosed quote that swallows the rest of the file
_BATCH_ROWS = 256
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"PK\x03\x04": ("ZIP or Excel", "unzip, or save the sheet as CSV"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
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
}
_ARRAY = re.compile(r'\s*(?:\{\s*"(?P<key>[^"\\]*)"\s*:\s*)?\[')
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Record:
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


def pieces(path: Path) -> Iterator[Part]:
    """The parts of which a file's records can be read by themselves: of lines, or the whole; raises DataError where
    there is nothing to read."""
    if format_of(path, _head(path)) in ("lines", "text"):
        yield from cut(path)
    else:
        yield Part(path, 0, path.stat().st_size, 0, 0)


def records(path: Path) -> Iterator[Record]:
    """The records of a file in their order; raises DataError where there is nothing to read."""
    for part in pieces(path):
        yield from records_of(part)


def records_of(part: Part) -> Iterator[Record]:
    """The records of one of a file's pieces."""
    path = part.path
    head = _head(path)
    format = format_of(path, head)
    if format == "parquet":
        yield from _parquet(path)
    elif format == "json":
        yield from _json(path)
    elif format in ("csv", "tsv"):
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _csv(path, file, "\t" if format == "tsv" else _delimiter(head))
    else:
        yield from _lines(_texts(part), part.before + 1, as_json=format == "lines")


def _texts(part: Part) -> Iterator[str]:
    """The lines of a part as `open` would give them: a lone carriage return ends one, too."""
    encoding = "utf-8" if part.start else "utf-8-sig"
    for line in part.read():
        text = line.decode(encoding, "surrogateescape")
        yield from io.StringIO(text, newline="") if "\r" in text else (text,)
        encoding = "utf-8"


def format_of(path: Path, head: bytes) -> Format:
    """How a file is to be read; `head` is its beginning. The content overrules a name that it cannot have."""
    format = _SUFFIXES.get(path.suffix.lower())
    first, _, more = head.decode("utf-8-sig", "replace").lstrip().partition("\n")
    first = first.strip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if format is None and first[:1] in ("{", "["):
        format = "json"
    if format is None and any(mark in first for mark in ",;\t"):
        return "csv"
    if format is None:
        raise DataError(
            f"{path.name} is of a kind that tunesmith does not read",
            f"its name ends in `{path.suffix}`, and it begins neither like JSON nor like a table",
            "name it .jsonl, .json, .csv, .tsv, .parquet or .txt, whichever it is",
        )
    if format == "lines" and first in ("{", "[", "[{"):
        return "json"
    if format == "json" and first.startswith("{") and more.strip() and _is_json(first):
        return "lines"
    return format


def _is_json(text: str) -> bool:
    try:
        decode(text)
    except Unusable:
        return False
    return True


def _head(path: Path) -> bytes:
    """The beginning of the file; raises DataError for what cannot be text or Parquet."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path.name} cannot be opened", error.strerror or str(error), f"check {path}") from None
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(
            f"{path.name} holds no records",
            f"its first {len(head):,} bytes are blank" if head else "the file is empty",
            "write the file again, or take it out of data.sources",
        )
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path.name} is compressed ({name})",
                "tunesmith reads plain files",
                f"unpack it ({command}) and name the result in data.sources",
            )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (not head.startswith(b"PAR1") and head.count(0) > len(head) // 4):
        raise DataError(
            f"{path.name} is not UTF-8 text",
            "it looks like UTF-16, as Windows programs write it",
            f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}, and name that file in data.sources",
        )
    if re.match(rb"\s*<(!doctype html|html)\b", head, re.IGNORECASE) and path.suffix.lower() != ".txt":
        raise DataError(
            f"{path.name} is a web page",
            "it begins with an HTML tag: often a login or error page was saved instead of the file",
            "download the raw file again",
        )
    return head


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _not_utf8() -> Unusable:
    return Unusable("not valid UTF-8", "save it as UTF-8: a byte in it belongs to another encoding")


def _lines(lines: Iterable[str], first: int, as_json: bool) -> Iterator[Record]:
    for line, text in enumerate(lines, first):
        size = _size(text)
        if not text.strip():
            continue
        if not is_unicode(text):
            yield Record(line, size, text=text, problem=_not_utf8())
        elif not as_json:
            yield Record(line, size, {"text": text.strip()}, text)
        else:
            try:
                yield Record(line, size, decode(text), text)
            except Unusable as problem:
                yield Record(line, size, text=text, problem=problem)


def _json(path: Path) -> Iterator[Record]:
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
    return next(iter(lists.values()), [whole])


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
            yield Record(number, _size(piece), text=piece, problem=_not_utf8())
    if inside and at == len(text):
        fix = "the array is not closed: write or copy the file again, whole"
        yield _rest(number + 1, "", Unusable("not valid JSON", fix))
    elif inside and text[at:].strip("]} \t\r\n"):
        fix = f"take out what stands behind the array, from line {_line_at(text, at)} on"
        yield _rest(number + 1, text[at:], Unusable("not valid JSON", fix))


def _rest(number: int, text: str, problem: Unusable) -> Record:
    return Record(number, _size(text), text=text, problem=problem, swallows=True)


def _skip(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    assert match is not None, "the pattern matches the empty text"
    return match.end()


def _line_at(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _delimiter(head: bytes) -> str:
    """The commonest of the usual separators in the header line."""
    header = head.decode("utf-8-sig", "replace").lstrip().splitlines()[:1]
    return max(",;\t|", key="".join(header).count)


def _csv(path: Path, file: TextIO, delimiter: str) -> Iterator[Record]:
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
            problem = _not_utf8()
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
        problem = _not_utf8()
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


def _parquet(path: Path) -> Iterator[Record]:
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
