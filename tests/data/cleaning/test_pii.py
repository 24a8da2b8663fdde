"""Personal data: what is found, what must never be, and what becomes of it."""

import json
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.cleaning.pii import find, personal_data


def row(*contents: str, rejected: str | None = None, **last: object) -> Row:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents)]
    messages[-1].update(last)
    return Row(messages, "a.jsonl", 1, "messages", rejected=rejected)


DRAWN = "Jq8ZkT3vWn5RbXm2LcYd7HsPf9GtKe4AuQi6MwVo"


def seen(text: str) -> list[tuple[str, str]]:
    return [(kind, text[start:end]) for kind, start, end in find(text)]


@pytest.mark.parametrize(("kind", "value"), [
    ("email", "anna.berg+shop@mail.example.co.uk"), ("email", "müller@beispiel.de"), ("email", "A_B@x-y.org"),
    ("email", "git@acme.org"), ("email", '"john doe"@example.com'),
    ("phone", "+49 30 1234567"), ("phone", "+15551234567"), ("phone", "+1 (555) 123-4567"),
    ("phone", "+46 (0)8 928 571 38"), ("phone", "001-518-640-0854"), ("phone", "(555) 123-4567"),
    ("phone", "555-123-4567"), ("phone", "555.123.4567 x12"),
    ("phone", "1-800-555-0199"), ("phone", "020 7946 0958"), ("phone", "(020) 7946 0958"), ("phone", "07700 900123"),
    ("phone", "07700900123"), ("phone", "030/1234567"), ("phone", "0171 1234567"), ("phone", "06 12 34 56 78"),
    ("phone", "03.93.92.16.85"), ("phone", "0412 345 678"),
    ("card", "4111111111111111"), ("card", "4111 1111 1111 1111"), ("card", "5500-0000-0000-0004"),
    ("card", "4111  1111  1111  1111"), ("card", "4111.1111.1111.1111"), ("card", "4111\u00a01111\u00a01111\u00a01111"),
    ("card", "4111–1111–1111–1111"), ("iban", "DE89\u202f3704\u202f0044\u202f0532\u202f0130\u202f00"),
    ("iban", "GB29\u2011NWBK\u20116016\u20111331\u20119268\u201119"), ("phone", "+49\u00a030\u00a0901820"),
    ("phone", "555\u2011123\u20114567"),
    ("phone", "06\u200912\u200934\u200956\u200978"), ("ssn", "514\u201269\u20120360"),
    ("card", "378282246310005"), ("card", "3782 822463 10005"), ("card", "4222222222222"),
    ("card", "6304000000000000000"),
    ("iban", "DE89370400440532013000"), ("iban", "GB29 NWBK 6016 1331 9268 19"), ("iban", "gb29nwbk60161331926819"),
    ("iban", "FR14 2004 1010 0505 0001 3M02 606"), ("iban", "NO9386011117947"),
    ("ssn", "514-69-0360"), ("ip", "85.214.132.117"), ("ip", "2a00:1450:4001:82a::200e"), ("ip", "2a00::ffaf"),
    ("key", "AKIAIOSFODNN7EXAMPLE"), ("key", f"ghp_{DRAWN[:36]}"), ("key", f"github_pat_{DRAWN[:22]}_{DRAWN * 2}"),
    ("key", f"sk-proj-{DRAWN}"), ("key", f"sk-ant-api03-{DRAWN}-AA"), ("key", f"sk-{DRAWN}"),
    ("key", f"xoxb-2939401-{DRAWN}"), ("key", f"AIza{DRAWN[:35]}"), ("key", f"sk_live_{DRAWN[:24]}"),
    ("key", f"pk_live_{DRAWN[:24]}"), ("key", f"sq0atp-{DRAWN[:22]}"), ("key", "key-3ax6xnjp29jd6fds4gc373sgvjxteol0"),
    ("key", "AC0123456789abcdef0123456789abcdef"),
    ("key", f"hooks.slack.com/services/T0AB12CD3/B0EF45GH6/{DRAWN[:24]}"), ("key", f"123456789:AA{DRAWN[:33]}"),
    ("key", "hf_" + DRAWN.translate(dict.fromkeys(b"0123456789", "q"))[:34]), ("key", f"glpat-{DRAWN[:20]}"),
    ("jwt", f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NSJ9.{DRAWN}"),
])  # fmt: skip
def test_personal_data_is_found_to_the_character(kind, value):
    assert seen(value) == [(kind, value)]
    assert seen(f"My details: {value}, thanks.") == [(kind, value)]
    assert seen(f"({value})") == [(kind, value)]


@pytest.mark.parametrize("text", [
    "order FH-20931", "order FH-5551234567", "ticket #5551234567", "on 2024-05-12 at 09:30",
    "2024-05-12T09:30:00+02:00", "2024-05-12 10:15:30", "12/05/2024 to 14/05/2024", "01.02.2024 10:00",
    "from 12.05.2024-14.05.2024", "seasons 2023-2024", "$1,234,567.89", "EUR 1 234 567", "1,000,000,000 rows",
    "3.14159265358979", "+48.858844, +2.294351", "+1000000 users", "rooms 100-2000", "table 555-1234",
    "192.168.100.123", "version 10.0.19045.3803", "1700000000000 ms", "20240512T093000",
    "978-3-16-148410-0", "9783161484100", "EIN 01-2345678", "078-05-1120", "0000012345678", "item 0123456789",
    "550e8400-e29b-41d4-a716-446655440000", "https://doi.org/10.1073/pnas.0601602103", "10.1111/0081-1750.00098",
    "hash#4111111111111111", "#514-69-0360", "git@acme.org:org/repo.git", "ssh://git@acme.org/repo",
    "ssh -T git@github.com", "acme at home (at) noon", "8.8.8.8 resolves",
    "arrived (at) Berlin.Then we", "look(at)this.example", "arr[at] foo.bar", "arr[at] foo.com", "met (at) home.Com",
    "Kernel 5.15.0.91", "Linux 5.15.0.91", "Python 3.11.10.22", "iOS 17.10.21.33",
    "SDK 12.1.105.3 works", "App 8.12.33.44 released",
    "software update 17.4.1.22", "updated to 17.4.1.22", "Figure 3.12.10.1", "article 12.34.56.78",
    "assembly 4.0.30.19", "seasons 2023–2024", "EUR 1\u202f234\u202f567", "years 1990–2000 2001",
    "-----BEGIN PRIVATE KEY-----\n<the contents of your private key>\n-----END PRIVATE KEY-----",
    "hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
    "4111111111111112", "4111 1111 1111 1112", "GB29 NWBK 6016 1331 9268 18", "XX29 NWBK 6016 1331 9268 19",
    "01 02 03 04 05", "10 20 30 40 50 60 70 80", "100 200 300 4000 500", "0123 4567 8901 2345", "phone 2023-2024",
    "phone 10:30-11:45", "call me on 12/05/2024", "phone: 1 000 000", "git@github.com:org/repo.git", "icon@2x.png",
    "a@b.transpose()", "@app.route", "x@y", "[EMAIL_1] or [PHONE_2]",
    "order 630427373398", "630427373399 is no card", "at 567890123456 ms", "000-12-3456", "666-12-3456", "900-12-3456",
    "123-00-4567", "123-45-0000", "v1.2.3.4", "version 10.1.2.33", "Firmware: 12.4.33.10", "a==1.26.4.22", "1.2.3.4",
    "127.0.0.1", "0.0.0.0", "10.1.2.33", "172.16.100.20", "192.0.2.17", "255.255.255.0", "8.8.0.0/16", "256.100.100.1",
    "1.3.6.1.4.1.311", "::1", "fe80::1", "2001:db8::1", "12:30:45", "00:1a:2b:3c:4d:5e", "std::vector a::b",
    "sk-learn-contrib-examples-for-version-2", "ASIA_PACIFIC_REGION_2024", "hf_hub_download_revision", "sk-" + "x" * 40,
    "eyJub3RoaW5n.eyJub3RoaW5n.abc", "https://example.org/?token=&x=1", "https://h.org/?key=products", "user:pass@host",
    "ftp://username:password@ftp.example.org", "http://host:8080/a@b",
    "password: required", "the password is incorrect!", "the password is 8-characters long",
    "password = os.environ['X1']", "password = user1.password", "password: ********", "password: ${DB_PASSWORD_1}",
    "password=<your-password1>", "password = getpass.getpass2()", "token: step-2-of-the-process",
    "token = tokens[12345678901]",
    "token count: 128000", "api_key: YOUR_API_KEY_1234", "secret: utf-8-something-else-1",
    "key: 8f3a9b2c7710aa4e", "Passwort: ungültig",
])  # fmt: skip
def test_other_numbers_and_codes_are_left_alone(text):
    assert seen(text) == []


@pytest.mark.parametrize("text", [
    "tel. 5551234", "My mobile is 5551234567", '"phone_number": "612 345 678"', "Fax: 262-3773",
])  # fmt: skip
def test_the_word_before_it_tells_a_phone_number_of_any_form(text):
    assert [kind for kind, _ in seen(text)] == ["phone"]


@pytest.mark.parametrize(("kind", "text"), [
    ("card", "card number <630427373398> is lost"), ("card", "my cc 5038 0205 3770"), ("ssn", "SSN: 514690360"),
    ("ssn", "social security number is 514 69 0360"), ("ssn", "SSN#<514-69-0360>"), ("ssn", "my SSN is <514.69.0360>"),
    ("ssn", "Social Security Number (SSN): <514690360>"), ("ssn", "My social security no. (SSN) is <514690360>"),
    ("ssn", "<514 69 0360> is my SSN"),
    ("card", "paid by #<4111111111111111>"), ("email", "_<jane@acme.org>_"), ("email", "-<jane@acme.org>"),
    ("email", "*<jane@acme.org>*"), ("email", "write to <john [at] example [dot] com>."),
    ("email", "<john.doe(at)example.com>"), ("email", "<john(at)example.co.uk>"), ("email", "to <john (at) firma.de>,"),
    ("email", "<john(at)example(dot)museum>"), ("ip", "server app <84.23.100.9> is down"),
    ("ip", "login from iOS <84.23.100.90>"), ("ip", "the user's Windows <84.23.100.90> host"),
    ("ip", "the net <85.214.132.117>/24"), ("ip", "85.214.132.1/24"),
    ("key", f"https://api.telegram.org/<bot123456789:AA{DRAWN[:33]}>/getMe"),
    ("key", "<-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIabcdefghijklmnop\n-----END EC PRIVATE KEY----->"),
    ("phone", "reach me at 699 956 915"),
    ("phone", "416 60 039 office"), ("phone", "messages to 78 651 450"), ("ip", "ping http://85.214.132.117:8080/"),
    ("secret", "password: <hunter2>"), ("secret", "My password is <Summer2024!>"), ("secret", "pwd=<tr0ub4dor&3>"),
    ("secret", '{"db_password": "<k9$mP2,xL>"}'), ("secret", '\\"password\\": \\"<aB3#fG7kL9>\\"'),
    ("secret", "API key = <f81d4faeb7dec11d0a76500a0c91e6bf6>."), ("secret", f"client_secret: '<{DRAWN}>'"),
    ("secret", f"Authorization: Bearer <{DRAWN}>"), ("secret", "postgres://anna:<pw1>@db:5432/x"),
    ("secret", f"git clone https://<{DRAWN}>@git.example.org/a.git"), ("secret", "https://h.org/a?x=1&token=<8f3a9b2c77>"),
    ("secret", f"https://h.org/cb?code=<{DRAWN}>&state=1"), ("secret", f"https://h.org/?X-Amz-Signature=<{DRAWN}>"),
    ("key", f"<-----BEGIN RSA PRIVATE KEY-----\n{DRAWN}\n{DRAWN}\n-----END RSA PRIVATE KEY----->\nbye"),
    ("key", f"https://h.org/?key=<AIza{DRAWN[:35]}>"),
])  # fmt: skip
def test_what_stands_around_it_tells_the_rest(kind, text):
    plain = text.replace("<", "").replace(">", "")
    value = text.partition("<")[2].partition(">")[0]
    assert [k for k, _ in seen(plain)] == [kind]
    if value:
        assert seen(plain) == [(kind, value)]


HOSTILE = [
    "a", "1 ", "@a.", "a@b.co ", "http://a:", "eyJ", "eyJaaaaaaaa.", "sk-", "password: ", "password=a1", "token: '",
    "1.1.1.1 ", "-----BEGIN RSA PRIVATE KEY-----", "a1:", "?token=", "&a_", "call me ", "card 1", "ssn ", "phone: 1",
    "(1", "+1 ", "4111-1111-1111-", "DE89 ", "12 34 56 office ", "v1.", "://a:b@", " is ", "\\", "é1",
    "85.214.132.117 ", "x_hf_", '"a', "a_", "a-", "git@", "a(at)b", "a (at) ", "(at)", "\u00a01", "1–",
    "ACa1", "12345678:AA",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_no_text_takes_long(unit):
    """A hundred thousand characters: a tenth of a second or two; with backtracking it would be hours."""
    text = "password: 1@a ://:: eyJ_ token= " + unit * (100_000 // len(unit))
    started = time.process_time()
    find(text)
    assert time.process_time() - started < 5


def test_both_ends_of_a_range_of_ip_addresses_are_found():
    for dash in "-–":
        for first in ("85.214.132.117", "85.214.132.17", "85.214.132.7"):
            assert seen(f"from {first}{dash}85.214.132.130.") == [("ip", first), ("ip", "85.214.132.130")]


def test_neighbours_do_not_join():
    text = "4111 1111 1111 1111 12/27 737, GB29 NWBK 6016 1331 9268 19 please, a@b.com;c@d.org"
    assert [value for _, value in seen(text)] == [
        "4111 1111 1111 1111",
        "GB29 NWBK 6016 1331 9268 19",
        "a@b.com",
        "c@d.org",
    ]


@given(st.text(alphabet="0123456789 +-./()@aez#,xGBDE\nKſ²٣", max_size=60))
def test_finds_are_in_order_without_overlaps_and_of_seven_digits(text):
    found = find(text)
    assert all(0 <= start < end <= len(text) for _, start, end in found)
    assert all(a[2] <= b[1] for a, b in pairwise(found))
    assert all(kind in ("email", "ip") or sum(c.isdigit() for c in text[start:end]) >= 7 for kind, start, end in found)


def test_one_value_has_one_placeholder_throughout_the_conversation():
    texts = ["I am a@x.com, not b@x.com, call 555-123-4567", "A@x.com?", "yes, (555) 123-4567", "b@x.com."]
    [kept] = personal_data([row(*texts)], "replace")
    assert [m["content"] for m in kept.row.messages] == [
        "I am [EMAIL_1], not [EMAIL_2], call [PHONE_1]",
        "[EMAIL_1]?",
        "yes, [PHONE_1]",
        "[EMAIL_2].",
    ]
    assert kept.row.changes == ["replaced: email", "replaced: phone"]


@pytest.mark.parametrize(("told", "again"), [
    ("call (415) 555-2671", "4155552671"), ("call (415) 555-2671", "+14155552671"),
    ("call (415) 555-2671", "14155552671"),
    ("call +1 415 555 2671", "4155552671"), ("call +1 415 555 2671", "(415) 555-2671"), ("tel. 555 1234", "5551234"),
    ("call 020 7946 0958", "+44 20 7946 0958"), ("call +44 20 7946 0958", "020 7946 0958"),
    ("call 0033 1 42 68 53 00", "+33\u00a01\u00a042\u00a068\u00a053\u00a000"),
    ("call +46 (0)8 928 571 38", "08 928 571 38"),
    ("SSN 514-69-0360", "514690360"), ("SSN 514690360", "514 69 0360"), ("SSN 514-69-0360", "514–69–0360"),
    ("4111 1111 1111 1111", "4111/1111/1111/1111"), ("4111 1111 1111 1111", "4111\u00a01111\u00a01111\u00a01111"),
    ("DE89370400440532013000", "de 89 3704 0044 0532 0130 00"),
])  # fmt: skip
def test_a_number_has_one_placeholder_however_it_is_written(told, again):
    [kept] = personal_data([row(told, f"It is {again}, yes: \u00a0({again})")], "replace")
    [placeholder] = re.findall(r"\[\w+_1\]", kept.row.messages[0]["content"])
    assert kept.row.messages[1]["content"] == f"It is {placeholder}, yes: \u00a0({placeholder})"


@pytest.mark.parametrize("other", [
    "1.4155552671", "4155552671.5", "x4155552671", "4155552672", "994155552671234", "415555267",
    "4, 1, 5, 5, 5, 5, 2, 6, 7, 1", "9155552671", "155552671", "04155552671", "24155552671",
])  # fmt: skip
def test_another_number_that_holds_its_digits_stays(other):
    [kept] = personal_data([row("call (415) 555-2671", f"It is {other} here")], "replace")
    assert kept.row.messages[1]["content"] == f"It is {other} here"


@pytest.mark.parametrize("other", ["155552671", "9155552671", "41155552671", "55552671"])
def test_the_code_of_a_country_ends_where_the_number_begins(other):
    [kept] = personal_data([row("call +1 (415) 555-2671", f"It is {other} here")], "replace")
    assert kept.row.messages[1]["content"] == f"It is {other} here"


def test_numbers_of_two_countries_are_two():
    [kept] = personal_data([row("call +44 415 555 2671 or +1 415 555 2671", "0044 415 555 2671")], "replace")
    assert [m["content"] for m in kept.row.messages] == ["call [PHONE_1] or [PHONE_2]", "[PHONE_1]"]


def test_many_numbers_take_no_longer_each_than_few():
    """Eight hundred in two layouts: a tenth of a second or two."""
    told = " and ".join(f"+1 415 555 {i:04d}" for i in range(800))
    started = time.process_time()
    [kept] = personal_data([row(f"call {told}", told.replace("+1 ", "").replace(" 555 ", "555"))], "replace")
    assert time.process_time() - started < 1
    assert kept.row.messages[1]["content"] == " and ".join(f"[PHONE_{i}]" for i in range(1, 801))


@pytest.mark.parametrize("unit", ["1 ", "4155", "415 555 ", "DE 89 ", "+1 ", "(415) ", "00 ", "1.", "a"])
def test_no_text_takes_long_where_a_number_is_looked_for(unit):
    started = time.process_time()
    list(personal_data([row("call (415) 555-2671", unit * (100_000 // len(unit)))], "replace"))
    assert time.process_time() - started < 5


def test_a_surrogate_stands_in_the_layout_of_each_place():
    texts = ["card 4532 0151 1283 0366, call (415) 555-2671", '{"card": 4532015112830366, "phone": 4155552671}']
    [kept] = personal_data([row(*texts)], "surrogate")
    assert kept.row.messages[0]["content"] == "card 4000 0000 0000 0010, call (415) 555-0101"
    assert json.loads(kept.row.answer) == {"card": 4000000000000010, "phone": 4155550101}


def test_placeholders_that_stand_there_already_are_not_given_again():
    [kept] = personal_data([row("[EMAIL_1] wrote to a@x.com", "fine")], "replace")
    assert kept.row.messages[0]["content"] == "[EMAIL_1] wrote to [EMAIL_2]"


def test_tools_their_calls_and_rejected_answers_are_cleaned_too():
    calls = [{"type": "function", "function": {"name": "mail", "arguments": {"to": ["a@x.com"], "urgent": True}}}]
    mail = {"name": "mail", "description": "Writes, as to a@x.com.", "parameters": {"maximum": 9}}
    dirty = row("hi", "sent", rejected="sent to a@x.com", tool_calls=calls)
    [kept] = personal_data([replace(dirty, tools=[{"type": "function", "function": mail}])], "replace")
    assert kept.row.tools == [{"type": "function", "function": {**mail, "description": "Writes, as to [EMAIL_1]."}}]
    assert kept.row.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL_1]"], "urgent": True}
    assert kept.row.rejected == "sent to [EMAIL_1]"


def test_the_name_of_an_argument_tells_a_password_and_it_goes_wherever_it_stands():
    calls = [{"type": "function", "function": {"name": "log_in", "arguments": {"password": "k9mP2xL7", "n": 12}}}]
    [kept] = personal_data([row("log me in with k9mP2xL7 (not xk9mP2xL7)", "done", tool_calls=calls)], "replace")
    assert kept.row.messages[0]["content"] == "log me in with [SECRET_1] (not xk9mP2xL7)"
    assert kept.row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"password": "[SECRET_1]", "n": 12}
    assert kept.row.changes == ["replaced: secret"]


def test_a_number_in_a_tool_call_stays_one_if_it_can():
    calls = [{"type": "function", "function": {"name": "pay", "arguments": {"card": 4532015112830366, "on": True}}}]
    for mode, new in (("surrogate", 4000000000000010), ("replace", "[CARD_1]")):
        [kept] = personal_data([row("pay", "", tool_calls=calls)], mode)
        assert kept.row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"card": new, "on": True}


def test_escapes_of_json_are_no_part_of_a_value():
    answer = '{"text": "Call\\n07700 912345\\nor write to:\\nanna@x.com, \\u00fcber 5.30"}'
    [kept] = personal_data([row("q", answer, rejected=answer)], "surrogate")
    assert json.loads(kept.row.answer)["text"] == "Call\n07700 900001\nor write to:\nuser1@example.com, über 5.30"
    assert kept.row.rejected == kept.row.answer


def test_lines_of_json_are_as_far_apart_as_lines():
    answer = '{"contact": "tel: 91604143\\n10115 Berlin"}'
    for mode, new in (("replace", "[PHONE_1]"), ("surrogate", "00000001")):
        [kept] = personal_data([row("q", answer)], mode)
        assert json.loads(kept.row.answer) == {"contact": f"tel: {new}\n10115 Berlin"}


def test_a_number_in_a_json_answer_is_not_replaced_by_text():
    number, text = row("q", '{"card": 4111111111111111}'), row("q", '{"card": "4111111111111111"}')
    dropped, kept = personal_data([number, text], "replace")
    assert isinstance(dropped, Dropped)
    assert dropped.row == number
    assert dropped.reason == "personal data"
    assert "number in a JSON answer" in dropped.detail
    assert json.loads(kept.row.answer) == {"card": "[CARD_1]"}


def test_the_modes_replace_drop_and_report():
    clean, dirty = row("hello", "hi"), row("a@x.com 4111111111111111", "hi")
    assert list(personal_data([clean, dirty], "drop")) == [Kept(clean), Dropped(dirty, "personal data", "card, email")]
    kept, reported = personal_data([clean, dirty], "report")
    assert kept == Kept(clean)
    assert reported.row.messages == dirty.messages
    assert reported.row.changes == ["contains: card", "contains: email"]


values = st.sampled_from(["a@x.com", "4111111111111111", "555-123-4567", "[EMAIL_1]", "word", "12/05/2024"])


@given(st.lists(values, min_size=1))
def test_replacing_is_complete_and_changes_nothing_the_second_time(words):
    [once] = personal_data([row(" and ".join(words), "fine")], "replace")
    assert find(once.row.messages[0]["content"]) == []
    assert list(personal_data([once.row], "replace")) == [once]


GOLD = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
}  # fmt: skip


def test_gold_spans_of_presidio_research(real_data):
    """Every one of six kinds, and no false find."""
    right = Counter()
    for item in json.loads((real_data / "pii/synthetic-pii-750.json").read_text()):
        spans = {
            (GOLD[s["entity_type"]], s["start_position"], s["end_position"])
            for s in item["spans"]
            if s["entity_type"] in GOLD
        }
        assert set(find(item["full_text"])) == spans, item["full_text"]
        right.update(kind for kind, _, _ in spans)
    assert right == {"card": 71, "phone": 49, "email": 25, "iban": 11, "ssn": 9, "ip": 6}


@pytest.mark.parametrize(
    "name", ["restaurant8k/train.json", "instructions/instruction-data.json", "banking77/train.csv"]
)
def test_no_false_find_in_data_without_personal_data(real_data, name):
    assert [seen(line) for line in (real_data / name).read_text().splitlines() if find(line)] == []


SURROGATES = [
    ("email", "anna@firm.de"), ("phone", "(212) 734-9921 x12"), ("phone", "+1-984-182-0190"), ("phone", "555-123-4567"),
    ("phone", "07700 912345"), ("phone", "+44 20 7031 3000"), ("phone", "06 12 34 56 78"),
    ("phone", "+46 (0)8 928 571 38"),
    ("card", "4532 0151 1283 0366"), ("card", "378734493671000"), ("card", "6304000000000000000"),
    ("iban", "GB29 NWBK 6016 1331 9268 19"), ("iban", "DE89370400440532013000"), ("ssn", "514-69-0360"),
    ("ip", "85.214.132.117"), ("ip", "2a00:1450:4001:82a::200e"), ("key", f"sk-ant-api03-{DRAWN}-AA"),
    ("key", f"-----BEGIN PRIVATE KEY-----\n{DRAWN}\n{DRAWN}\n-----END PRIVATE KEY-----"),
    ("jwt", f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NSJ9.{DRAWN}"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), SURROGATES)
def test_a_surrogate_is_another_value_of_the_same_kind_and_layout(kind, value):
    [kept] = personal_data([row(f"here: {value} .", f"again {value}", rejected=value)], "surrogate")
    new = kept.row.messages[0]["content"].removeprefix("here: ").removesuffix(" .")
    assert kept.row.messages[1]["content"] == f"again {new}"
    assert kept.row.rejected == new != value
    assert kept.row.changes == [f"replaced: {kind}"]
    if kind not in ("email", "ip", "jwt"):
        assert re.sub("[^\\W_]", "x", new) == re.sub("[^\\W_]", "x", value)
    if kind in ("email", "card", "iban", "key", "jwt"):
        assert seen(new) == [(kind, new)]


@pytest.mark.parametrize(("value", "new"), [
    ("(212) 734-9921 x12", "(212) 555-0101 x12"), ("+1-984-182-0190", "+1-984-555-0101"),
    ("07700 912345", "07700 900001"),
    ("+44 20 7031 3000", "+44 20 7946 0001"), ("06 12 34 56 78", "06 39 98 00 01"), ("030/12345678", "030/23125001"),
    ("+46 (0)8 928 571 38", "+46 (0)0 000 000 01"), ("4532015112830366", "4000000000000010"),
    ("514-69-0360", "987-65-4320"), ("0044 7911 123456", "0044 7700 900001"), ("001-518-640-0854", "001-518-555-0101"),
    ("85.214.132.117", "192.0.2.1"), ("2a00:1450:4001:82a::200e", "2001:db8::1"), ("anna@firm.de", "user1@example.com"),
])  # fmt: skip
def test_surrogates_come_from_ranges_that_are_nobodys(value, new):
    [kept] = personal_data([row(f"it is {value}", "ok")], "surrogate")
    assert kept.row.messages[0]["content"] == f"it is {new}"


@pytest.mark.parametrize("secret", ["парольпароль", "Señor-2024", "!!!!!!!!!", "---", "漢字漢字漢字漢字"])
def test_of_a_secret_in_any_letters_or_signs_nothing_is_left(secret):
    [kept] = personal_data(
        [row(f"ftp://anna:{secret}@h.org/ and ftp://berta:{secret[::-1]}x@h.org/", "ok")], "surrogate"
    )
    one, two = re.findall(":([^/:@]+)@", kept.row.messages[0]["content"])
    assert one != two
    assert not {c for c in secret if c.isalpha()} & {c for c in one + two if not c.isascii()}
    assert sum(map(str.isalnum, one)) >= 8


def test_of_a_telegram_bot_nothing_is_left():
    [kept] = personal_data([row(f"it is bot123456789:AA{DRAWN[:33]} yes", "ok")], "surrogate")
    match = re.fullmatch(r"it is bot(\d{9}):AA([\w-]{33}) yes", kept.row.messages[0]["content"])
    assert match
    assert match[1] != "123456789"
    assert match[2] != DRAWN[:33]


def test_where_a_form_has_no_other_values_a_placeholder_stands_in():
    codes = ["GB85ABCDEFGHIJKLMNOPQR", "GB20ABCDEFGHIJKLMNOPQX"]
    text = f"order 20931776, {' and '.join(codes)}"
    assert seen(text) == [("iban", code) for code in codes]
    [kept] = personal_data([row(text, "ok")], "surrogate")
    assert re.fullmatch(r"order 20931776, GB\d\dX{18} and \[IBAN_\d+\]", kept.row.messages[0]["content"])


def test_a_secret_is_the_same_wherever_it_stands():
    texts = ["password: hunter2, see ftp://anna:hunter2@h.org/", "fine"]
    [kept] = personal_data([row(*texts)], "surrogate")
    text = kept.row.messages[0]["content"]
    new = text.removeprefix("password: ").partition(",")[0]
    assert text == f"password: {new}, see ftp://anna:{new}@h.org/"
    assert new != "hunter2"
    [replaced] = personal_data([row(*texts)], "replace")
    assert replaced.row.messages[0]["content"] == "password: [SECRET_1], see ftp://anna:[SECRET_1]@h.org/"


def test_a_surrogate_is_no_value_that_the_row_holds():
    [kept] = personal_data(
        [row("USER1@example.com and 192.0.2.1 wrote to b@x.com from 85.214.132.117", "ok")], "surrogate"
    )
    text = kept.row.messages[0]["content"]
    assert text == "user2@example.com and 192.0.2.1 wrote to user3@example.com from 192.0.2.2"


def test_json_answers_stay_json_with_surrogates():
    answer = '{"card": 4532015112830366, "to": "a@x.com", "password": "hunter2", "phone": 2127349921}'
    [kept] = personal_data([row("q", answer)], "surrogate")
    new = json.loads(kept.row.answer)
    assert (new["card"], new["to"], new["phone"]) == (4000000000000010, "user1@example.com", 2125550101)
    assert new["password"] != "hunter2"


@given(st.lists(st.sampled_from([value for _, value in SURROGATES] + ["word", "password: q1!x9b"]), min_size=1))
def test_no_value_is_left_where_surrogates_stand(words):
    text = " and ".join(words)
    [kept] = personal_data([row(text, "fine")], "surrogate")
    new = kept.row.messages[0]["content"]
    assert not any(text[start:end] in new for _, start, end in find(text))
    assert len({new[start:end] for _, start, end in find(new)}) <= len(
        {text[start:end] for _, start, end in find(text)}
    )


OWN = """
def find(text):
    return [("person", text.index(n), text.index(n) + len(n)) for n in ("Anna Berg", "firm") if n in text]
"""


def test_a_finder_of_the_projects_own_adds_kinds(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    for mode in ("replace", "surrogate"):
        [kept] = personal_data([row("I am Anna Berg", "Hello Anna Berg of a@firm.de")], mode, path)
        email = {"replace": "[EMAIL_1]", "surrogate": "user1@example.com"}[mode]
        assert [m["content"] for m in kept.row.messages] == ["I am [PERSON_1]", f"Hello [PERSON_1] of {email}"]
        assert kept.row.changes == ["replaced: email", "replaced: person"]
    [reported] = personal_data([row("I am Anna Berg", "hi")], "report", path)
    assert reported.row.changes == ["contains: person"]


def test_what_a_finder_sees_around_another_find_is_not_left(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def find(text): return [('address', 0, text.find(' thanks')), ('x', 0, 4)] if 'thanks' in text else []"
    )
    [kept] = personal_data([row("Anna Berg <anna@x.com>, tel. 030 1234567 (Main St) thanks", "ok")], "replace", path)
    assert kept.row.messages[0]["content"] == "[ADDRESS_1] <[EMAIL_1]>, [ADDRESS_2]. [PHONE_1] ([ADDRESS_3]) thanks"


@pytest.mark.parametrize(("code", "why"), [
    ("def find(text): return 5", "returned 5"), ("def find(text): return [('a', 0, 99)]", "returned [(a text, 0, 99)]"),
    ("def find(text): return {text: 1}", "returned a dict"), ("def find(text): return ['Anna'] * 9", "a text, ...]"),
    ("def find(text): return [('a', 1, 1)]", "returned"), ("def find(text): return [(0, 0, 1)]", "returned"),
    ("def find(text): return [('[x]', 0, 1)]", "returned"), ("def find(text): return text.a", "AttributeError"),
    ("find = 3", "on each text"), ("1 / 0", "ZeroDivisionError"),
])  # fmt: skip
def test_a_finder_that_cannot_be_used_is_a_config_error(code, why, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(code)
    with pytest.raises(ConfigError) as refusal:
        list(personal_data([row("hello", "hi")], "report", path))
    assert why in refusal.value.why
    assert "Anna" not in refusal.value.why
    assert refusal.value.next
