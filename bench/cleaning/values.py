"""Personal data and secrets, drawn by chance in the forms that their issuers give them, and what looks alike."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Callable
from random import Random
from string import ascii_letters, ascii_uppercase, digits
from urllib.parse import quote

_NAMES = ["anna", "bela", "carlos", "dana", "erik", "fatima", "goran", "hana", "ines", "jonas", "kaya", "lena", "marco"]
_WORDS = ["river", "orange", "castle", "winter", "monkey", "guitar", "sunset", "coffee", "dragon", "pepper"]
_ANY = ascii_letters + digits
_SERVICES: list[tuple[str, str, int]] = [  # how a key begins, of which characters the rest is, and how many they are
    ("AKIA", ascii_uppercase + "234567", 16), ("ghp_", _ANY, 36), ("gho_", _ANY, 36), ("glpat-", _ANY, 20),
    ("sk-", _ANY, 48), ("sk-proj-", _ANY + "-_", 64), ("sk-ant-api03-", _ANY + "-_", 95), ("xoxb-", _ANY, 48),
    ("AIza", _ANY + "-_", 35), ("sk_live_", _ANY, 24), ("hf_", ascii_letters, 34), ("npm_", _ANY, 36),
    ("dapi", "abcdef" + digits, 32), ("dop_v1_", "abcdef" + digits, 64),
]  # fmt: skip
_IBANS = {"DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "ES": "n20", "IT": "a1n10c12", "PL": "n24",
          "CH": "n5c12", "SE": "n20", "NO": "n11", "BE": "n12", "AT": "n16"}  # fmt: skip
_CARDS = [("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14), ("3528", 16)]

Draw = Callable[[Random], str]


def drawn(random: Random, alphabet: str, size: int) -> str:
    return "".join(random.choices(alphabet, k=size))


def email(random: Random) -> str:
    host = random.choice(["gmail.com", "firm.de", "mail.example.co.uk", "x-y.org", "universität.de", "a.b.museum"])
    first, last = random.choices(_NAMES, k=2)
    return f"{first}{random.choice(['.', '_', '', '+'])}{last}{random.choice(['', '7'])}@{host}"


def phone(random: Random) -> str:
    form = random.choice(
        [
            "+1 A99 A99 9999", "(A99) A99-9999", "A99-A99-9999", "+44 20 A999 9999", "07A99 999999", "+49 30 A9999999",
            "+33 6 A9 99 99 99", "06 A9 99 99 99", "+91 A9999 99999",
        ]
    )  # fmt: skip
    return "".join(random.choice({"A": "23456789", "9": digits}.get(c, c)) for c in form)


def card(random: Random) -> str:
    begin, size = random.choice(_CARDS)
    body = begin + drawn(random, digits, size - len(begin) - 1)
    total = sum(sum(divmod(int(c) * (2 - i % 2), 10)) for i, c in enumerate(reversed(body)))
    number = body + str(-total % 10)
    gap = random.choice(["", " ", "-"]) if size == 16 else ""
    return gap.join(number[i : i + 4] for i in range(0, size, 4)) if gap else number


def iban(random: Random) -> str:
    country, form = random.choice(list(_IBANS.items()))
    account, kinds = "", {"n": digits, "a": ascii_uppercase, "c": ascii_uppercase + digits}
    for part in form.replace("n", " n").replace("a", " a").replace("c", " c").split():
        account += drawn(random, kinds[part[0]], int(part[1:]))
    check = 98 - int("".join(str(int(c, 36)) for c in account + country + "00")) % 97
    code = f"{country}{check:02}{account}"
    return random.choice([code, " ".join(code[i : i + 4] for i in range(0, len(code), 4))])


def ssn(random: Random) -> str:
    area = random.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03}-{random.randint(1, 99):02}-{random.randint(1, 9999):04}"


def ip(random: Random) -> str:
    while True:
        four = ipaddress.IPv4Address(random.getrandbits(32))
        six = ipaddress.IPv6Address((0x2A << 120) | random.getrandbits(112))
        address = random.choice([four, six])
        if address.is_global and not address.is_multicast:
            return str(address)


def key(random: Random) -> str:
    begin, alphabet, size = random.choice(_SERVICES)
    return begin + drawn(random, alphabet, size)


def private_key(random: Random) -> str:
    name = random.choice(["RSA ", "EC ", "OPENSSH ", ""])
    lines = "\n".join(drawn(random, _ANY + "+/", 64) for _ in range(random.randint(3, 20)))
    return f"-----BEGIN {name}PRIVATE KEY-----\n{lines}\n-----END {name}PRIVATE KEY-----"


def jwt(random: Random) -> str:
    header = {"alg": random.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"}
    if random.random() < 0.5:
        header["kid"] = drawn(random, "abcdef" + digits, 8)
    parts = [header, {"sub": random.choice(_NAMES), "exp": random.randint(1_600_000_000, 1_900_000_000)}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, drawn(random, _ANY + "-_", 43)])


def password(random: Random) -> str:
    """As people choose them, and as machines do."""
    first, second = random.choices(_WORDS, k=2)
    return random.choice(
        [
            first + drawn(random, digits, random.randint(1, 4)),
            first.title() + drawn(random, digits, 2) + random.choice("!$#*"),
            first.replace("o", "0").replace("e", "3") + second,
            drawn(random, _ANY + "!$%#", 12),
            first + second,
        ]
    )


def token(random: Random) -> str:
    alphabet, size = random.choice([("abcdef" + digits, 32), ("abcdef" + digits, 40), (_ANY, 24)])
    return drawn(random, alphabet, size)


KINDS: dict[str, tuple[str, Draw, list[str]]] = {  # what the kind is called, its values, and what stands around them
    "email": ("email", email, ["{}", "My address is {}.", "<{}>", "write to {}, please"]),
    "phone": ("phone", phone, ["{}", "My number: {}.", "call {} after six"]),
    "card": ("card", card, ["{}", "The card is {}.", "paid with {}, yesterday"]),
    "iban": ("iban", iban, ["{}", "My account is {}.", "to {}, please"]),
    "ssn": ("ssn", ssn, ["{}", "My SSN is {}.", "({})"]),
    "ip address": ("ip", ip, ["{}", "I log in from {}.", "blocked ({})"]),
    "key of a service": ("key", key, ["{}", "export KEY={}", '"{}"', "my key is {}."]),
    "private key": ("key", private_key, ["{}", "this:\n{}\nthat is all"]),
    "json web token": ("jwt", jwt, ["{}", "Authorization: Bearer {}", "it says {}."]),
    "labelled password": (
        "secret", password, ["password: {}", "my password is {}", "DB_PASSWORD={}", '{{"pwd": "{}"}}']
    ),
    "labelled token": ("secret", token, ["token: {}", "api_key = '{}'", '"client_secret": "{}"', "Bearer {}"]),
    "password in a url": (
        "secret", lambda r: quote(password(r)), ["https://anna:{}@h.org/a", "postgres://app:{}@db.h.org:5432/x"]
    ),
    "token in a url": ("secret", token, ["https://h.org/a?token={}", "https://h.org/b?id=7&api_key={}&x=1",
                                         "https://h.org/c?X-Amz-Signature={}"]),
}  # fmt: skip

# No personal data: 9 is any digit, x a hexadecimal one, X a capital or a digit, all else itself.
ALIKE = [
    "order 999999999999", "1799999999999 ms", "#99999999", "2099-09-19 19:39", "version 19.9.99.99", "v9.9.99.99",
    "10.99.99.99", "$9,999,999.00", f"commit {'x' * 40}", f"1Z{'X' * 16}", "id xxxxxxxx-9999-4999-a999-xxxxxxxxxxxx",
    "978-3-16-999999-9", "#xxxxxx", "https://h.org/river?id=999999&page=9", "password: required", "token count: 99999",
    "password: at least 9 characters", "password: ********", "pwd=<here>", "@anna99", "rover_castle_99", "abc::dove",
    "19/29/2099 to 19/29/2099", "sk-river-castle-noon-99", "-49.999999, 99.999999", "9,999 rows of 999,999",
]  # fmt: skip
_FILLED = {"9": digits, "x": "abcdef" + digits, "X": ascii_uppercase + digits}


def alike(random: Random, template: str) -> str:
    return "".join(random.choice(_FILLED.get(c, c)) for c in template)
