"""Files of raw text as documents. What a document is depends on the file:

- `.jsonl` and `.json`: the `text` of each record.
- `.txt` and `.md`: the whole file. A line that says `<|endoftext|>` and nothing else ends one document and begins the
  next. A `.txt` file that has neither such a line nor a blank one in its first million characters is a document on each
  line, as collections of articles often are. A document of more than a million characters is divided at a blank line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import DataError
from tunesmith.core.records import Quarantined
from tunesmith.data import files, readers
from tunesmith.data.values import Unusable, named, plain, repaired

Form = Literal["records", "lines", "file"]
Unit = Literal["line", "record", "page"]  # what the place of a text in its file counts

SHOWN_CHARACTERS = 500  # of a document that cannot be used

_SEPARATOR = "<|endoftext|>"
_LONG_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Document:
    """A text without blanks around it, and where it begins: `line` counts from 1 what `unit` says."""

    source: str
    line: int
    text: str
    unit: Unit = "line"
    markdown: bool = False
    title: str = ""

    def place(self, line: int) -> int:
        """Where a line of the text, counted from 0, stands in the file."""
        return self.line + line if self.unit == "line" else self.line


def read(path: Path) -> Iterator[Document | Quarantined]:
    """The documents of a file in their order, and what of it cannot be read; raises DataError where nothing can."""
    found = form(path)
    try:
        yield from _records(path) if found == "records" else _text(path, found == "lines")
    except DataError as error:
        error.next = error.next.replace("data.sources", "pretrain.texts")
        raise


def form(path: Path) -> Form:
    """What a document is in this file: the `text` of a record, a line, or the file."""
    kind = path.suffix.lower()
    if kind not in (".txt", ".md"):
        return "records"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(_LONG_CHARACTERS)
    lines = {line.strip() for line in head.strip().splitlines()}
    return "lines" if kind == ".txt" and not lines & {"", _SEPARATOR} else "file"


def _records(path: Path) -> Iterator[Document | Quarantined]:
    name = repaired(path.name)
    for record in files.records(path):
        try:
            if record.problem is not None:
                raise record.problem
            yield Document(name, record.line, _column(plain(record.value, [])).strip(), "record")
        except Unusable as problem:
            yield _quarantined(name, record, problem)


def _column(value: Any) -> str:
    if not isinstance(value, dict) or "text" not in value:
        has = f"it has {named(value)}" if isinstance(value, dict) else "it is no object"
        raise Unusable("no column `text`", f"put the document under `text` in each record; in this one {has}")
    if not isinstance(value["text"], str):
        raise Unusable("`text` is no text", "write the whole document as one text under `text`")
    return value["text"]


def _text(path: Path, by_line: bool) -> Iterator[Document | Quarantined]:
    """Blank lines inside a document are kept. A line that is not UTF-8 is quarantined and leaves a blank one."""
    name = repaired(path.name)
    markdown = path.suffix.lower() == ".md"
    lines: list[str] = []
    begin = last = characters = 0
    for record in files.records(path):
        if record.problem is not None:
            yield _quarantined(name, record, record.problem)
            continue
        text = (record.text or "").replace("\r\n", "\n")
        blanks = record.line - last - 1
        divides = characters > _LONG_CHARACTERS and (blanks > 0 or characters > 2 * _LONG_CHARACTERS)
        separates = text.strip() == _SEPARATOR
        if lines and (by_line or separates or divides):
            yield Document(name, begin, "".join(lines).strip(), markdown=markdown)
            lines, characters = [], 0
        last = record.line
        if not separates:
            begin = begin if lines else record.line
            lines += ["\n" * blanks, text]
            characters += blanks + len(text)
    if lines:
        yield Document(name, begin, "".join(lines).strip(), markdown=markdown)


def _quarantined(name: str, record: readers.Record, problem: Unusable) -> Quarantined:
    shown = repaired((record.text or str(record.value))[:SHOWN_CHARACTERS])
    return Quarantined(name, record.line, problem.reason, repaired(problem.fix), shown)
