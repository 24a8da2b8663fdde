"""Text repair: what is mended, what scripts, emoji, code and JSON need, and that whatever is well stays as it is."""

import csv
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.core.records import Kept, Row
from tunesmith.data.cleaning.repair import mend, repaired


def row(prompt: str, answer: str, **more: object) -> Row:
    last = {"role": "assistant", "content": answer, **more}
    return Row([{"role": "user", "content": prompt}, last], "a.jsonl", 1, "messages")


def mended(text: str) -> tuple[str, list[str]]:
    notes: dict[str, None] = {}
    return repaired(text, notes), list(notes)


@pytest.mark.parametrize(("broken", "whole", "kind"), [
    ("schÃ¶n", "schön", "mojibake"), ("donâ€™t", "don’t", "mojibake"), ("Ã  la carte", "à la carte", "mojibake"),
    ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет", "mojibake"), ("ðŸ˜€", "😀", "mojibake"), ("only Â£5 for é", "only £5 for é", "mojibake"),
    ("well\n\nschÃ¶n\nwell: é", "well\n\nschön\nwell: é", "mojibake"),
    ("\ufeffhello", "hello", "byte order mark"), ("he\ufeffllo", "hello", "invisible characters"),
    ("pass\u200bword", "password", "invisible characters"), ("soft\u00adhyphen", "softhyphen", "invisible characters"),
    ("a\u202eb", "ab", "invisible characters"), ("hi\U000e0041\U000e0042", "hi", "invisible characters"),
    ("a\u180eb", "ab", "invisible characters"),
    ("x\ufe0f", "x", "invisible characters"), ("a\u200d b", "a b", "invisible characters"),
    ("a\x00b\x07", "ab", "control characters"), ("\x1b[1;31mred\x1b[0m", "red", "control characters"),
    ("one\u2028two\x0bthree", "one\ntwo\nthree", "control characters"), ("a\x81b", "ab", "control characters"),
    ("cafe\u0301", "café", "Unicode form"), ("10 \u212b", "10 Å", "Unicode form"),
])  # fmt: skip
def test_what_is_broken_is_mended_and_named(broken, whole, kind):
    assert mended(broken) == (whole, [kind])
    assert mended(whole) == (whole, [])


@pytest.mark.parametrize("text", [
    "plain", "tab\tand\r\nlines", "“curled” ‘quotes’ and \"straight\" ones", "&amp; &lt;b&gt; &#39;",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁ",
    "Ångström, naïve café, SÃO PAULO, L’ÉTÉ…", "日本語のテキスト", "Привет, мир", "½ × 3 ≈ 1.5 €",
    "می\u200cخواهم", "क\u094d\u200dष", "ශ\u0dca\u200dර", "ภาษา\u200bไทย", "שלום \u200fabc",
    "ᠬᠠᠷ\u180eᠠ", "ꦏ\ua9c0\u200dꦱ", "ᬓ\u1b44\u200cᬱ",
    "👨\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "❤\ufe0f",
    "1\ufe0f⃣", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "葛\U000e0100", "👍🏽",
])  # fmt: skip
def test_what_is_well_stays(text):
    assert mended(text) == (text, [])


def test_code_stays_and_the_prose_around_it_is_mended():
    code = "```python\nx = 'â€™'\u200b\n```"
    assert mended(f"donâ€™t\n{code}\nor `schÃ¶n` schÃ¶n") == (f"don’t\n{code}\nor `schÃ¶n` schön", ["mojibake"])
    assert mended("see ```\nschÃ¶n") == ("see ```\nschÃ¶n", [])


def test_json_stays_json_with_its_keys():
    text = '{ "clÃ©" : "schÃ¶n \\"x\\"\\n", "b\u200b": ["\\u200bc", 1.50, {"d": "sch\\u00c3\\u00b6n"}] }'
    new, kinds = mended(text)
    assert new == '{ "clÃ©" : "schön \\"x\\"\\n", "b\u200b": ["c", 1.50, {"d": "schön"}] }'
    assert kinds == ["mojibake", "invisible characters"]
    assert mended('"sch\\u00f6n"') == ('"sch\\u00f6n"', [])


def test_every_text_of_a_row_is_mended_and_each_kind_noted_once():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"q\u200b": ["schÃ¶n"]}}}]
    broken = row("a\u200b", "b\u200b schÃ¶n", tool_calls=calls)
    [kept] = mend([broken])
    assert [m["content"] for m in kept.row.messages] == ["a", "b schön"]
    assert kept.row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"q\u200b": ["schön"]}
    assert kept.row.changes == ["repaired: invisible characters", "repaired: mojibake"]
    rejected = Row(broken.messages[:1], "a.jsonl", 1, "messages", rejected="schÃ¶n")
    assert next(mend([rejected])).row.rejected == "schön"


def test_a_row_that_is_well_is_the_same_row():
    well = row("a", "“b”")
    [kept] = mend([well])
    assert kept == Kept(well)
    assert kept.row is well


PIECES = st.sampled_from(
    ["schÃ¶n", "\u200b", "\u200d", "👩", "\ufe0f", "a", " ", "e\u0301", "\x00", "ไ", "م", "`", "\n", "\ufeff"]
)


@given(st.lists(PIECES).map("".join))
@example("\ufe0f\u200d👩")
def test_the_second_time_changes_nothing(text):
    once, _ = mended(text)
    assert mended(once) == (once, [])


VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=8) | PIECES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | PIECES, inner, max_size=3),
)


@given(VALUES, st.booleans())
def test_json_of_any_kind_stays_json_with_the_same_keys(value, escaped):
    def keys(value):
        if isinstance(value, dict):
            return [(key, keys(inner)) for key, inner in value.items()]
        return [keys(inner) for inner in value] if isinstance(value, list) else None

    new = json.loads(mended(json.dumps(value, ensure_ascii=escaped))[0])
    assert keys(new) == keys(value) or isinstance(value, str)


@pytest.mark.parametrize(
    "name", ["banking77/train.csv", "restaurant8k/train.json", "instructions/instruction-data.json"]
)
def test_real_data_without_faults_stay_as_they_are(real_data, name):
    with open(real_data / name, newline="", encoding="utf-8") as file:
        texts = [r["text"] for r in csv.DictReader(file)] if name.endswith("csv") else file.read().splitlines()
    changed = [text for text in texts if mended(text)[0] != text]
    assert changed == []
