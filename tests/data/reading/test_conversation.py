"""Turns of any dialect as the canonical conversation."""

import pytest

from tunesmith.data.reading.conversation import canonical, message
from tunesmith.data.reading.values import Unusable

SYSTEM, USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
TOOL = {"role": "tool", "content": "t"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL_TEXT = '{"name": "f", "arguments": {"x": 1}}'
CALLING = {"role": "assistant", "content": CALL_TEXT, "tool_calls": [CALL]}


def test_system_messages_are_joined_once_each():
    other = {"role": "developer", "content": "d"}
    assert canonical([SYSTEM, other, SYSTEM, USER, ASSISTANT], []) == [
        {"role": "system", "content": "s\n\nd"},
        USER,
        ASSISTANT,
    ]


@pytest.mark.parametrize(("tail", "notes"), [
    ([USER], ["trailing user turn removed"]),
    ([TOOL], ["trailing tool turn removed"]),
    ([TOOL, USER], ["trailing user turn removed", "trailing tool turn removed"]),
])  # fmt: skip
def test_what_stands_behind_the_last_answer_is_cut(tail, notes):
    found: list[str] = []
    assert canonical([USER, ASSISTANT, *tail], found) == [USER, ASSISTANT]
    assert found == notes


@pytest.mark.parametrize("unlearnt", [{"weight": 0}, {"weight": 0.0}, {"learnt": False}])
def test_an_answer_of_weight_0_is_not_learnt(unlearnt):
    wrong, marked = {**ASSISTANT, **unlearnt}, {**ASSISTANT, "learnt": False}
    assert canonical([USER, wrong, {**USER, "weight": 0}, {**ASSISTANT, "weight": 1}], []) == [
        USER,
        marked,
        USER,
        ASSISTANT,
    ]
    notes: list[str] = []
    assert canonical([USER, ASSISTANT, USER, wrong], notes) == [USER, ASSISTANT]
    assert notes == ["trailing assistant turn removed", "trailing user turn removed"]
    assert message({**CALLING, **unlearnt}, []) == {**CALLING, "learnt": False}
    with pytest.raises(Unusable, match="no answer is learnt"):
        canonical([USER, wrong], [])


@pytest.mark.parametrize(("turns", "reason"), [
    ([], "conversation is empty"),
    ([USER], "no assistant message"),
    ([SYSTEM, USER], "no assistant message"),
    ([ASSISTANT], "no user message"),
    ([ASSISTANT, USER], "no user message"),
    ([USER, SYSTEM, ASSISTANT], "system message is not first"),
    ([USER, ASSISTANT, SYSTEM], "system message is not first"),
    ([USER, USER, ASSISTANT], "two messages of one role in a row"),
    ([USER, ASSISTANT, ASSISTANT], "two messages of one role in a row"),
])  # fmt: skip
def test_orders_that_cannot_be_learnt_from(turns, reason):
    with pytest.raises(Unusable) as refusal:
        canonical(turns, [])
    assert refusal.value.reason == reason
    assert refusal.value.fix


def test_calls_and_results_may_follow_one_another():
    conversation = [USER, CALLING, CALLING, TOOL, TOOL, ASSISTANT]
    assert canonical(conversation, []) == conversation


@pytest.mark.parametrize("turn", [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", **CALL}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
    {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
    {"from": "function_call", "value": '{"name":"f","arguments":{"x":1}}'},
    {"from": "function_call", "value": {"name": "f", "arguments": {"x": 1}}},
])  # fmt: skip
def test_every_dialect_of_a_tool_call(turn):
    assert message(turn, []) == CALLING


def test_what_is_said_beside_a_call_and_several_calls_stay():
    calls = [CALL, {"type": "function", "function": {"name": "g", "arguments": {}}}]
    assert message({"role": "assistant", "content": "so: ", "tool_calls": calls}, [])["content"] == (
        f'so:\n[{CALL_TEXT}, {{"name": "g", "arguments": {{}}}}]'
    )


def test_a_call_that_is_no_json_stays_as_text():
    assert message({"from": "function_call", "value": "f(x=1)"}, []) == {"role": "assistant", "content": "f(x=1)"}


def test_answers_are_stripped_and_prompts_are_not():
    notes: list[str] = []
    assert message({"role": "assistant", "content": "\n a "}, notes)["content"] == "a"
    assert message({"role": "user", "content": "\n a "}, notes)["content"] == "\n a "
    assert notes == ["white space around an answer removed"]


def test_text_parts_are_joined():
    notes: list[str] = []
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    assert message({"role": "user", "content": parts}, notes)["content"] == "a\nb\nc"
    assert notes == ["content parts joined by line breaks"]
    with pytest.raises(Unusable, match="not text only") as refusal:
        message({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, [])
    assert refusal.value.fix == "take out the part of type `image_url`: rows hold text alone"


@pytest.mark.parametrize(("role", "advice"), [
    ("asistant", "write `assistant`"), ("usr", "write `user`"), ("Sytem", "write `system`"),
    ("narrator", "write system, user, assistant or tool"), (5, "write system, user, assistant or tool"),
])  # fmt: skip
def test_an_unknown_role_is_told_the_nearest(role, advice):
    with pytest.raises(Unusable, match="unknown role") as refusal:
        message({"role": role, "content": "x"}, [])
    assert refusal.value.fix == f"{advice} instead of the role `{role}`"


@pytest.mark.parametrize(("turn", "reason", "fix"), [
    ("hi", "message is not an object", "a text"),
    ({"text": "x"}, "message without a role", "`text`"),
    ({}, "message without a role", "no keys"),
    ({"role": "user", "text": "x"}, "message without content", "`role`, `text`"),
    ({"role": "assistant", "content": None}, "message content is null", "`content`"),
    ({"from": "gpt", "value": None}, "message content is null", "`value`"),
    ({"role": "user", "content": {"a": 1}}, "message content is not text", "an object"),
    ({"role": "assistant", "content": None, "tool_calls": [{"f": 1}]}, "tool call cannot be read", '"function"'),
])  # fmt: skip
def test_messages_that_cannot_be_read(turn, reason, fix):
    with pytest.raises(Unusable) as refusal:
        message(turn, [])
    assert refusal.value.reason == reason
    assert fix in refusal.value.fix
