"""Plain JSON values: nothing is lost on the way in, and what JSON cannot hold is refused."""

import datetime
import json
import math
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.reading.values import Unusable, advice, compact, decode, plain, plain_record, repaired, seconds

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=8,
)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 12345678901234567890123])
def test_whole_numbers_keep_their_last_digit(number):
    assert decode(json.dumps({"n": number})) == {"n": number}


@given(VALUES)
def test_decode_reads_what_json_writes(value):
    read = decode(json.dumps(value))
    assert json.dumps(read) == json.dumps(json.loads(json.dumps(value)))


@given(VALUES)
def test_plain_values_can_be_written(value):
    notes: list[str] = []
    text = compact(plain(value, notes))
    text.encode()
    assert math.nan is not value or notes


@pytest.mark.parametrize(("text", "fixed"), [
    ("a\ud83d\ude00b", "a😀b"), ("a\ud83db", "a\ufffdb"), ("\ude00\ud83d", "\ufffd\ufffd"), ("héllo", "héllo"),
])  # fmt: skip
def test_lone_surrogates_are_replaced_and_pairs_joined(text, fixed):
    assert repaired(text) == fixed
    notes: list[str] = []
    assert plain({"k": text}, notes) == {"k": fixed}
    assert bool(notes) == (text != fixed)


def test_foreign_values():
    assert plain({1: (datetime.date(2024, 2, 3), Decimal("1.10"))}, []) == {"1": ["2024-02-03", "1.10"]}
    notes: list[str] = []
    assert plain([math.nan, -math.inf, 1.5], notes) == [None, None, 1.5]
    assert set(notes) == {"NaN or Infinity read as null"}
    for value, reason in ((b"\xff", "JSON cannot hold"), ({1, 2}, "JSON cannot hold"), (10**5000, "too long")):
        with pytest.raises(Unusable, match=reason):
            plain(value, [])


def test_depth_ends_in_a_reason():
    endless: list = []
    endless.append(endless)
    for value in (endless, decode("[" * 150 + "]" * 150)):
        with pytest.raises(Unusable, match="nested too deeply"):
            plain(value, [])
    with pytest.raises(Unusable, match="nested too deeply"):
        decode("[" * 100_000)
    orjson.dumps(plain(decode("[" * 100 + "]" * 100), []))


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("at", [946_684_800, 1_769_860_800, 4_102_444_799])
def test_a_time_of_this_century_may_be_in_finer_units(at, per_second):
    assert seconds(at * per_second) == seconds(str(at * per_second)) == at


@pytest.mark.parametrize("number", [10**11, 5 * 10**11, 10**13, 10**14, 10**16, 10**17, 10**19])
def test_any_other_number_keeps_its_order(number):
    before, itself, behind = map(seconds, (number - number // 10**6, number, number + number // 10**6))
    assert itself == number
    assert before < itself < behind


PICTURE, DURATION = {"bytes": b"\x89PNG", "path": "a.png"}, datetime.timedelta(1)


def test_bytes_that_are_utf_8_are_text():
    assert plain({"prompt": "é".encode(), "parts": [b"a"]}, []) == {"prompt": "é", "parts": ["a"]}


@pytest.mark.parametrize(("value", "kind"), [(PICTURE, "bytes"), ([PICTURE], "bytes"), (DURATION, "timedelta")])
def test_a_column_that_json_cannot_hold_is_left_out_or_told_by_its_name(value, kind):
    record, notes = {"prompt": "p", "shown": value}, []
    assert plain_record(record, {"prompt"}, notes) == {"prompt": "p"}
    assert notes == [f"column of {kind} left out"]
    assert plain_record(record, None, []) == record
    with pytest.raises(Unusable, match="a value that JSON cannot hold") as refusal:
        plain_record(record, {"shown"}, [])
    assert refusal.value.fix == f"write the {kind} in `shown` as text, number, list or object"


@pytest.mark.parametrize(("text", "fix"), [
    ("{'a': 1}", "double quotes (column 2)"), ('{"a": 1,}', "take out the comma before column 9"),
    ('{"a": [1,]}', "take out the comma before column 10"), ('{"a": 1', "stops in the middle"),
    ('{"a": "b', "close the text that begins at column 7"), ('{"a": 1} // x', "comment at column 10"),
    ('{"a": 1},\n', "take out the comma at column 9"), ('{"a": "b\0c"}', "the NUL bytes at column 9"),
    ("\0\0", "the NUL bytes at column 1"), ('\ufeff{"a": 1}', "the byte order mark (U+FEFF) at column 1"),
    ('{"a": 1} {}', "on a line of its own"),
    ('{"a": "b\tc"}', "as \\n and \\t (column 9)"), ('{"a": b}', "mend column 7"), ("{\n/* */}", "line 2, column 1"),
])  # fmt: skip
def test_json_faults_are_told_with_their_place(text, fix):
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads(text)
    assert fix in advice(text, error.value)
    with pytest.raises(Unusable, match="not valid JSON"):
        decode(text)
