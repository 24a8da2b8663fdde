"""PDF files as text: the lines of a page become paragraphs again, and what repeats on the pages' edges goes.

A PDF holds lines, not paragraphs: a line that is as long as the others goes on in the next one. Words that were divided
at the end of a line are joined. The first and last lines of pages that say the same on most of them (up to numbers) are
page furniture; they are taken out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.reading.html import missing
from tunesmith.data.reading.values import Unusable, repaired

_EDGE_LINES = 2  # of a page, at its head and at its foot, that may be furniture
_FEWEST_PAGES = 3  # of which nothing can be said to repeat
_FULL = 0.75  # of the usual length: a shorter line ends its paragraph
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)
_SOFT_HYPHENS = "\u00ad\ufffe\x02"  # how pdfium writes the hyphen of a divided word
_DIVIDED = re.compile(rf"(\w+)([-‐{_SOFT_HYPHENS}])$")
_BEGINS_LOWER = re.compile(r"([^\W\d_]+)")
_NO_TITLE = re.compile(r"^(untitled|microsoft word|slide \d|powerpoint)|\.(docx?|pptx?|pdf|indd|tex|dvi|xlsx?)$", re.I)
_ENDS = (".", "!", "?", ":", ";", "”", '"', ")")


@dataclass(frozen=True)
class Pages:
    """The text of a PDF. `marks` says at which line of it (from 0) which page (from 1) is read; `furniture` counts the
    lines that were taken out, `scanned` names the pages that are a picture only."""

    title: str
    text: str
    marks: tuple[tuple[int, int], ...]
    furniture: int
    scanned: tuple[int, ...]


def read(path: Path) -> Pages:
    """Raises Unusable for a file that is encrypted, broken, or has no text."""
    try:
        import pypdfium2
    except ImportError:
        raise missing(path.name, "pypdfium2") from None
    try:
        file = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise _unreadable(str(error)) from None
    try:
        title = " ".join(repaired(file.get_metadata_value("Title")).split())
        pages, scanned = [], []
        for number in range(len(file)):
            page = file[number]
            text = page.get_textpage().get_text_bounded()
            pages.append([" ".join(line.split()) for line in repaired(text).replace("\r", "\n").split("\n")])
            if not text.strip() and any(page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3)):
                scanned.append(number + 1)
    except pypdfium2.PdfiumError as error:
        raise _unreadable(str(error)) from None
    finally:
        file.close()
    body, furniture = without_furniture([[line for line in page if line] for page in pages])
    if not any(body):
        reason = "scanned pages without text" if scanned else "no text in it"
        raise Unusable(reason, "let a program read the pictures (`ocrmypdf IN.pdf OUT.pdf`), and name what it writes")
    found = paragraphs(body)
    marks = tuple((2 * i, page) for i, (page, _) in enumerate(found))
    text = "\n\n".join(text for _, text in found)
    return Pages("" if _NO_TITLE.search(title) else title, text, marks, furniture, tuple(scanned))


def _unreadable(error: str) -> Unusable:
    if "password" in error.lower() or "security" in error.lower():
        return Unusable("encrypted", "save it without a password (`qpdf --decrypt IN.pdf OUT.pdf`), and name that file")
    return Unusable("not a readable PDF file", "copy or download it again, or print it to a new PDF")


def without_furniture(pages: list[list[str]]) -> tuple[list[list[str]], int]:
    """The lines of each page without those at its edges that stand on most pages, and how many these were."""
    edges = [{_alike(line) for line in _edge(page)} for page in pages]
    counts = Counter(line for edge in edges for line in edge)
    filled = sum(bool(page) for page in pages)
    repeated = {line for line, count in counts.items() if filled >= _FEWEST_PAGES and 2 * count > filled}
    kept = []
    for page in pages:
        begin, end = 0, len(page)
        while begin < min(end, _EDGE_LINES) and _alike(page[begin]) in repeated:
            begin += 1
        while end > max(begin, len(page) - _EDGE_LINES) and _alike(page[end - 1]) in repeated:
            end -= 1
        kept.append(page[begin:end])
    return kept, sum(map(len, pages)) - sum(map(len, kept))


def _edge(page: list[str]) -> list[str]:
    return [*page[:_EDGE_LINES], *page[-_EDGE_LINES:]]


def _alike(line: str) -> str:
    """The same for a header that differs in its page number only."""
    return _NUMBER.sub("0", line)


def paragraphs(pages: list[list[str]]) -> list[tuple[int, str]]:
    """The paragraphs, each with the page (from 1) that it begins on."""
    lengths = sorted(len(line) for page in pages for line in page)
    usual = lengths[9 * len(lengths) // 10]  # nine tenths are no longer
    words = set(re.findall(r"\w+[-‐]\w+", "\n".join(line for page in pages for line in page)))
    found: list[tuple[int, str]] = []
    goes_on = False
    for number, page in enumerate(pages, 1):
        for place, line in enumerate(page):
            begins_lower = bool((first := _BEGINS_LOWER.match(line)) and first[1][0].islower())
            if found and goes_on and (place or begins_lower):
                found[-1] = (found[-1][0], _joined(found[-1][1], line, words))
            else:
                found.append((number, line))
            goes_on = len(line) >= _FULL * usual or bool(_DIVIDED.search(line))
            if place == len(page) - 1:
                goes_on = goes_on and not line.endswith(_ENDS)
    return [(number, text.translate(dict.fromkeys(map(ord, _SOFT_HYPHENS)))) for number, text in found]


def _joined(text: str, line: str, hyphenated: Iterable[str]) -> str:
    """A line behind another one. The hyphen of a divided word goes, unless the word has one elsewhere too."""
    divided, begins = _DIVIDED.search(text), _BEGINS_LOWER.match(line)
    if not divided or not begins or not begins[1][0].islower():
        return f"{text} {line}"
    keeps = f"{divided[1]}-{begins[1]}" in hyphenated
    return (text if keeps else text[: divided.start(2)]) + line
