"""Personal data and secrets in rows: found, and then replaced, dropped or only noted.

Most texts hold nothing of the kind. A scan for digits and a few signs says so at once, and what it cannot rule out is
looked at by those recognisers alone that may find something, around the places where they may. Names and postal
addresses have no shape: the project's own `find` may look for them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
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
from tunesmith.data.cleaning.recognisers import Find, Recogniser
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
    held = "\n".join(strings.of_row(row))
    taken = {surrogates.same(kind, value) for value, kind in values.items()}
    again = _recurring(values, held)
    held = held.casefold()
    given: dict[tuple[str, str], str] = {}

    def new_value(kind: str, value: str) -> str:
        known = surrogates.same(kind, value)
        known = next((one for one in given if surrogates.are_one(one, known)), known)
        if known not in given:
            for number in count(1 + sum(of_kind == known[0] for of_kind, _ in given)):
                new = stand_in(kind, value, number)
                if surrogates.same(kind, new) not in taken and new.casefold() not in held:
                    break
            taken.add(surrogates.same(kind, new))
            given[known] = new
        return surrogates.laid_out(kind, value, given[known])

    def cleaned(text: str) -> str:
        found = find_all(text)
        for match in again.finditer(text):
            start, stop = match.span()
            found = [one for one in found if one[1] < start or one[2] > stop or one[1:] == (start, stop)]
            _enter(found, (match.lastgroup or values[match[0]], start, stop))
        parts, end = [], 0
        for kind, start, stop in found:
            parts += [text[end:start], new_value(kind, text[start:stop])]
            end = stop
        return "".join([*parts, text[end:]])

    return strings.changed(row, cleaned)


def _recurring(values: dict[str, str], held: str) -> re.Pattern[str]:
    """A pattern for the values wherever they stand, and for numbers in other layouts, in a group of their kind's name;
    most rows hold none, and to compile it takes long."""
    long = sorted((value for value in values if len(value) >= _TELLING), key=len, reverse=True)
    groups = []
    for kind in surrogates.NUMBERS:
        of_kind = [value for value in long if values[value] == kind]
        rest = surrogates.squeezed(re.sub(_literal(of_kind), "|", held)) if of_kind else ""
        forms = {surrogates.writings(kind, value, rest) for value in of_kind} - {""}
        groups += [f"(?P<{kind}>{'|'.join(sorted(forms))})"] if forms else []
    if not groups:
        return re.compile(_literal(long))
    number = rf"(?<!\w)(?<!\d[.,])(?:\((?=\+?\d{{1,5}}\)))?(?:{'|'.join(groups)})(?!\w|[.,]\d)"
    return re.compile(rf"{_literal(long)}|(?i:{number})")


def _literal(values: list[str]) -> str:
    return rf"(?<!\w)(?:{'|'.join(map(re.escape, values)) or '(?!)'})(?!\w)"


def _answers(row: Row) -> list[str]:
    return [m["content"] for m in row.messages if m["role"] == "assistant"] + [row.rejected or ""]


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
