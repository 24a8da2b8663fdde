"""Subtitles (.srt, .vtt) as running text, without time stamps, tags and lines that roll from one cue into the next.

Captions that are made while somebody speaks show a line twice: as it comes, and above the next one. Where one cue
follows another at once, what the first one showed already is not read again.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.data.reading.values import Unusable

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
# <i>, </v>, <c.loud>, <00:01.500> and {\an8}; what stands between other brackets is said.
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|</>|<(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}>|\{\\[^{}]*\}")
_ROLLS_SECONDS = 0.3  # a cue that comes so soon after the one before may show its lines again
_PAUSE_SECONDS = 3.0  # after a longer one, a new paragraph begins
_LINE_WORDS = 60  # after so many, a new line begins where a sentence ends, or later where none does


@dataclass(frozen=True)
class Cue:
    """What is shown from second `begin` to `end`; `line` counts from 1, and is that of its times."""

    line: int
    begin: float
    end: float
    texts: tuple[str, ...]


def read(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text, and which line of it (from 0) begins with the cue at which line of the file; raises Unusable where no
    cue says anything."""
    found = list(cues(text))
    if not any(cue.texts for cue in found):
        raise Unusable(
            "no cues with text in it", "a cue is a line of times (00:00:01,000 --> 00:00:02,000) and lines of text"
        )
    lines: list[str] = []
    marks: list[tuple[int, int]] = []
    words: list[str] = []
    begins = 0
    paused = False
    before: Cue | None = None
    for cue, said in _once(found):
        if words and ((before and cue.begin - before.end > _PAUSE_SECONDS) or _is_full(words)):
            marks.append((len(lines), begins))
            lines.append(" ".join(words))
            paused = before is not None and cue.begin - before.end > _PAUSE_SECONDS
            lines += [""] * paused
            words = []
        begins = begins if words else cue.line
        words += said.split()
        before = cue
    if words:
        marks.append((len(lines), begins))
        lines.append(" ".join(words))
    return "\n".join(lines), tuple(marks)


def _is_full(words: list[str]) -> bool:
    return len(words) >= (_LINE_WORDS if words[-1].endswith((".", "!", "?", "。")) else 2 * _LINE_WORDS)


def cues(text: str) -> Iterator[Cue]:
    """The cues of a file; what stands outside of them (numbers, notes, styles) is no text."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        times = _TIMES.match(lines[at])
        at += 1
        if not times:
            continue
        number = at
        shown = []
        while at < len(lines) and lines[at].strip() and not _TIMES.match(lines[at]):
            shown.append(" ".join(html.unescape(_TAG.sub("", lines[at])).split()))
            at += 1
        if at < len(lines) and _TIMES.match(lines[at]) and shown and shown[-1].isdigit():
            shown.pop()  # the next cue's number, where no blank line stands before it
        yield Cue(number, _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:]), tuple(filter(None, shown)))


def _seconds(hours: str | None, minutes: str, seconds: str, parts: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(parts.ljust(3, "0")) / 1000


def _once(found: list[Cue]) -> Iterator[tuple[Cue, str]]:
    """What each cue adds to the one before it."""
    shown: tuple[str, ...] = ()
    end = float("-inf")
    for cue in found:
        before = shown if cue.begin - end <= _ROLLS_SECONDS else ()
        said = [text for text in cue.texts if text not in before]
        if said and before and said[0].startswith(before[-1] + " ") and len(cue.texts) == 1:
            said[0] = said[0][len(before[-1]) :]  # the line grew
        if said:
            yield cue, " ".join(said)
        if cue.texts:
            shown, end = cue.texts, cue.end
