"""Empty answers, JSON answers, answers under a schema."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.cleaning import answers

TICKET = {"type": "object", "properties": {"urgency": {"enum": ["low", "high"]}}, "required": ["urgency"]}


def row(answer: str, **last: object) -> Row:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **last}]
    return Row(messages, "a.jsonl", 1, "messages")


def schema(folder: Path, content: object) -> Path:
    (folder / "schema.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "schema.json"


@pytest.mark.parametrize("answer", ["", " \n\t", "\u200b\ufeff", "\u00a0"])
def test_an_answer_in_which_nothing_can_be_seen_is_empty(answer):
    assert list(answers.empty([row(answer)])) == [Dropped(row(answer), "empty answer")]


@pytest.mark.parametrize("kept", [row("0"), row(" .\n"), row("", tool_calls=[{"function": {"name": "f"}}])])
def test_an_answer_that_says_or_calls_something_is_kept(kept):
    assert list(answers.empty([kept])) == [Kept(kept)]


@pytest.mark.parametrize("answer", ['{"a": 1}', " [1, 2]\n", "null", '"text"', "-0.5e3"])
def test_json_passes_unchanged(answer):
    assert list(answers.json_answers([row(answer)])) == [Kept(row(answer))]


@pytest.mark.parametrize("answer", [
    "{'a': 1}", '{"a": 1,}', '{"a": 1} and more', "NaN", '{"a": Infinity}', "1e999", "01", "", "yes", r'"\ud800"',
    "[" * 5000 + "]" * 5000, "\ufeff1", "```json\n{'a': 1}\n```", "Here:\n```json\n{}\n```",
], ids=lambda text: text[:24])  # fmt: skip
def test_what_is_not_json_is_dropped_with_the_place_of_the_fault(answer):
    [result] = answers.json_answers([row(answer)])
    assert isinstance(result, Dropped)
    assert result.reason == "answer is not JSON"
    assert "line 1 column" in result.detail


@pytest.mark.parametrize("fenced", ['```json\n{"a": 1}\n```', '\n```\n{"a": 1}\n\n```\n', '```JSON \n{"a": 1}```'])
def test_a_code_fence_around_json_is_taken_off_and_noted(fenced):
    [result] = answers.json_answers([row(fenced)])
    assert isinstance(result, Kept)
    assert result.row.answer == '{"a": 1}'
    assert result.row.changes == ["JSON taken out of a code fence"]
    assert result.row.prompt == row(fenced).prompt


finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_whatever_json_writes_is_json(value):
    assert isinstance(next(answers.json_answers([row(json.dumps(value))])), Kept)


def test_an_answer_that_breaks_the_schema_is_dropped_with_path_and_message(tmp_path):
    path = schema(tmp_path, TICKET)
    good, wrong, missing = row('{"urgency": "low"}'), row('{"urgency": "soon"}'), row("{}")
    kept, bad_value, no_value = answers.follows_schema([good, wrong, missing], path)
    assert kept == Kept(good)
    assert bad_value == Dropped(wrong, "answer breaks the schema", "$.urgency: 'soon' is not one of ['low', 'high']")
    assert no_value == Dropped(missing, "answer breaks the schema", "$: 'urgency' is a required property")


def test_a_long_message_is_shortened_to_its_end(tmp_path):
    [dropped] = answers.follows_schema([row(json.dumps("x" * 5000))], schema(tmp_path, {"type": "object"}))
    assert len(dropped.detail) < 250
    assert dropped.detail.endswith("is not of type 'object'")


def test_text_under_a_schema_is_not_json(tmp_path):
    [dropped] = answers.follows_schema([row("yes")], schema(tmp_path, TICKET))
    assert dropped.reason == "answer is not JSON"


def test_the_schema_names_its_draft(tmp_path):
    """`dependencies` is a keyword of draft 7 and of no meaning in 2020-12, the default."""
    rule = {"dependencies": {"card": ["owner"]}}
    old = {"$schema": "http://json-schema.org/draft-07/schema#", **rule}
    assert isinstance(next(answers.follows_schema([row('{"card": 1}')], schema(tmp_path, old))), Dropped)
    assert isinstance(next(answers.follows_schema([row('{"card": 1}')], schema(tmp_path, rule))), Kept)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"type": ', "cannot be read as JSON"),
        ({"type": "objekt"}, "no valid JSON Schema"),
        ([1], "no valid JSON Schema"),
        ({"$ref": "https://example.com/ticket.json"}, "refers to something that is not in it"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(tmp_path, content, what):
    with pytest.raises(ConfigError, match=what) as caught:
        list(answers.follows_schema([row("{}")], schema(tmp_path, content)))
    assert "schema.json" in caught.value.what
    assert caught.value.why
    assert caught.value.next


def test_a_schema_that_is_gone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        list(answers.follows_schema([row("{}")], tmp_path / "gone.json"))
