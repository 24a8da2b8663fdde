"""Personal data and secrets in rows: found, and then replaced, dropped or only noted.

Most texts hold nothing of the kind. A scan for digits and a few signs says so at once, and what it cannot rule out is
looked at by those recognisers alone that may find something, around the places where they may. Names and postal
addresses have no shape: the project's own `find` may look for them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Literal

import orjson

from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data import plugin, strings
from tunesmith.data.cleaning import recognisers, surrogates
from tunesmith.data.cleaning.answers import parse_json
from tunesmith.data.cleaning.recognisers import Find, Recogniser, digits_of
from tunesmith.data.reading.values import NO_DIGIT

FindAll = Callable[[str], list[Find]]

_NO_MARK = bytes(set(range(256)) - set(b"0123456789@!$%*+#^~=:_"))
_BEGINNINGS = (
    *("AKIA", "ASIA", "AIza", "GOCSPX-", "ya29.", "SG.", "dapi", "sk-", "xai-", "glpat-", "pypi-AgE", "xapp-"),
    *("xox", "sq0", ":AA", "hooks.slack.com/"),
)
_UNDERSCORED = (
    *("gho_", "ghp_", "ghr_", "ghs_", "ghu_", "_pat_", "k_live_", "k_test_", "whsec_", "hf_", "npm_", "gsk_", "r8_"),
    *("sbp_", "_api_", "_v1_", "shpat_", "shpca_", "shppa_", "shpss_"),
)
_TOKENS = ("secret", "token", "key", "credential", "bearer", "basic")

_ODD = re.compile("[\u00a0\u1680\u2000-\u200a\u2010-\u2013\u202f\u205f\u3000]")  # spaces and dashes beside ASCII's

# Where a number of each group may stand, found at the speed of a scan, and how far the whole reaches around it.
_RUN = re.compile(r"\d(?:[ ()+./-]{0,3}\d){6}", re.ASCII)
_ESCAPED = re.compile(r"\\(?:[bfnrt]|u[\da-fA-F]{4}|\\)")  # of JSON: what stands behind begins a word
_DRAWN = {begin: re.compile(begin + r"[a-z\d]{12}", re.ASCII) for begin in ("AC", "SK", "key-")}  # common beginnings
_CODED = re.compile(r"\d\d(?<=[A-Za-z]{2}\d\d)[ -]?[A-Za-z\d]{4}", re.ASCII)
_DOTTED = re.compile(r"\.\d{1,3}\.\d{1,3}\.", re.ASCII)
_COLONS = re.compile(r":[\da-fA-F]{0,4}:", re.ASCII)
_PASSWORD = re.compile("p(?:ass[cpw]|wd)")
_TOKEN = re.compile("|".join(_TOKENS))
_RECURRING = 1_000  # characters of a label or a system message, which may stand in row after row
_SHOWN = 4  # items of a list, where an error tells what it is
_TELLING = 6  # characters of a value that is replaced also where nothing but the value tells what it is
_INNER = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)  # from a letter or digit to another
_FEWEST = 7  # digits of a number that is replaced in any layout
_TOLD = 4  # characters of a number that tell whether it may be one of the row's
_START = re.compile(rf"(?<!\w)(?=\d|[A-Za-z]{{2}}{surrogates.BETWEEN}\d\d)")
_PIECE = re.compile(rf"{surrogates.BETWEEN}(\w+)")
_LAID_OUT = re.compile(rf"\(?\+?(?:\d|[A-Za-z]{{2}}{surrogates.BETWEEN}\d\d)\w*+(?:{surrogates.BETWEEN}\w++)*+")
_PART = re.compile(r"(?<=\d[.,])|(?=[.,]\d)")
_DECIMAL = re.compile(r"\d\.\d+")
_KIND = re.compile(r"[^\W\d_][\w -]{0,30}")


def personal_data(
    rows: Iterable[Row], mode: Literal["replace", "surrogate", "drop", "report"], finder: Path | None = None
) -> Iterator[Kept | Dropped]:
    """Replaces personal data by placeholders or by surrogates, drops the rows that hold any, or only notes its kinds.

    A placeholder such as [EMAIL_1], or a surrogate such as user1@example.com, stands for one value throughout the row,
    system message, tools, tool calls and rejected answer included; for a number of a tool call, a placeholder stands as
    text. A row goes also where it would break an answer that is JSON. `finder` is a Python file with the project's own
    `find`; ConfigError for one that is of no use.
    """
    find_all: FindAll = partial(_also, _own(finder, finder.stat().st_mtime_ns)) if finder else find
    for row in rows:
        values = _values(row, find_all)
        kinds = sorted({*values.values()})
        if not values:
            yield Kept(row)
        elif mode == "report":
            yield Kept(replace(row, changes=[*row.changes, *(f"contains: {kind}" for kind in kinds)]))
        elif mode == "drop":
            yield Dropped(row, "personal data", ", ".join(kinds))
        else:
            stand_in = surrogates.surrogate if mode == "surrogate" else surrogates.placeholder
            replaced = _replaced(row, find_all, values, stand_in)
            if any(_is_json(old) and not _is_json(new) for old, new in zip(_answers(row), _answers(replaced))):
                told = f"{', '.join(kinds)}, as a number in a JSON answer, where no text fits"
                yield Dropped(row, "personal data", told)
            else:
                yield Kept(replace(replaced, changes=[*row.changes, *(f"replaced: {kind}" for kind in kinds)]))


def find(text: str) -> list[Find]:
    """The kinds and places (start, end) of personal data in a text, in its order, without overlaps.

    Of two that see the same characters, the one that is tried first wins."""
    return list(_found_once(text) if len(text) <= _RECURRING else _found(text))


def _found(text: str) -> tuple[Find, ...]:
    found: list[Find] = []
    if "\\" in text:
        text = _ESCAPED.sub(lambda match: match[0] if match[0] == r"\\" else "\n" * len(match[0]), text)
    marks = text.encode("utf-8", "surrogatepass").translate(None, _NO_MARK)
    if marks and not text.isascii():
        text = _ODD.sub(lambda match: " " if match[0].isspace() else "-", text)
    for recogniser, start, stop in _worth_trying(text, marks) if marks or _needs_no_mark(text) else ():
        for match in recogniser.shape.finditer(text, start, stop):
            value = match["value"]
            if value and recogniser.is_genuine(value):
                _enter(found, (recogniser.kind, *match.span("value")))
    return tuple(found)


def _needs_no_mark(text: str) -> bool:
    return "[at]" in text or "(at)" in text or "PRIVATE KEY-" in text


_found_once = lru_cache(maxsize=1024)(_found)


def _enter(found: list[Find], new: Find) -> None:
    """Into its place, if it is free."""
    at = bisect_right(found, new[1], key=itemgetter(1))
    if (at == 0 or found[at - 1][2] <= new[1]) and (at == len(found) or new[2] <= found[at][1]):
        found.insert(at, new)


def _worth_trying(text: str, marks: bytes) -> Iterator[tuple[Recogniser, int, int]]:
    """The recognisers that may find something, and the stretches of the text where they may, as far as can be said
    without looking for it; `marks` are the text's digits and signs."""
    digits = len(marks.translate(None, NO_DIGIT))
    everywhere = [(0, len(text))]
    if "-BEGIN" in text:
        yield from _tried(recognisers.PEM, everywhere)
    if digits or b"_" in marks:
        if "eyJ" in text:
            yield from _tried(recognisers.JWTS, everywhere)
        if _has_any(text, _BEGINNINGS) or (b"_" in marks and _has_any(text, _UNDERSCORED)):
            yield from _tried(recognisers.PREFIXED, everywhere)
    if b"@" in marks and (":/" in text or ":\\/" in text):
        yield from _tried(recognisers.LOGINS, everywhere)
    if digits and b"=" in marks:
        yield from _tried(recognisers.PARAMETERS, everywhere)
    lower = text.lower()
    if len(lower) == len(text):  # so that places are the same; İ alone becomes longer
        if "pass" in lower or "pwd" in lower:
            yield from _tried(recognisers.PASSWORDS, _around(lower, _PASSWORD, 0, 240))
        if digits and _has_any(lower, _TOKENS):
            yield from _tried(recognisers.TOKENS, _around(lower, _TOKEN, 16, 540))
    if b"@" in marks:
        yield from _tried(recognisers.ADDRESSES, everywhere)
    if "[at]" in text or "(at)" in text:
        yield from _tried(recognisers.SPELT_OUT, everywhere)
    if digits >= 7:
        for begin, sign in _DRAWN.items():
            if begin in text:
                yield from _tried(recognisers.PREFIXED, _around(text, sign, 0, 24))
        yield from _tried(recognisers.IBANS, _around(text, _CODED, 2, 48))
        yield from _tried(recognisers.NUMBERS, _around(text, _RUN, 64, 64))
    if digits >= 4:
        yield from _tried(recognisers.HOSTS_4, _around(text, _DOTTED, 24, 8))
    if digits and marks.count(b":") >= 2:
        yield from _tried(recognisers.HOSTS_6, _around(text, _COLONS, 40, 40))


def _has_any(text: str, signs: Sequence[str]) -> bool:
    return any(map(text.__contains__, signs))


def _around(text: str, sign: re.Pattern[str], before: int, after: int) -> list[tuple[int, int]]:
    """The stretches of a text around the places where a sign stands."""
    stretches: list[tuple[int, int]] = []
    for match in sign.finditer(text):
        start, stop = max(0, match.start() - before), min(len(text), match.end() + after)
        if stretches and start <= stretches[-1][1]:
            stretches[-1] = stretches[-1][0], stop
        else:
            stretches.append((start, stop))
    return stretches


def _tried(group: list[Recogniser], stretches: list[tuple[int, int]]) -> Iterator[tuple[Recogniser, int, int]]:
    for recogniser in group if stretches else ():
        for start, stop in stretches:
            yield recogniser, start, stop


@lru_cache(maxsize=4)
def _own(path: Path, changed_ns: int) -> FindAll:
    """The project's own `find`, read once a process: what it loads may be large."""
    function = plugin.function(path, "find", "text", "a list of (kind, start, end)")

    def found(text: str) -> list[Find]:
        try:
            given = function(text)
        except plugin.Fault as fault:
            raise _useless(path, str(fault)) from None
        if not isinstance(given, list | tuple) or not all(_is_find(item, len(text)) for item in given):
            raise _useless(path, f"it returned {_form(given)} for a text of {len(text)} characters")
        return [(str(kind), start, end) for kind, start, end in given]

    return found


def _form(given: object) -> str:
    """What it is, without the texts in it: they may be what nobody should read here."""
    if isinstance(given, str):
        return "a text"
    if isinstance(given, list | tuple):
        its = ", ".join(map(_form, given[:_SHOWN])) + (", ..." if len(given) > _SHOWN else "")
        return f"({its})" if isinstance(given, tuple) else f"[{its}]"
    return str(given) if isinstance(given, int | float | None) else f"a {type(given).__name__}"


def _is_find(item: object, length: int) -> bool:
    match item:
        case (str(kind), int(start), int(end)):
            return bool(_KIND.fullmatch(kind)) and 0 <= start < end <= length
    return False


def _useless(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"data.clean.find_personal: `find` of {path.name} cannot be used",
        why,
        f"mend {path}: `find(text)` returns a list of (kind, start, end), the kind a word, the places within the text",
    )


def _also(own: FindAll, text: str) -> list[Find]:
    """What is found by shape, and by the project's own `find` where nothing was: of an address that holds a phone
    number, what stands before and after it."""
    found = find(text)
    for kind, start, end in own(text):
        taken = [(a, b) for _, a, b in found if a < end and b > start]
        for free_start, free_end in zip([start, *(b for _, b in taken)], [*(a for a, _ in taken), end]):
            inner = _INNER.search(text[:free_end], free_start)
            if inner:
                _enter(found, (kind, *inner.span()))
    return found


def _values(row: Row, find_all: FindAll) -> dict[str, str]:
    """What is found in a row, and its kind. In the JSON of a tool call, an argument's name may tell what it is."""
    calls = [orjson.dumps(m["tool_calls"]).decode() for m in row.messages if m.get("tool_calls")]
    return {text[i:j]: kind for text in [*strings.of_row(row), *calls] for kind, i, j in find_all(text)}


def _replaced(
    row: Row,
    find_all: FindAll,
    values: dict[str, str],
    stand_in: Callable[[str, str, int], str],
) -> Row:
    """The row with another value for each that was found, wherever it stands: the same for the same, and none that the
    row held before."""
    held = "\n".join(strings.of_row(row)).casefold()
    taken = {surrogates.same(kind, value) for value, kind in values.items()}
    again = _recurring(values)
    given: dict[tuple[str, ...], str] = {}
    counted: Counter[str] = Counter()

    def new_value(kind: str, value: str) -> str:
        group, more = surrogates.same(kind, value)[0], surrogates.extension(kind, value)
        known = [given[key] for form in surrogates.read(kind, value) if (key := (group, form, more)) in given]
        if known:
            return surrogates.laid_out(kind, value, known[0])
        for number in count(counted[group] + 1):
            new = stand_in(kind, value, number)
            if surrogates.same(kind, new) not in taken and new.casefold() not in held:
                break
        counted[group] += 1
        taken.add(surrogates.same(kind, new))
        for form in surrogates.writings(kind, value):
            given.setdefault((group, form, more), new)
        return surrogates.laid_out(kind, value, new)

    def cleaned(text: str) -> str:
        parts, end = [], 0
        for kind, start, stop in sorted([*find_all(text), *again(text)], key=lambda one: (one[1], -one[2])):
            if start >= end:
                parts += [text[end:start], new_value(kind, text[start:stop])]
                end = stop
        return "".join([*parts, text[end:]])

    return strings.changed(row, cleaned)


def _recurring(values: dict[str, str]) -> Callable[[str], list[Find]]:
    """Finds the values wherever they stand, and numbers in other layouts too."""
    told = {v: kind for v, kind in values.items() if kind in surrogates.NUMBERS and len(digits_of(v)) >= _FEWEST}
    numbers = {v: kind for v, kind in told.items() if _LAID_OUT.fullmatch(v)}
    forms = {form: kind for v, kind in numbers.items() for form in surrogates.writings(kind, v)}
    others = sorted((v for v in values if v not in numbers and len(v) >= _TELLING), key=len, reverse=True)
    literal = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, others))})(?!\w)")

    def again(text: str) -> list[Find]:
        found = [(values[match[0]], *match.span()) for match in literal.finditer(text)] if others else []
        return [*found, *_written(text, numbers, forms)] if numbers else found

    return again


def _written(text: str, numbers: dict[str, str], forms: dict[str, str]) -> Iterator[Find]:
    """Numbers in any layout: from each start, pieces are joined as long as a number may begin so."""
    begins = {form[:_TOLD] for form in forms}
    longest = max(map(len, [*numbers, *forms]))
    end = 0
    for first in _START.finditer(text):
        start = at = first.start()
        if start < end:
            continue
        found = None
        number = "+" if text[start - 1 : start] == "+" else ""
        while len(number) <= longest and (piece := _PIECE.match(text, at)):
            number += piece[1]
            at = piece.end()
            abroad = number.startswith(("+", "00"))
            if not abroad and len(number) >= _TOLD and number[:_TOLD].upper() not in begins:
                break
            found = _number_at(text, start, at, number, numbers, forms) or found
        if found:
            yield found
            end = found[2]


def _number_at(
    text: str, start: int, stop: int, number: str, numbers: dict[str, str], forms: dict[str, str]
) -> Find | None:
    """What a number is, with the sign and the parenthesis before it; a part of another number is none, unless it stands
    there as it was found."""
    kind = next((forms[form] for form in surrogates.readings(number) if form in forms), None)
    if kind and not (_PART.match(text, start) or _PART.match(text, stop) or _DECIMAL.fullmatch(text, start, stop)):
        start -= number.startswith("+")
        opened = text[start - 1 : start] == "(" and text.count(")", start, stop) > text.count("(", start, stop)
        return kind, start - opened, stop
    return (numbers[text[start:stop]], start, stop) if text[start:stop] in numbers else None


def _answers(row: Row) -> list[str]:
    return [m["content"] for m in row.messages if m["role"] == "assistant"] + [row.rejected or ""]


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
