"""Texts as they were meant: no mojibake, no stray controls, nothing that nobody sees and every tokeniser does.

Only what is broken beyond doubt is touched. Quotes stay curled or straight as they are, HTML entities and full-width
letters stay, code in backticks stays to the last character. In a JSON text the values are repaired one by one, so that
it stays valid and its keys stay the same. What scripts and emoji need stays: joiners in Persian, Hindi and in families
of emoji, Mongolian's vowel separator, breaks between the words of Thai, marks of direction beside Hebrew and Arabic.

Most texts are plain ASCII, of which a scan says at once that there is nothing to do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import orjson

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data import strings
from tunesmith.data.cleaning.answers import parse_json

_CONTROL_BYTES = bytes({*range(32), 127} - {*b"\t\n\r"})

_JOINING = (
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1b00-\u1b7f\ua840-\ua87f\ua980-\ua9df\U00010a00-\U00011fff"
)
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Thai, Lao, Tibetan, Khmer, ...
_MONGOLIAN = "\u1820-\u18aa"  # a vowel at a word's end stands apart
_LEFTWARD = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_PICTURES = "\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff"
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

_INVISIBLE = re.compile(
    rf"""
    \u180e(?<![{_MONGOLIAN}]\u180e)
  | [\u00ad\u2060-\u2064\u206a-\u206f\u3164\uffa0\ufeff\ufff9-\ufffb]
  | \u200b(?<![{_UNSPACED}]\u200b)(?![{_UNSPACED}])
  | \u200c(?<![{_JOINING}]\u200c)
  | \u200d(?<![{_JOINING}]\u200d)(?!(?:(?<=[{_PICTURES}]\u200d)|(?<=[{_PICTURES}]\ufe0f\u200d))[{_PICTURES}])
  | [\ufe00-\ufe0f](?<![{_PICTURES}{_IDEOGRAPHS}{_JOINING}0-9\#*].)
  | [\U000e0100-\U000e01ef](?<![{_IDEOGRAPHS}].)
  | (?P<flag>\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f) | [\U000e0000-\U000e007f]+""",
    re.VERBOSE,
)
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_END = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_SUSPECT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef]"
)
_FOREIGN_RUN = re.compile(r"[^\x00-\x7f]{2}|[ÂÃ] ")  # mojibake has one, in any encoding

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_JSON_STRING = re.compile(r'("(?:[^"\\]|\\.)*+")(\s*:)?', re.DOTALL)
_JSON_BEGINS = ("{", "[", '"')


def mend(rows: Iterable[Row]) -> Iterator[Kept | Dropped]:
    """Repairs the texts of rows, tool calls and rejected answers included, and notes each kind of repair."""
    for row in rows:
        if not any(map(_needs_it, strings.of_row(row))):
            yield Kept(row)
            continue
        notes: dict[str, None] = {}
        mended = strings.changed(row, lambda text: repaired(text, notes))  # noqa: B023 (called at once)
        yield Kept(replace(mended, changes=[*row.changes, *(f"repaired: {kind}" for kind in notes)]) if notes else row)


def repaired(text: str, notes: dict[str, None]) -> str:
    """The text as it was meant; kinds of repair are entered in `notes`."""
    if not _needs_it(text):
        return text
    if text.lstrip().startswith(_JSON_BEGINS):
        try:
            parse_json(text)
        except ValueError:
            pass
        else:
            return _JSON_STRING.sub(lambda match: match[0] if match[2] else _value_repaired(match[1], notes), text)
    return _repaired(text, notes)


def _value_repaired(literal: str, notes: dict[str, None]) -> str:
    """A JSON string that is no key; as it stood, where there is nothing to do."""
    value = parse_json(literal)
    new = _repaired(value, notes) if _needs_it(value) else value
    return literal if new == value else orjson.dumps(new).decode()


def _repaired(text: str, notes: dict[str, None]) -> str:
    for kind, repair in _REPAIRS.items():
        parts = _CODE.split(text) if "`" in text else [text]
        parts[::2] = map(repair, parts[::2])  # the others are code
        new = "".join(parts)
        if new != text:
            notes[kind] = None
            text = new
    return text


def _needs_it(text: str) -> bool:
    """Whether there may be something to repair."""
    if "\\u" in text and text.lstrip().startswith(_JSON_BEGINS):
        return True  # JSON may write any character so
    if text.isascii():
        return not text.isprintable() and len(text.encode().translate(None, _CONTROL_BYTES)) != len(text)
    return bool(
        _SUSPECT.search(text)
        or not unicodedata.is_normalized("NFC", text)
        or (_FOREIGN_RUN.search(text) and _is_mojibake(text))
    )


def _is_mojibake(text: str) -> bool:
    from ftfy import badness  # a tenth of a second, which ASCII texts need not wait

    return badness.is_bad(text)


def _decoded(text: str) -> str:
    """Text that was read in the wrong encoding, read in the right one, line by line."""
    if not (_FOREIGN_RUN.search(text) and _is_mojibake(text)):
        return text
    import ftfy

    only_encoding = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        replace_lossy_sequences=False,  # by a question mark, and what was lost stays lost
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
    )
    return ftfy.fix_text(text, only_encoding)


def _without_invisible(text: str) -> str:
    directed = text if _LEFTWARD.search(text) else _DIRECTION.sub("", text)
    return _INVISIBLE.sub(lambda match: match["flag"] or "", directed)


_REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": _decoded,
    "byte order mark": lambda text: text.removeprefix("\ufeff"),
    "invisible characters": _without_invisible,
    "control characters": lambda text: _CONTROL.sub("", _LINE_END.sub("\n", text)),
    "Unicode form": lambda text: unicodedata.normalize("NFC", text),
}
