"""E-mail addresses, phone, card and bank account numbers: found by shape and checksum.

The recognisers would rather miss a number than take an order number, a date or a price for one, because in `replace`
mode a false find destroys data. Names and postal addresses have no shape and are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.answers import parse_json

Find = tuple[str, int, int]

# Length of an account number by country (the registry of ISO 13616).
_IBAN_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"""

_PLACEHOLDER = re.compile(r"\[(?:EMAIL|PHONE|CARD|IBAN)_\d+\]")

# First digits and lengths that issuers give out: they set a card apart from an epoch in milliseconds or an ISBN.
_ISSUED = re.compile(
    r"""
    4(?:\d{12}|\d{15}|\d{18})                                     # Visa
  | (?:5[1-5]|2[2-7]|35|6\d)\d{14}                                # Mastercard, JCB, Discover, UnionPay: 16
  | 3[47]\d{13} | (?:2131|1800)\d{11} | 3[0689]\d{12}             # American Express, old JCB, Diners
  | (?:5[0678]|6\d)\d{11,17}                                      # Maestro""",
    re.VERBOSE,
)

_NO_PHONE = re.compile(
    r"""
    (?:19|20)\d\d\D\d{1,2}\D\d{1,2}.*                             # a date, and what may follow it
  | \d{1,2}\D\d{1,2}\D(?:19|20)\d\d.*
  | (?:19|20)\d\d\D+(?:19|20)\d\d                                 # from one year to another
  | 0\d(?:\D0\d){3,4}                                            # small numbers in a row
  | .*\ 000                                                       # a round sum""",
    re.VERBOSE,
)


def _shape(body: str, before: str = "") -> re.Pattern[str]:
    """A pattern for a value that stands alone: as a part of a longer code, number or path it is something else."""
    return re.compile(
        rf"{before}(?<![\w#+/])(?<!\w-)(?<!\d\.)(?P<value>(?>{body}))(?!\w|-\d|\.\d)",
        re.VERBOSE | re.IGNORECASE | re.ASCII,
    )


def _digits(value: str) -> str:
    return "".join(c for c in value if c.isdigit())


def _is_card(value: str) -> bool:
    digits = _digits(value)
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return bool(_ISSUED.fullmatch(digits)) and sum(d // 10 + d % 10 for d in doubled) % 10 == 0


def _is_iban(value: str) -> bool:
    code = re.sub(r"[ -]", "", value).upper()
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


def _is_phone(low: int, high: int) -> Callable[[str], bool]:
    """Whether a value has so many digits, its extension aside, and is not plainly something else."""
    return lambda value: (
        low <= len(_digits(re.split("[xe]", value.lower())[0])) <= high and not _NO_PHONE.fullmatch(value)
    )


_EXTENSION = r"(?:\ ?(?:x|ext\.?)\ ?\d{1,5})?"
_FIRST = r"(?<!\d\ )"  # no later member of a list of numbers
_LABEL = r"""(?<![a-z])(?:phone|telephone|telefon|tel|mobile|cell|cellphone|fax|whatsapp|call\ (?:me|us)(?:\ back)?)
    (?:[_ ]?(?:number|no|nr))?(?:\ (?:is|at|on))?[\s"':=.]{1,4}"""

_DIGIT = re.compile(r"\d")
_PROMISING = re.compile(r"(?:\d\D*){7}")  # what all but addresses need; most texts end here

# Earlier recognisers win where two see the same characters. The check sees the matched value.
_RECOGNISERS: list[tuple[str, re.Pattern[str], Callable[[str], bool]]] = [
    (
        "email",
        re.compile(
            r"""(?<![\w.+%-])(?P<value>[\w+%][\w.+%-]{0,63}@(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24})
        (?![\w(]|[-.]\w|@)""",
            re.VERBOSE,
        ),
        lambda value: (
            not value.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"))  # icon@2x.png
            and not value.startswith("git@")
        ),
    ),
    (
        "iban",
        _shape("|".join(rf"{c[:2]}\d\d(?:[\ -]?[a-z0-9]){{{int(c[2:]) - 4}}}" for c in _IBAN_LENGTHS.split())),
        _is_iban,
    ),
    ("card", _shape(r"\d{13,19} | \d{4}(?P<gap>[\ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}"), _is_card),
    (
        "card",
        _shape(r"""\d{4}(?P<gap>[\ -])(?:
        \d{6}(?P=gap)\d{4,5} | (?:\d{4}(?P=gap)){2}(?:\d{1,3} | \d{4}(?P=gap)\d{1,3}))"""),
        _is_card,
    ),
    (
        "phone",
        _shape(rf"""\+[1-9]\d{{0,2}}(?!\.\d+(?![\d.]))[\ ./-]?(?:\(\d{{1,4}}\)\ ?)?\d{{1,12}}
        (?:[\ ./-]\d{{2,8}}){{0,5}}{_EXTENSION}"""),
        _is_phone(9, 15),
    ),
    ("phone", _shape(rf"00[1-9]\d{{0,2}}(?:[\ ./-]\d{{2,8}}){{2,5}}{_EXTENSION}"), _is_phone(11, 17)),
    (
        "phone",
        _shape(rf"(?:1[\ .-])?(?:[2-9]\d\d[\ .-]|\([2-9]\d\d\)\ ?)\d{{3}}[\ .-]\d{{4}}{_EXTENSION}", _FIRST),
        _is_phone(10, 11),
    ),  # North America
    (
        "phone",
        _shape(
            r"""(?:0[1-9](?:[\ .-]\d\d){4} | 0[1-9]\d{2,3}(?:[\ .-]\d\d){3}
      | (?:0[1-9]\d{0,4}[\ /-] | \(0[1-9]\d{0,4}\)\ ?)(?:\d{6,8} | \d{3,4}[\ -]\d{2,4}(?:[\ -]\d{2,4})?))
      (?!\ \d)""",
            _FIRST,
        ),
        _is_phone(10, 12),
    ),  # a trunk zero and groups: France, Belgium, Britain, Germany, Australia
    ("phone", _shape(r"07\d{9} | 0[67]\d{8} | 01[567]\d{8,9}", r"(?<!\.)"), _is_phone(10, 12)),  # mobiles in one piece
    ("phone", _shape(r"\(?\d(?:[\ ()./-]{0,2}\d){6,14}", _LABEL), _is_phone(7, 15)),
]


def find(text: str) -> list[Find]:
    """The kinds and places (start, end) of personal data in a text, in its order, without overlaps."""
    if "@" not in text and not (_DIGIT.search(text) and _PROMISING.search(text)):
        return []
    found: list[Find] = []
    for kind, shape, is_genuine in _RECOGNISERS:
        for match in shape.finditer(text):
            start, end = match.span("value")
            if is_genuine(match["value"]) and not any(start < e and s < end for _, s, e in found):
                found.append((kind, start, end))
    return sorted(found, key=lambda f: f[1])


def personal_data(rows: Iterable[Row], mode: Literal["replace", "drop", "report"]) -> Iterator[Kept | Dropped]:
    """Replaces personal data by placeholders, drops the rows that hold any, or only notes its kinds in them.

    A placeholder such as [EMAIL_1] stands for one value throughout the row, system message, tool calls and rejected
    answer included. A row goes also in `replace` mode where a placeholder would break an answer that is JSON.
    """
    for row in rows:
        if not any(map(find, _texts([row.messages, row.rejected]))):
            yield Kept(row)
            continue
        replaced, kinds = _replaced(row)
        if mode == "report":
            yield Kept(replace(row, changes=[*row.changes, *(f"contains: {kind}" for kind in kinds)]))
        elif mode == "drop":
            yield Dropped(row, "personal data", ", ".join(kinds))
        elif any(_is_json(old) and not _is_json(new) for old, new in zip(_answers(row), _answers(replaced))):
            yield Dropped(row, "personal data", f"{', '.join(kinds)}, as a number in a JSON answer, where no text fits")
        else:
            yield Kept(replace(replaced, changes=[*row.changes, *(f"replaced: {kind}" for kind in kinds)]))


def _replaced(row: Row) -> tuple[Row, list[str]]:
    """The row with placeholders, and the kinds that it held."""
    taken = set(_PLACEHOLDER.findall(f"{row.messages} {row.rejected}"))
    given: dict[tuple[str, str], str] = {}

    def placeholder(kind: str, value: str) -> str:
        same = value.casefold() if kind == "email" else re.sub(r"\W", "", value).upper()  # one number, written two ways
        if (kind, same) not in given:
            given[kind, same] = next(p for n in count(1) if (p := f"[{kind.upper()}_{n}]") not in taken)
            taken.add(given[kind, same])
        return given[kind, same]

    def cleaned(text: str) -> str:
        parts, end = [], 0
        for kind, start, stop in find(text):
            parts += [text[end:start], placeholder(kind, text[start:stop])]
            end = stop
        return "".join([*parts, text[end:]])

    messages = _with_texts(row.messages, cleaned)
    rejected = None if row.rejected is None else cleaned(row.rejected)
    return replace(row, messages=messages, rejected=rejected), sorted({kind for kind, _ in given})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_with_texts(item, change) for item in value]
    return {key: _with_texts(item, change) for key, item in value.items()} if isinstance(value, dict) else value


def _answers(row: Row) -> list[str]:
    return [m["content"] for m in row.messages if m["role"] == "assistant"]


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
