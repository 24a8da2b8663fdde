"""What stands in for personal data: a placeholder of its kind, or a value of the same kind and layout that is nobody's.

Numbers come from ranges that are kept for examples and fiction where there is one of that form, and from ranges that
are given to nobody elsewhere; they keep their separators and pass their checksum. Secrets keep their beginning, their
length and the kind of each character; what they become follows from their number in the row alone, never from what they
were.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase, digits

from tunesmith.data.cleaning.recognisers import KEY_BEGINS, digits_of, iban_rest, luhn_rest

_SECRET = ("secret", "key", "jwt")
_SHORT = 8  # letters and digits; there are too few secrets that have less
_MOST = 10_000  # values of one kind; a code without digits has no others at all

_CARDS = [  # how an issuer's cards begin, and how its test cards do
    (r"4", "400000"), (r"5[1-5]|2[2-7]", "555555"), (r"3[47]", "378282"), (r"35", "356600"), (r"3[0689]", "305693"),
    (r"62", "620000"), (r"6011|6[45]", "601111"), (r"5|6", "675900"), (r"", "400000"),
]  # fmt: skip

# Numbers for drama and examples: country code and national number, what is kept, and how many digits are free.
_FICTIONAL = [
    (r"((?:\+?1)?[2-9]\d\d)\d{7}", "55501", 2),  # North America: 555-0100 to 555-0199 of every area
    (r"()\d{7}", "55501", 2),
    (r"(\+440?|0)7\d{9}", "7700900", 3),  # United Kingdom, Ofcom
    (r"(\+440?|0)20\d{8}", "2079460", 3),
    (r"(\+440?|0)1\d{9}", "1632960", 3),
    (r"(\+330?|0)[67]\d{8}", "63998", 4),  # France, Arcep
    (r"(\+330?|0)[1-59]\d{8}", "19900", 4),
    (r"(\+490?|0)30\d{8}", "3023125", 3),  # Germany, Bundesnetzagentur
]
NUMBERS = ("card", "iban", "phone", "ssn")
_NATIONAL = 9  # digits of a phone number that tell it from others without the code of its country
_COUNTRY = re.compile(r"[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|\d{3}")
BETWEEN = "[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000().\u2010-\u2013/-]{0,3}"
_EXTENSION = re.compile(r"\ ?(?:x|ext).*", re.IGNORECASE)
_FIXED = re.compile(r"(-----[^-]+-----|\\.)")  # of a PEM block: its head and foot, and escaped ends of lines


def same(kind: str, value: str) -> tuple[str, str]:
    """Equal for a value that is written in two ways, and for a secret that is recognised in two."""
    if kind in _SECRET:
        return "secret", value
    if kind == "phone":
        return kind, re.sub(r"\W", "", value.replace("(0)", "")).upper().lstrip("0")
    return kind, re.sub(r"\W", "", value).upper() if kind in NUMBERS else value.casefold()


def readings(number: str) -> list[str]:
    """What a number may be, without what stands between its digits: itself, or a phone number with the code of its
    country, or one that is known without it, as *2125550147."""
    number = re.sub("^00", "+", number.upper())
    country = _COUNTRY.match(number, 1) if number.startswith("+") else None
    if not country:
        return [number]
    national = number[country.end() :].lstrip("0")
    return [f"+{country[0]}{national}", f"*{national}"]


def read(kind: str, value: str) -> list[str]:
    """The `readings` of a phone number that was found, its extension aside; of anything else its one form."""
    bare = re.sub(r"[^\d+]", "", _EXTENSION.sub("", value))
    return readings(bare) if kind == "phone" else [same(kind, value)[1]]


def writings(kind: str, value: str) -> list[str]:
    """All readings in which a value may be met; a phone number with and without the code of its country, where it
    shows one, and with any, where it does not."""
    forms = read(kind, value)[:1]
    if kind != "phone":
        return forms
    number, national = forms[0], read(kind, value)[-1].lstrip("*0")
    if number.startswith("+"):
        forms.append(number[1:])
    if len(national) < _NATIONAL:
        return forms
    if number.startswith("+"):
        return [*forms, national] if number.startswith("+1") else [*forms, national, f"0{national}"]
    forms += [national, f"*{national}"]
    if re.fullmatch(r"1[2-9]\d{9}", number):  # of North America, perhaps
        forms += [f"+{number}", number[1:]]
    elif re.fullmatch(r"[2-9]\d{9}", number):
        forms.append(f"1{number}")
    return forms


def extension(kind: str, value: str) -> str:
    match = _EXTENSION.search(value) if kind == "phone" else None
    return match[0].casefold() if match else ""


def placeholder(kind: str, value: str, number: int) -> str:
    return f"[{re.sub(r'[^A-Z0-9]', '_', kind.upper())}_{number}]"


def surrogate(kind: str, value: str, number: int) -> str:
    """Another value of the kind, for each number another one; a placeholder for kinds of the project's own, and where
    there are no more others of the value's form."""
    return _MADE[kind](value, number) if kind in _MADE and number < _MOST else placeholder(kind, value, number)


def laid_out(kind: str, value: str, new: str) -> str:
    """The surrogate of a number as this writing of the number has it, where both are of one length."""
    characters = "".join(filter(str.isalnum, new))
    fits = kind in NUMBERS and not new.startswith("[") and len(characters) == sum(map(str.isalnum, value))
    return _laid_out(value, characters) if fits else new


def _email(value: str, number: int) -> str:
    return f"user{number}@example.com"


def _phone(value: str, number: int) -> str:
    extension = _EXTENSION.search(value)
    body = value[: extension.start()] if extension else value
    abroad = "00" if not body.startswith("+") and digits_of(body).startswith("00") else ""
    plain = ("+" if body.startswith("+") or abroad else "") + digits_of(body).removeprefix(abroad)
    for form, kept, free in _FICTIONAL:
        match = re.fullmatch(form, plain)
        if match and number < 10**free:
            made = abroad + digits_of(match[1]) + kept + f"{number:0{free}}"
            return _laid_out(body, made) + value[len(body) :]
    country = re.match(r"\D*(\d{1,3})\b", body) if plain.startswith("+") else None
    known = len(country[1]) if country else 0
    return _laid_out(body, digits_of(body)[:known] + f"{number:0{len(digits_of(body)) - known}}") + value[len(body) :]


def _card(value: str, number: int) -> str:
    size = len(digits_of(value))
    begin = next(test for issued, test in _CARDS if re.match(issued, digits_of(value)))
    body = begin + f"{number:0{size - len(begin) - 1}}"
    return _laid_out(value, body + str(luhn_rest(body + "0")))


def _iban(value: str, number: int) -> str:
    """Of the same country and form, at a bank of zeros and Xs."""
    code = re.sub(r"\W", "", value).upper()
    counted = iter(f"{number:0{len(digits_of(code[4:]))}}")
    account = "".join(next(counted) if c.isdigit() else "X" for c in code[4:])
    made = f"{code[:2]}{98 - iban_rest(f'{code[:2]}00{account}'):02}{account}"
    return _laid_out(value, made if code[:2] in value else made.lower())


def _ssn(value: str, number: int) -> str:
    """987-65-4320 to 4329 are for advertising, area 666 was never given out."""
    made = f"98765432{number - 1}" if number <= 10 else f"666{number // 10_000:02}{number % 10_000:04}"
    return _laid_out(value, f"{made:.9}")


def _ip(value: str, number: int) -> str:
    """From the ranges for documentation; IPv4 has few such addresses, and 240.0.0.0/4 is used by nobody."""
    if ":" in value:
        return f"2001:db8::{number:x}"
    net, host = divmod(number - 1, 254)
    if net < 3:
        return f"{('192.0.2', '198.51.100', '203.0.113')[net]}.{host + 1}"
    return ".".join(map(str, (0xF0000000 + number).to_bytes(4)))


def _key(value: str, number: int) -> str:
    if value.startswith("-----BEGIN"):
        return "".join(
            piece if _FIXED.fullmatch(piece) else _drawn(piece, f"{number} {i}")
            for i, piece in enumerate(_FIXED.split(value))
        )
    begin = KEY_BEGINS.match(value)
    kept = begin[0] if begin else ""
    owner = re.sub(r"\d{8,}", lambda match: _drawn(match[0], f"owner {number}"), kept)  # the number of a Telegram bot
    return owner + _drawn(value[len(kept) :], f"key {number}")


def _jwt(value: str, number: int) -> str:
    head, body = (_base64(text) for text in ('{"alg":"HS256","typ":"JWT"}', f'{{"sub":"user{number}"}}'))
    return f"{head}.{body}.{_drawn('aA0' * 14 + 'a', f'jwt {number}')}"


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _secret(value: str, number: int) -> str:
    return _drawn(value + "aA0aA0aA"[: max(0, _SHORT - sum(map(str.isalnum, value)))], f"secret {number}")


_MADE: dict[str, Callable[[str, int], str]] = {
    "email": _email, "phone": _phone, "card": _card, "iban": _iban, "ssn": _ssn, "ip": _ip, "key": _key, "jwt": _jwt,
    "secret": _secret,
}  # fmt: skip


def _laid_out(value: str, characters: str) -> str:
    """These instead of the value's letters and digits, between the same separators."""
    new = iter(characters)
    return "".join(next(new) if c.isalnum() else c for c in value)


def _drawn(value: str, seed: str) -> str:
    """A letter or digit of the same kind for each of the value's, drawn by the seed."""
    drawn = hashlib.shake_256(seed.encode()).digest(len(value))
    return "".join(_alike(c, by) for c, by in zip(value, drawn))


def _alike(character: str, by: int) -> str:
    if not character.isalnum():
        return character
    alphabet = digits if character.isdigit() else ascii_uppercase if character.isupper() else ascii_lowercase
    return alphabet[by % len(alphabet)]
