"""Word's DOCX files as Markdown: headings, paragraphs, lists and tables in their order. Page headers are left out."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.reading.html import missing, table
from tunesmith.data.reading.values import Unusable

if TYPE_CHECKING:
    from docx.table import Table
    from docx.text.paragraph import Paragraph

_HEADING = re.compile(r"heading ([1-9])$", re.IGNORECASE)
_OLE = b"\xd0\xcf\x11\xe0"  # of Word before 2007, and of files with a password
_MOST_BYTES = 1 << 30  # of the text and its pictures, unpacked


def read(path: Path) -> tuple[str, str]:
    """The title and the text of a document; raises Unusable for one that cannot be opened."""
    try:
        import docx
        from docx.opc.exceptions import PackageNotFoundError
        from docx.table import Table
        from lxml.etree import LxmlError
    except ImportError:
        raise missing(path.name, "python-docx") from None
    with open(path, "rb") as file:
        if file.read(len(_OLE)) == _OLE:
            raise Unusable(
                "encrypted, or of the old .doc format", "open it in Word and save it as .docx, without a password"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise Unusable("too large when unpacked", "take out its pictures, or save it as text")
        document = docx.Document(str(path))
        blocks = [
            _table(block) if isinstance(block, Table) else _paragraph(block) for block in document.iter_inner_content()
        ]
        title = document.core_properties.title
    except (PackageNotFoundError, zipfile.BadZipFile, LxmlError, KeyError, ValueError, OSError, AttributeError):
        raise Unusable("not a readable DOCX file", "copy it again, or open it in Word and save it anew") from None
    return " ".join(title.split()), "\n\n".join(_lists_joined(filter(None, blocks)))


def _paragraph(paragraph: Paragraph) -> str:
    text = str(paragraph.text).strip()
    name = (paragraph.style.name or "") if paragraph.style is not None else ""
    if not text:
        return ""
    if heading := _HEADING.match(name):
        return f"{'#' * min(int(heading[1]), 6)} {' '.join(text.split())}"
    if name.lower() == "title":
        return f"# {' '.join(text.split())}"
    properties = paragraph._p.pPr
    listed = name.lower().startswith("list") or (properties is not None and properties.numPr is not None)
    return "- " + text.replace("\n", "\n  ") if listed else text


def _table(found: Table) -> str:
    rows = []
    for row in found.rows:
        cells = {cell._tc: cell.text for cell in row.cells}  # a cell that spans columns comes once for each
        rows.append([" ".join(text.split()) for text in cells.values()])
    rows = [row for row in rows if any(row)]
    return table(rows) if rows else ""


def _lists_joined(blocks: Iterator[str]) -> Iterator[str]:
    """The items of a list as one block."""
    items: list[str] = []
    for block in blocks:
        if block.startswith("- "):
            items.append(block)
            continue
        if items:
            yield "\n".join(items)
            items = []
        yield block
    if items:
        yield "\n".join(items)
