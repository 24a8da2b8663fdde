"""Documents in passages: pieces of a length that one question can be asked about, each with its place and its titles.

Markdown is divided where its headings stand, and any text at its paragraphs; a paragraph that is too long between two
sentences. Code blocks and tables are never divided, however long they are. A section that is too short to stand alone
joins its neighbour, as long as both fit. Nothing is left out: without overlap, the passages of a document hold each of
its words once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tunesmith.core.records import content_id
from tunesmith.data.reading.documents import Document, Unit

LONGEST_WORDS = 300

_SHORT = 0.2  # of the longest: a section with fewer words joins its neighbour
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han and kana, written without spaces
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<keys>.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE_KEY = re.compile(r"^title:[ \t]*(?P<title>\S.*)$", re.MULTILINE)
_MARKS = re.compile(r"[*_`]+|\[([^\]]*)\]\([^)]*\)")
_WHOLE = {"fence", "code_block", "table_open", "html_block"}


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `id` is the hash of its text; `titles` are those of the document and of the headings above
    it, the outermost first; it begins at `line` of `source`, which counts what `unit` says."""

    text: str
    source: str
    line: int
    unit: Unit = "line"
    titles: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return content_id(self.text)

    @property
    def words(self) -> int:
        return count_words(self.text)

    @property
    def where(self) -> str:
        """Its place, as one says it: `guide.md:12`, or `manual.pdf, page 3`."""
        return f"{self.source}, page {self.line}" if self.unit == "page" else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class _Block:
    """Lines of the text that belong together, from line `begin` of it, which counts from 0."""

    text: str
    begin: int
    whole: bool = False  # never divided
    heading: bool = False

    @property
    def words(self) -> int:
        return count_words(self.text)


@dataclass
class _Section:
    """What stands under one heading, the heading's own line first."""

    titles: tuple[str, ...]
    blocks: list[_Block] = field(default_factory=list)

    @property
    def words(self) -> int:
        return sum(block.words for block in self.blocks)


def passages(document: Document, longest_words: int = LONGEST_WORDS, overlap: int = 0) -> Iterator[Passage]:
    """The passages of a document, in their order. None has more than `longest_words` and `overlap` words together, but
    where a long code block or table stands in it; each begins with up to `overlap` words that end the one before, whole
    sentences, where both are of one section."""
    assert 0 <= overlap < longest_words, f"an overlap of {overlap} words leaves no room in {longest_words}"
    for section in _joined(list(_sections(document)), longest_words):
        before = ""
        for piece in _pieces(section, longest_words):
            text = "\n\n".join(block.text for block in piece)
            yield Passage(
                f"{before}\n\n{text}" if before else text,
                document.source,
                document.place(piece[0].begin),
                document.unit,
                section.titles,
            )
            before = "" if piece[-1].whole or not overlap else _ending(piece[-1].text, overlap)


def count_words(text: str) -> int:
    """Words; of scripts that are written without spaces, characters."""
    return len(_WORD.findall(text))


def _sections(document: Document) -> Iterator[_Section]:
    """What stands between two headings; a text that is no Markdown is one section."""
    own = (document.title,) if document.title else ()
    if not document.markdown:
        paragraphs = list(_paragraphs(document.text, 0))
        if paragraphs:
            yield _Section(own, paragraphs)
        return
    body, skipped = document.text, 0
    if front := _FRONT_MATTER.match(body):
        body, skipped = body[front.end() :], front[0].count("\n")
        named = _TITLE_KEY.search(front["keys"])
        own = own or ((named["title"].strip("\"' "),) if named else ())
    section = _Section(own)
    levels: list[tuple[int, str]] = []
    for block, level in _markdown(body, skipped):
        if block.heading:
            levels = [(of, title) for of, title in levels if of < level]
            levels.append((level, _plain(block.text)))
            if section.blocks:
                yield section
            titles = tuple(title for _, title in levels)
            section = _Section(titles if titles[:1] == own else own + titles)
        section.blocks.append(block)
    if section.blocks:
        yield section


def _markdown(text: str, skipped: int) -> Iterator[tuple[_Block, int]]:
    """The blocks of a Markdown text, whose first line is line `skipped` of the document; headings with their level."""
    from markdown_it import MarkdownIt  # a twentieth of a second, which only documents need wait

    lines = text.split("\n")
    at = 0
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.level or token.map is None or token.nesting < 0:
            continue
        begin, end = token.map
        # Between blocks stands what the parser takes for none: definitions of links.
        yield from ((block, 0) for block in _paragraphs("\n".join(lines[at:begin]), skipped + at))
        stands = "\n".join(lines[begin:end]).rstrip()
        heading = token.type == "heading_open"
        if stands.strip():
            block = _Block(stands, skipped + begin, token.type in _WHOLE, heading)
            yield block, int(token.tag[1:]) if heading else 0
        at = end
    yield from ((block, 0) for block in _paragraphs("\n".join(lines[at:]), skipped + at))


def _paragraphs(text: str, skipped: int) -> Iterator[_Block]:
    """What blank lines part."""
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""]):
        if line.strip():
            lines.append(line)
        elif lines:
            yield _Block("\n".join(lines), skipped + number - len(lines))
            lines = []


def _plain(heading: str) -> str:
    """A heading's text, without the marks of Markdown."""
    first = heading.strip().split("\n")[0].lstrip("#").rstrip("# \t")
    return " ".join(_MARKS.sub(r"\1", first).split())


def _joined(sections: list[_Section], longest: int) -> Iterator[_Section]:
    """Sections of which none is a heading alone, and none short that could be joined with a neighbour."""
    waiting: _Section | None = None
    for section in _with_text(sections):
        both = waiting.words + section.words if waiting else 0
        if waiting and both <= longest and min(waiting.words, section.words) < _SHORT * longest:
            waiting = _together(waiting, section)
            continue
        if waiting:
            yield waiting
        waiting = section
    if waiting:
        yield waiting


def _with_text(sections: list[_Section]) -> Iterator[_Section]:
    """A heading with nothing under it goes with the section that follows, if there is one."""
    above: _Section | None = None
    for section in sections:
        section = _together(above, section) if above else section
        above = section if all(block.heading for block in section.blocks) else None
        if not above:
            yield section
    if above:
        yield above


def _together(some: _Section, more: _Section) -> _Section:
    length = next(
        (i for i, (a, b) in enumerate(zip(some.titles, more.titles)) if a != b), min(len(some.titles), len(more.titles))
    )
    return _Section(some.titles[:length], some.blocks + more.blocks)


def _fit(some: int, more: int, longest: int) -> bool:
    """Whether pieces with so many words are one: where one of them is short, and the other leaves room for it, or is
    too long already, as a table can be."""
    return min(some, more) < _SHORT * longest and (some + more <= longest or max(some, more) > longest)


def _pieces(section: _Section, longest: int) -> Iterator[list[_Block]]:
    """The section's blocks in as few pieces as their lengths allow, and of nearly one length."""
    aim = section.words / max(math.ceil(section.words / longest), 1)
    piece: list[_Block] = []
    words = 0
    for unit in _units(section, longest):
        more = sum(block.words for block in unit)
        if piece and (words + more > longest or words >= aim) and not _fit(words, more, longest):
            yield piece
            piece, words = [], 0
        piece += unit
        words += more
    if piece:
        yield piece


def _units(section: _Section, longest: int) -> Iterator[list[_Block]]:
    """The blocks, divided where they are too long; a heading stays with what it stands above."""
    held: list[_Block] = []
    for block in section.blocks:
        above = sum(one.words for one in held)
        if block.heading and above + block.words <= longest // 2:
            held.append(block)
            continue
        for part in _divided(block, longest - above):
            yield [*held, part]
            held = []
    if held:
        yield held


def _divided(block: _Block, longest: int) -> Iterator[_Block]:
    """The block, or parts of it that are short enough, and of nearly one length: lines or sentences, else as many words
    as fit."""
    if block.whole or block.words <= longest:
        yield block
        return
    aim = block.words / math.ceil(block.words / longest)
    begin = end = words = 0
    for start, stop in _sentences(block.text, longest):
        length = count_words(block.text[start:stop])
        if words and (words + length > longest or words >= aim):
            yield _part(block, begin, end)
            begin, words = start, 0
        words += length
        end = stop
    yield _part(block, begin, end)


def _part(block: _Block, begin: int, end: int) -> _Block:
    text = block.text[begin:end]
    lead = len(text) - len(text.lstrip())
    return _Block(text.strip(), block.begin + block.text.count("\n", 0, begin + lead))


def _sentences(text: str, longest: int) -> Iterator[tuple[int, int]]:
    """From where to where each sentence or line stands; one that is too long in runs of as many words as fit."""
    ends = [match.end() for match in _SENTENCE_ENDS.finditer(text)]
    start = 0
    for end in [*ends, len(text)]:
        starts = [start + match.start() for match in _WORD.finditer(text[start:end])][::longest]
        yield from zip(starts, [*starts[1:], end])
        start = end


def _ending(text: str, overlap: int) -> str:
    """The last whole sentences of a text, as many as `overlap` words hold."""
    at = len(text)
    words = 0
    for start, stop in reversed(list(_sentences(text, overlap + 1))):
        words += count_words(text[start:stop])
        if words > overlap:
            break
        at = start
    return text[at:].strip()
