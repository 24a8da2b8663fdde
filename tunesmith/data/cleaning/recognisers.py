"""What tells an e-mail address, a phone, card, account or social security number, an IP address, a key or a secret from
other text: its shape, its checksum, the ranges that are given out, and now and then the word before it.

They would rather miss a number than take an order number, a date or a price for one, because to replace what is none
destroys data. No pattern can be made to backtrack for long, whatever it reads.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from math import log2
from typing import NamedTuple

import orjson

Find = tuple[str, int, int]


class Recogniser(NamedTuple):
    """Matches of the shape whose group `value` is genuine are of this kind. A match without a value is something else,
    and what stands in it is not looked at again."""

    kind: str
    shape: re.Pattern[str]
    is_genuine: Callable[[str], bool]


# Length of an account number by country (the registry of ISO 13616).
_IBAN_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"""

# First digits and lengths that issuers give out: they set a card apart from an epoch in milliseconds or an ISBN.
_ISSUED = re.compile(
    r"""
    4(?:\d{12}|\d{15}|\d{18})                                     # Visa
  | (?:5[1-5]|2[2-7]|35|6\d)\d{14}                                # Mastercard, JCB, Discover, UnionPay: 16
  | 3[47]\d{13} | (?:2131|1800)\d{11} | 3[0689]\d{12}             # American Express, old JCB, Diners
  | (?:5[0678]|6\d)\d{11,17}                                      # Maestro
  | (?:5018|5020|5038|5[678]\d\d|6304|6390|6759|676[1-3])\d{8}    # Maestro of 12 digits""",
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

_NO_SSN = frozenset(["078-05-1120", "219-09-9999"])  # printed in advertisements

# How keys of well-known services begin, and what was drawn by chance and stands behind.
_KEYS = [
    (r"(?:AKIA|ASIA)", r"[A-Z2-7]{16}"),  # AWS
    (r"gh[pousr]_", r"[A-Za-z\d]{36,251}"),  # GitHub
    (r"github_pat_", r"\w{40,251}"),
    (r"glpat-", r"[\w-]{20,300}"),  # GitLab
    (r"sk-(?:ant-(?:[a-z]{3,8}\d\d-)?|proj-|svcacct-|admin-|or-v1-)", r"[\w-]{32,300}"),  # Anthropic, OpenAI
    (r"(?:sk-|gsk_|xai-|lin_api_|r8_|npm_|hf_)", r"[A-Za-z\d]{30,300}"),  # OpenAI, Groq, xAI, Linear, Hugging Face
    (r"(?:xox[abeoprs]|xapp)-", r"[A-Za-z\d-]{16,300}"),  # Slack
    (r"AIza", r"[\w-]{35}"),  # Google
    (r"GOCSPX-", r"[\w-]{28}"),
    (r"ya29\.", r"[\w-]{30,2000}"),
    (r"[srp]k_(?:live|test)_", r"[A-Za-z\d]{16,300}"),  # Stripe
    (r"whsec_", r"[A-Za-z\d+/]{24,300}"),
    (r"pypi-AgE", r"[\w-]{50,500}"),
    (r"SG\.", r"[\w-]{16,32}\.[\w-]{32,64}"),  # SendGrid
    (r"(?:do[opr]_v1_|dapi|sbp_|shp(?:at|ca|pa|ss)_)", r"[A-Fa-f\d]{32,64}"),  # DigitalOcean, Databricks, ..., Shopify
    (r"dckr_pat_", r"[\w-]{20,100}"),
    (r"sq0[a-z]{3}-", r"[\w-]{22,43}"),  # Square
    (r"hooks\.slack\.com/services/", r"T\w{6,14}/B\w{6,14}/\w{16,32}"),
    (r"(?:bot)?\d{8,10}:AA", r"[\w-]{33}"),  # Telegram
    (r"(?:AC|SK)", r"[a-f\d]{32}"),  # Twilio
    (r"key-", r"[a-z\d]{32}"),  # Mailgun
]
KEY_BEGINS = re.compile("|".join(begin for begin, _ in _KEYS))

_STANDS_FOR_ONE = re.compile(
    r"""pass | pwd | word | secret | token | example | sample | dummy | placeholder | change | your | insert | redacted
    | hidden | config | environ | x{4} | \*{3} | \.{3} | 1234567 | abcdef""",
    re.VERBOSE | re.IGNORECASE,
)
_NAME = re.compile(
    r"""[a-z]\w*(?:(?:\.|->|::)[a-z_]\w*)+                         # an attribute
  | [a-z]+(?:_[a-z]+)*_\d{1,3}                                     # step_1
  | (?:sha|md|utf|base|aes|rsa|hs|rs|es|int|float|str|bit)[-_]?\d+\S*
  | \d+[-_]?[a-z]{1,12}                                            # 30days, 8-characters""",
    re.VERBOSE | re.IGNORECASE,
)
_SLUG = re.compile(r"(?:[a-z]+|\d{1,4})(?:[-_./+](?:[a-z]+|\d{1,4}))+", re.IGNORECASE)  # step-2-of-3
_CODE = re.compile(r"[$<{(\[&@*]|%[sd({]|%\w+%|[\w.]+[(\[{]|https?:")  # fetches one


def _shape(body: str, before: str = r"(?<!\#)", after: str = "") -> re.Pattern[str]:
    """A pattern for a value that stands alone: as a part of a longer code, number or path it is something else."""
    return re.compile(
        rf"{before}(?<![\w+/])(?<!\w-)(?<!\d\.)(?P<value>(?>{body}))(?!\w|-\d|\.\d){after}",
        re.VERBOSE | re.IGNORECASE | re.ASCII,
    )


def digits_of(value: str) -> str:
    return "".join(c for c in value if c.isdigit())


def luhn_rest(digits: str) -> int:
    """What is missing to a multiple of ten; 0 where the last digit is the right check digit."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return -sum(d // 10 + d % 10 for d in doubled) % 10


def iban_rest(code: str) -> int:
    """Of the division by 97, where a right one leaves 1; `code` without spaces, in upper case."""
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97


def _is_card(value: str) -> bool:
    digits = digits_of(value)
    return bool(_ISSUED.fullmatch(digits)) and luhn_rest(digits) == 0


def _is_iban(value: str) -> bool:
    return iban_rest(re.sub(r"[ -]", "", value).upper()) == 1


def _is_phone(low: int, high: int) -> Callable[[str], bool]:
    """Whether a value has so many digits, its extension aside, and is not plainly something else."""
    return lambda value: (
        low <= len(digits_of(re.split("[xe]", value.lower())[0])) <= high and not _NO_PHONE.fullmatch(value)
    )


def _is_ssn(value: str) -> bool:
    return re.sub(r"\D", "-", value) not in _NO_SSN


def _is_someones_ip(value: str) -> bool:
    """Not private, loopback, reserved or made for documentation; four single digits are a version or a chapter."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    if address.version == 6:
        return int(address) >> 125 == 1 and address.is_global
    return address.is_global and not address.is_multicast and len(value) > 7


def _is_jwt(value: str) -> bool:
    """Whether its first part is a header that names an algorithm."""
    head = value.split(".")[0]
    try:
        header = orjson.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(header, dict) and "alg" in header


def _is_key(value: str) -> bool:
    """By chance, not sk-xxxxxxxx; words with dashes between them have no digit."""
    chance = KEY_BEGINS.sub("", value, 1)
    return _bits(chance) > 2.5 and (chance.isalnum() or any(c.isdigit() for c in chance))


def _is_password(value: str) -> bool:
    """Letters with digits or signs among them; not a word, a name from code or what stands for a secret."""
    core = value.rstrip("!")
    mixed = len(core) >= 6 and re.search("[A-Za-z]", core) and re.search(r"[\d!$%*+#@^~]", core)
    return bool(mixed) and not (_STANDS_FOR_ONE.search(core) or _NAME.fullmatch(core) or _CODE.match(core))


def _is_token(value: str) -> bool:
    """Long and drawn by chance, as its entropy tells."""
    mixed = len(value) >= 12 and any(c.isdigit() for c in value) and _bits(value) >= 3
    return mixed and _is_password(value) and not _SLUG.fullmatch(value)


def _bits(value: str) -> float:
    """Shannon's entropy of its characters, in bits for each."""
    shares = [n / len(value) for n in Counter(value).values()]
    return -sum(share * log2(share) for share in shares)


_EXTENSION = r"(?:\ ?(?:x|ext\.?)\ ?\d{1,5})?"
_NO_HASH = r"(?<!\w\#)"  # where a checksum tells it from a ticket
_GAP = r"(?P<gap>\ \ ?|[.-])"
_FIRST = r"(?<!\d\ )(?<!\#)"  # no later member of a list of numbers
_LABEL = r"""(?<![a-z])(?:phone|telephone|telefon|tel|mobile|cell|cellphone|fax|whatsapp|call\ (?:me|us)(?:\ back)?)
    (?:[_ ]?(?:number|no|nr))?(?:\ (?:is|at|on))?[\s"':=.]{1,4}"""
_REACHED = r"""(?<![a-z])(?:(?:reach|call|ring|dial|text|contact|answer(?:ing)?)(?:\ \w{1,9}){0,2}\ (?:at|on)
    | (?:messages?|texts?|sms)\ (?:to|from))\ """
_OF_CARD = r"(?<![a-z])(?:cards?|maestro|cc|debit|credit)(?![a-z])[^\d\n]{0,40}?"
_SSN = r"(?!000|666|9)\d{3}(?P<gap>[\ .-]?)(?!00)\d\d(?P=gap)(?!0000)\d{4}"
_SSN_NAME = r"(?:ssn\b\)?|social\ security(?:\ (?:number|no\.?))?(?:\ \(ssn\))?)"
_GROUPS = r"\(?\d{2,4}\)?(?:[\ -]\d{2,6}){1,3}"

_DOT = r"(?:\ [\[(]dot[\])]\ |[\[(]dot[\])])"
_ENDINGS = """com|org|net|edu|gov|mil|info|io|ai|co|eu|de|at|ch|uk|ie|fr|be|nl|es|pt|pl|cz|dk|se|fi|gr|hu|ro|ru|tr|il|za
    |ca|mx|br|ar|cl|au|nz|jp|cn|kr"""  # of addresses in prose, where what follows a dot may be the next sentence

_GIVEN = r"""(?:\\?["'`])?(?:\s{0,2}(?:=>|:=|[:=>])\s{0,2}|\ (?:is|was)\ )(?P<quote>\\?["'`])?+"""
_WHOLE = r"""(?P<value>(?(quote)[^\s"'`<>\\]{6,200}+(?=\\?["'`])|[^\s"'`<>\\,;]{6,200}(?<![.:?)])))"""


def _secret(shape: str, is_genuine: Callable[[str], bool]) -> Recogniser:
    return Recogniser("secret", re.compile(shape, re.VERBOSE | re.IGNORECASE), is_genuine)


PEM = [
    Recogniser(
        "key",
        re.compile(
            r"""(?P<value>-----BEGIN\ [A-Z\d ]{0,20}PRIVATE\ KEY(?:\ BLOCK)?-----(?:[^-]|-(?!-)){20,16384}+
            (?:-----END\ [A-Z\d ]{0,20}PRIVATE\ KEY(?:\ BLOCK)?-----)?)""",
            re.VERBOSE,
        ),
        lambda value: bool(re.search(r"[A-Za-z\d+/]{20}", value)),
    )
]
JWTS = [
    Recogniser("jwt", re.compile(r"(?<![\w.-])(?P<value>eyJ[\w-]{8,4096}+\.[\w-]{2,16384}+\.[\w-]{0,2048}+)"), _is_jwt)
]
PREFIXED = [
    Recogniser(
        "key",
        re.compile(
            rf"(?<![A-Za-z\d_-])(?P<value>{'|'.join(f'{begin}{rest}+' for begin, rest in _KEYS)})(?![\w-])", re.ASCII
        ),
        _is_key,
    ),
]

LOGINS = [
    _secret(  # a user's password
        r""":\\?/\\?/[^\s/?\#@:"'<>\\]{0,64}+:(?P<value>[^\s/@:"'<>\\[\]]{1,256}+)@""",
        lambda value: not (re.match(r"[${*]", value) or re.fullmatch("(?i)x+|pass(?:word)?|pwd|secret|token", value)),
    ),
    _secret(r":\\?/\\?/(?P<value>[\w-]{16,256}+)@", _is_token),
]
PARAMETERS = [
    _secret(
        r"""[?&;\#](?:[a-z\d]{1,16}[_-]){0,3}(?:(?:access|api|auth)key|token|key|secret|sig|signature|credential|password|pwd)
        =(?P<value>[^\s&;\#"'<>\\()\[\]{}`,|^*$]{6,4096}+)""",
        lambda value: any(c.isdigit() for c in value) and _bits(value) >= 2.5 and not _STANDS_FOR_ONE.search(value),
    ),
    _secret(
        r"[?&;\#](?:[a-z\d]{1,16}[_-]){0,3}(?:sessionid|sid|jwt|code|auth)=(?P<value>[\w.~%/+=-]{16,4096}+)",
        _is_token,
    ),
]

PASSWORDS = [
    _secret(rf"(?:passw(?:or)?d|passwort|passphrase|passcode|pwd){_GIVEN}{_WHOLE}", _is_password),
]
TOKENS = [
    _secret(
        rf"""(?:secret(?:[ _-]?(?:access[ _-]?)?key)?|(?:api|access|private|auth|account|encryption|signing)[ _-]?key
        | token | credentials?){_GIVEN}{_WHOLE}""",
        _is_token,
    ),
    _secret(r"(?<![a-z])(?:bearer|basic)\s{1,2}(?P<value>[\w.~+/=-]{16,500}+)", _is_token),
]

ADDRESSES = [
    Recogniser(  # the host of a URL or a repository matches, with what stands before it, without a value
        "email",
        re.compile(
            r"""://[^\s/?\#@:"'<>]{0,64}:[^\s/?\#@"'<>]{1,256}@\S
          | (?<![\w.+%-])git@(?:git|bitbucket)[\w.-]* | (?<![\w.+%-])git@[\w.-]{1,255}:(?=[\w~/]) | ://git@
          | (?<![^\W_])(?<![.+%])(?P<value>(?:(?!_)[\w+%][\w.+%-]{0,63} | "[\w.+%\ -]{1,62}")
            @(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24})(?!_?[^\W_]|\(|[-.]\w|@)""",
            re.VERBOSE,
        ),
        lambda value: not value.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")),  # icon@2x.png
    ),
]

SPELT_OUT = [
    Recogniser(
        "email",
        re.compile(
            rf"""(?<![\w.+%-])(?P<value>[a-z\d][\w.+%-]{{0,63}}(?P<gap>\ ?)[\[(]at[\])](?P=gap)
            [a-z\d][a-z\d-]{{0,62}}(?:(?:\.|{_DOT})[a-z\d-]{{1,63}}){{0,7}}
            (?:{_DOT}[a-z]{{2,24}} | \.(?-i:{_ENDINGS})))(?![\w(]|[-.]\w)""",
            re.VERBOSE | re.IGNORECASE | re.ASCII,
        ),
        lambda value: True,
    ),
]

IBANS = [
    Recogniser(
        "iban",
        _shape("|".join(rf"{c[:2]}\d\d(?:[\ -]?[a-z0-9]){{{int(c[2:]) - 4}}}" for c in _IBAN_LENGTHS.split())),
        _is_iban,
    )
]

NUMBERS = [
    Recogniser("card", _shape(rf"\d{{13,19}} | \d{{4}}{_GAP}(?:\d{{4}}(?P=gap)){{2}}\d{{4}}", _NO_HASH), _is_card),
    Recogniser(
        "card",
        _shape(rf"""\d{{4}}{_GAP}(?:
        \d{{6}}(?P=gap)\d{{4,5}} | (?:\d{{4}}(?P=gap)){{2}}(?:\d{{1,3}} | \d{{4}}(?P=gap)\d{{1,3}}))""", _NO_HASH),
        _is_card,
    ),
    Recogniser("card", _shape(rf"\d{{12}} | \d{{4}}{_GAP}\d{{4}}(?P=gap)\d{{4}}", _OF_CARD), _is_card),
    Recogniser("ssn", _shape(r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}"), _is_ssn),
    Recogniser(
        "ssn",
        _shape(_SSN, rf"""(?<![a-z]){_SSN_NAME}(?:\ is|\ was)?[\s"':=\#]{{1,4}}"""),
        _is_ssn,
    ),
    Recogniser("ssn", _shape(_SSN, after=rf"\ (?:is|was)\ (?:\w{{2,5}}\ )?{_SSN_NAME}(?!\w)"), _is_ssn),
    Recogniser(
        "phone",
        _shape(rf"""\+[1-9]\d{{0,2}}(?!\.\d+(?![\d.]))[\ ./-]?(?:\(\d{{1,4}}\)\ ?)?\d{{1,12}}
        (?:[\ ./-]\d{{2,8}}){{0,5}}{_EXTENSION}"""),
        _is_phone(9, 15),
    ),
    Recogniser("phone", _shape(rf"00[1-9]\d{{0,2}}(?:[\ ./-]\d{{2,8}}){{2,5}}{_EXTENSION}"), _is_phone(11, 17)),
    Recogniser(
        "phone",
        _shape(rf"(?:1[\ .-])?(?:[2-9]\d\d[\ .-]|\([2-9]\d\d\)\ ?)\d{{3}}[\ .-]\d{{4}}{_EXTENSION}", _FIRST),
        _is_phone(10, 11),
    ),  # North America
    Recogniser(
        "phone",
        _shape(
            r"""(?:0[1-9](?:[\ .-]\d\d){4} | 0[1-9]\d{2,3}(?:[\ .-]\d\d){3}
      | (?:0[1-9]\d{0,4}[\ /-] | \(0[1-9]\d{0,4}\)\ ?)(?:\d{6,8} | \d{3,4}[\ -]\d{2,4}(?:[\ -]\d{2,4})?))
      (?!\ \d)""",
            _FIRST,
        ),
        _is_phone(10, 12),
    ),  # a trunk zero and groups: France, Belgium, Britain, Germany, Australia
    Recogniser("phone", _shape(r"07\d{9} | 0[67]\d{8} | 01[567]\d{8,9}", r"(?<![.\#])"), _is_phone(10, 12)),  # mobiles
    Recogniser("phone", _shape(r"\(?\d(?:[\ ()./-]{0,2}\d){6,14}", _LABEL), _is_phone(7, 15)),
    Recogniser("phone", _shape(_GROUPS, _REACHED), _is_phone(7, 13)),
    Recogniser(
        "phone",
        re.compile(rf"(?<![\w.,/+-])(?<!\d\ )(?P<value>(?>{_GROUPS}))[\ -](?:office|mobile|cell|fax|home|work)\b",
                   re.VERBOSE | re.IGNORECASE | re.ASCII),
        _is_phone(7, 13),
    ),
]  # fmt: skip

HOSTS_4 = [
    Recogniser(  # a version or a chapter matches without a value
        "ip",
        re.compile(
            r"""(?<![a-z])(?:(?:v|ver|version|release|build|revision|patch|up(?:date|grade)d?\ to|assembly
            | firmware(?:\ update)?|software\ update|kernel|section|chapter|clause|article|paragraph|figure|fig|appendix
            | §)[\s.:="']{0,3}\d[\d.]*
            | (?:library|package|app|software|driver|sdk|(?:i|mac|ipad|watch|tv)os|android|windows|linux|php|python|java
            | table)[\s.:="']{0,3}(?:1?\d|2[0-5])\.[\d.]*)                  # what else may have an address
          | (?:(?<![\w.-])|(?<=\d\.\d-)|(?<=\.\d\d-)|(?<=\.\d{3}-))(?<![\w]/)(?<![=<>~]=)
            (?P<value>\d{1,3}(?:\.\d{1,3}){3})(?!\w|\.\w|-(?!\d{1,3}(?:\.\d{1,3}){3})\w|(?<=\.0)/\d|/\d{3})""",
            re.VERBOSE | re.IGNORECASE | re.ASCII,
        ),
        _is_someones_ip,
    ),
]
HOSTS_6 = [
    Recogniser(
        "ip",
        re.compile(r"(?<![\w:.])(?P<value>[\da-fA-F]{1,4}:[\da-fA-F:]{3,35}+)(?![\w:])", re.ASCII),
        _is_someones_ip,
    ),
]
