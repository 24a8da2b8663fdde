"""Files of raw text as documents. What a document is depends on the file:

- `.txt` and `.md`: the whole file. A line that says `<|endoftext|>` and nothing else ends one document and begins the
  next. A `.txt` file that has neither such a line nor a blank one in its first million characters is a document on each
  line, as collections of articles often are. A document of more than a million characters is divided at a blank line.
- `.html`, `.pdf`, `.docx` and subtitles (`.srt`, `.vtt`): the whole file, as html.py, pdf.py, word.py and subtitles.py
  read it.
- any other file of records: the `text` of each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import DataError
from tunesmith.core.records import Quarantined
from tunesmith.data.reading import files, html, pdf, readers, subtitles, word
from tunesmith.data.reading.values import Unusable, named, plain_record, repaired

Form = Literal["records", "lines", "file"]
Unit = Literal["line", "record", "page", "document"]  # what the place of a text in its file counts

KINDS = "text, Markdown, HTML, PDF, DOCX, subtitles or records"
SHOWN_CHARACTERS = 500  # of a document that cannot be used

_TEXT = (".txt", ".md")
_SEPARATOR = "<|endoftext|>"
_LONG_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Document:
    """A text without blanks around it, and where it begins: `line` counts from 1 what `unit` says.

    `marks` are pairs of a line of the text (from 0) and the place in the file where it stands, for texts whose lines
    are not those of the file. `furniture` counts lines that were taken out because they repeat on the pages."""

    source: str
    line: int
    text: str
    unit: Unit = "line"
    markdown: bool = False
    title: str = ""
    marks: tuple[tuple[int, int], ...] = ()
    furniture: int = 0

    def place(self, line: int) -> int:
        """Where a line of the text, counted from 0, stands in the file."""
        if self.marks:
            return self.marks[bisect_right(self.marks, line, key=itemgetter(0)) - 1][1]
        return self.line + line if self.unit == "line" else self.line


def why_not(name: str) -> str | None:
    """Why a file of this name is not read where it stands among others; None where it is."""
    suffix = Path(name).suffix.lower()
    return None if suffix in (*_WHOLE, *_TEXT) or files.holds_records(name) else "of a kind that holds no text"


def read(path: Path, name: str | None = None) -> Iterator[Document | Quarantined]:
    """The documents of a file in their order, and what of it cannot be read; raises DataError where nothing can, and
    ConfigError for a file that needs a package which is not there. `name` is what they tell as their source."""
    name = repaired(name or path.name)
    try:
        if whole := _WHOLE.get(path.suffix.lower()):
            yield from _file(path, name, whole)
        else:
            found = form(path)
            yield from _records(path, name) if found == "records" else _text(path, name, found == "lines")
    except DataError as error:
        error.next = error.next.replace("data.sources", "pretrain.texts")
        raise


def form(path: Path) -> Form:
    """What a document is in this file: the `text` of a record, a line, or the file."""
    kind = path.suffix.lower()
    if kind not in _TEXT:
        return "file" if kind in _WHOLE else "records"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(_LONG_CHARACTERS)
    lines = {line.strip() for line in head.strip().splitlines()}
    return "lines" if kind == ".txt" and not lines & {"", _SEPARATOR} else "file"


def _file(
    path: Path, name: str, whole: Callable[[Path, str], Iterator[Document | Unusable]]
) -> Iterator[Document | Quarantined]:
    """The one document of a file, or why it cannot be read."""
    try:
        found = list(whole(path, name))
    except Unusable as problem:
        found = [problem]
    for one in found:
        yield Quarantined(name, 1, one.reason, repaired(one.fix), "") if isinstance(one, Unusable) else one


def _page(path: Path, name: str) -> Iterator[Document | Unusable]:
    title, text = html.read(name, path.read_bytes())
    if not text:
        raise Unusable("no text in the page", "it may be made by its scripts: save it from the browser")
    yield Document(name, 1, repaired(text), "document", markdown=True, title=title)


def _pdf(path: Path, name: str) -> Iterator[Document | Unusable]:
    pages = pdf.read(path)
    yield Document(name, pages.marks[0][1], pages.text, "page", False, pages.title, pages.marks, pages.furniture)
    if pages.scanned:
        which = ", ".join(map(str, pages.scanned[:5])) + ("..." if len(pages.scanned) > 5 else "")
        yield Unusable(
            "scanned pages without text",
            f"let a program read the pictures of page {which} (`ocrmypdf --skip-text IN.pdf OUT.pdf`)",
        )


def _word(path: Path, name: str) -> Iterator[Document | Unusable]:
    title, text = word.read(path)
    if not text:
        raise Unusable("no text in it", "it may be a picture: save its text")
    yield Document(name, 1, repaired(text), "document", markdown=True, title=title)


def _subtitles(path: Path, name: str) -> Iterator[Document | Unusable]:
    try:
        text, marks = subtitles.read(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise readers.not_utf8() from None
    yield Document(name, marks[0][1], text, marks=marks)


_WHOLE: dict[str, Callable[[Path, str], Iterator[Document | Unusable]]] = {
    ".html": _page, ".htm": _page, ".pdf": _pdf, ".docx": _word, ".srt": _subtitles, ".vtt": _subtitles,
}  # fmt: skip


def _records(path: Path, name: str) -> Iterator[Document | Quarantined]:
    for record in files.records(path):
        try:
            if record.problem is not None:
                raise record.problem
            yield Document(name, record.line, _column(plain_record(record.value, ("text",), [])).strip(), "record")
        except Unusable as problem:
            yield _quarantined(name, record, problem)


def _column(value: Any) -> str:
    if not isinstance(value, dict) or "text" not in value:
        has = f"it has {named(value)}" if isinstance(value, dict) else "it is no object"
        raise Unusable("no column `text`", f"put the document under `text` in each record; in this one {has}")
    if not isinstance(value["text"], str):
        raise Unusable("`text` is no text", "write the whole document as one text under `text`")
    return value["text"]


def _text(path: Path, name: str, by_line: bool) -> Iterator[Document | Quarantined]:
    """Blank lines inside a document are kept. A line that is not UTF-8 is quarantined and leaves a blank one."""
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
