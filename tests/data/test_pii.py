"""Personal data: what is found, what must never be, and what becomes of it."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.pii import find, personal_data


def row(*contents: str, rejected: str | None = None, **last: object) -> Row:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents)]
    messages[-1].update(last)
    return Row(messages, "a.jsonl", 1, "messages", rejected=rejected)


def seen(text: str) -> list[tuple[str, str]]:
    return [(kind, text[start:end]) for kind, start, end in find(text)]


@pytest.mark.parametrize(("kind", "value"), [
    ("email", "anna.berg+shop@mail.example.co.uk"), ("email", "müller@beispiel.de"), ("email", "A_B@x-y.org"),
    ("phone", "+49 30 1234567"), ("phone", "+15551234567"), ("phone", "+1 (555) 123-4567"),
    ("phone", "+46 (0)8 928 571 38"), ("phone", "001-518-640-0854"), ("phone", "(555) 123-4567"),
    ("phone", "555-123-4567"), ("phone", "555.123.4567 x12"),
    ("phone", "1-800-555-0199"), ("phone", "020 7946 0958"), ("phone", "(020) 7946 0958"), ("phone", "07700 900123"),
    ("phone", "07700900123"), ("phone", "030/1234567"), ("phone", "0171 1234567"), ("phone", "06 12 34 56 78"),
    ("phone", "03.93.92.16.85"), ("phone", "0412 345 678"),
    ("card", "4111111111111111"), ("card", "4111 1111 1111 1111"), ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"), ("card", "3782 822463 10005"), ("card", "4222222222222"),
    ("card", "6304000000000000000"),
    ("iban", "DE89370400440532013000"), ("iban", "GB29 NWBK 6016 1331 9268 19"), ("iban", "gb29nwbk60161331926819"),
    ("iban", "FR14 2004 1010 0505 0001 3M02 606"), ("iban", "NO9386011117947"),
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
    "4111111111111112", "4111 1111 1111 1112", "GB29 NWBK 6016 1331 9268 18", "XX29 NWBK 6016 1331 9268 19",
    "01 02 03 04 05", "10 20 30 40 50 60 70 80", "100 200 300 4000 500", "0123 4567 8901 2345", "phone 2023-2024",
    "phone 10:30-11:45", "call me on 12/05/2024", "phone: 1 000 000", "git@github.com:org/repo.git", "icon@2x.png",
    "a@b.transpose()", "@app.route", "x@y", "[EMAIL_1] or [PHONE_2]",
])  # fmt: skip
def test_other_numbers_and_codes_are_left_alone(text):
    assert seen(text) == []


@pytest.mark.parametrize("text", [
    "tel. 5551234", "My mobile is 5551234567", '"phone_number": "612 345 678"', "Fax: 262-3773",
])  # fmt: skip
def test_the_word_before_it_tells_a_phone_number_of_any_form(text):
    assert [kind for kind, _ in seen(text)] == ["phone"]


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
    assert all(kind == "email" or sum(c.isdigit() for c in text[start:end]) >= 7 for kind, start, end in found)


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


def test_placeholders_that_stand_there_already_are_not_given_again():
    [kept] = personal_data([row("[EMAIL_1] wrote to a@x.com", "fine")], "replace")
    assert kept.row.messages[0]["content"] == "[EMAIL_1] wrote to [EMAIL_2]"


def test_tool_calls_and_rejected_answers_are_cleaned_too():
    calls = [{"type": "function", "function": {"name": "mail", "arguments": {"to": ["a@x.com"], "urgent": True}}}]
    [kept] = personal_data([row("hi", "sent", rejected="sent to a@x.com", tool_calls=calls)], "replace")
    assert kept.row.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL_1]"], "urgent": True}
    assert kept.row.rejected == "sent to [EMAIL_1]"


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


def test_gold_spans_of_presidio_research(real_data):
    """Every e-mail address and IBAN, 4 of 5 phone numbers of all countries, cards from 13 digits on; no false find."""
    kinds = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban"}
    right, gold = Counter(), Counter()
    for item in json.loads((real_data / "pii/synthetic-pii-750.json").read_text()):
        spans = {
            (kinds[s["entity_type"]], s["start_position"], s["end_position"])
            for s in item["spans"]
            if s["entity_type"] in kinds
        }
        found = set(find(item["full_text"]))
        assert found <= spans, item["full_text"]
        gold.update(kind for kind, _, _ in spans)
        right.update(kind for kind, _, _ in found)
    assert gold == {"card": 71, "phone": 49, "email": 25, "iban": 11}
    assert right == {"card": 66, "phone": 41, "email": 25, "iban": 11}


@pytest.mark.parametrize(
    "name", ["restaurant8k/train.json", "instructions/instruction-data.json", "banking77/train.csv"]
)
def test_no_false_find_in_data_without_personal_data(real_data, name):
    assert [seen(line) for line in (real_data / name).read_text().splitlines() if find(line)] == []
