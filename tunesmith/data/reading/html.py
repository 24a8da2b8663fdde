"""Web pages as Markdown: headings, paragraphs, lists, tables and code stay; what surrounds the text goes.

That is navigation, scripts, styles, forms, and the page's own header and footer. Where the page says which part is its
main one, only that is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tunesmith.core.errors import ConfigError
from tunesmith.data.reading.values import Unusable

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_AROUND = """
    script style noscript template nav aside button input select textarea iframe object svg canvas audio video dialog
    menu footer head"""
_GONE = frozenset(_AROUND.split())
_ROLES = frozenset({"navigation", "banner", "contentinfo", "complementary", "search", "dialog"})
_MAIN = ("main", "[role=main]", "article")
_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_BLOCKS = """
    address article blockquote body center dd details div dl dt fieldset figcaption figure form header hgroup hr html li
    main ol p pre section summary table td th tr tbody thead tfoot ul"""
_DIVIDES = frozenset([*_BLOCKS.split(), *_HEADINGS])
_ANY_BLOCK = ",".join(sorted(_DIVIDES))
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_CHARSET_BYTES = 4096  # of the beginning, where a page names its encoding


def read(name: str, content: bytes) -> tuple[str, str]:
    """The title and the text of a page; raises Unusable for one that cannot be decoded or is nested without end."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise missing(name, "selectolax") from None
    page = LexborHTMLParser(_decoded(content))
    title = page.css_first("title")
    marked = [node for selector in _MAIN if len(nodes := page.css(selector)) == 1 for node in nodes]
    try:
        written = (("\n\n".join(_blocks(root))).strip() for root in [*marked, page.body or page.root] if root)
        text = next((text for text in written if text), "")
    except RecursionError:
        raise Unusable("nested too deeply", "its tags are not closed: save the page again, or as text") from None
    return " ".join(title.text().split()) if title else "", text


def missing(name: str, package: str) -> ConfigError:
    """What somebody is told who has a file that needs a package of the extra `documents`."""
    return ConfigError(
        f"{name} cannot be read: the package {package} is missing",
        "web pages, PDF and DOCX are read by packages that the plain install does not bring",
        "pip install 'tunesmith[documents]'",
    )


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        named = _CHARSET.search(content[:_CHARSET_BYTES])
        encoding = named[1].decode().lower() if named else ""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        return content.decode("cp1252" if encoding in ("iso-8859-1", "latin1", "ascii") else encoding)
    except (LookupError, UnicodeError):
        raise Unusable("not valid UTF-8", "save the page as UTF-8, or name its encoding in <meta charset>") from None


def _children(node: LexborNode) -> Iterator[LexborNode]:
    child = node.child
    while child is not None:
        if not _is_around(child):
            yield child
        child = child.next


def _is_around(node: LexborNode) -> bool:
    """Whether a part of the page is no text of it."""
    tag = node.tag or ""
    if tag.startswith("-"):
        return tag != "-text"
    given = node.attributes
    hidden = "hidden" in given or given.get("aria-hidden") == "true" or given.get("role") in _ROLES
    of_page = tag == "header" and node.parent is not None and node.parent.tag == "body"
    return tag in _GONE or hidden or of_page


def _blocks(node: LexborNode) -> Iterator[str]:
    """The blocks of Markdown that stand in a node, in their order."""
    line: list[str] = []
    for child in _children(node):
        if child.tag not in _DIVIDES and child.css_first(_ANY_BLOCK) is None:
            line.append(_inline(child))
            continue
        yield from _paragraph(line)
        line = []
        write = _WRITTEN.get(child.tag or "", _blocks)
        yield from write(child)
    yield from _paragraph(line)


def _paragraph(pieces: list[str]) -> Iterator[str]:
    text = "\n".join(" ".join(line.split()) for line in "".join(pieces).split("\n")).strip()
    if text:
        yield text


def _inline(node: LexborNode) -> str:
    if node.tag == "-text":
        return re.sub(r"\s+", " ", node.text(deep=False))
    if node.tag == "br":
        return "\n"
    text = "".join(map(_inline, _children(node)))
    return f"`{text}`" if node.tag in ("code", "kbd", "samp") and text.strip() else text


def _one_line(node: LexborNode) -> str:
    """All that stands in a node, as one line."""
    parts = (part if node.tag != "-text" else _inline(node) for part in _blocks(node))
    return " ".join(" ".join(parts).split())


def _heading(node: LexborNode) -> Iterator[str]:
    if text := _one_line(node):
        yield f"{_HEADINGS[node.tag or '']} {text}"


def _code(node: LexborNode) -> Iterator[str]:
    text = node.text().strip("\n")
    if text.strip():
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
        yield f"{fence}\n{text}\n{fence}"


def _list(node: LexborNode) -> Iterator[str]:
    lines = []
    for number, item in enumerate((child for child in _children(node) if child.tag == "li"), 1):
        mark = f"{number}. " if node.tag == "ol" else "- "
        text = "\n".join(_blocks(item))
        if text:
            lines.append(mark + text.replace("\n", "\n" + " " * len(mark)))
    if lines:
        yield "\n".join(lines)


def _table(node: LexborNode) -> Iterator[str]:
    rows = [[_one_line(cell) for cell in _children(row) if cell.tag in ("td", "th")] for row in node.css("tr")]
    rows = [row for row in rows if any(row)]
    if rows:
        yield table(rows)


def table(rows: list[list[str]]) -> str:
    """A Markdown table, the first row as its header."""
    width = max(map(len, rows))
    lines = [[cell.replace("|", "\\|") for cell in row] + [""] * (width - len(row)) for row in rows]
    lines.insert(1, ["---"] * width)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quote(node: LexborNode) -> Iterator[str]:
    text = "\n\n".join(_blocks(node))
    if text:
        yield "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


_WRITTEN: dict[str, Callable[[LexborNode], Iterator[str]]] = {
    **dict.fromkeys(_HEADINGS, _heading),
    "pre": _code,
    "ul": _list,
    "ol": _list,
    "table": _table,
    "blockquote": _quote,
}
