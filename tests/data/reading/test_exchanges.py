"""Request logs: the answer becomes the last message, tool calls stay, and each way to fail has its own reason."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import store
from tunesmith.core.data_section import Fields, Source
from tunesmith.data import load
from tunesmith.data.reading import exchanges, shapes
from tunesmith.data.reading.values import Unusable, plain_record

P, C = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
REQUEST = {"model": "m", "messages": [P], "temperature": 0}


def said(message: Any = C, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": {}, **more}


def read(record: Any) -> shapes.Conversation:
    return shapes.read(record, None, None, [])


@pytest.mark.parametrize(
    "record",
    [
        {"request": REQUEST, "response": said()},
        {"time": 1, "request": json.dumps(REQUEST), "response": json.dumps(said())},
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST,
         "response": {"status_code": 200, "request_id": "r", "body": said()}, "error": None},
        {"request": {"body": REQUEST, "method": "POST"}, "response": {"status_code": 200, "body": said()}},
        {"input": {"messages": [P]}, "output": said()},
        {"input": [P], "output": said()},
        {"input": [P], "output": C, "metadata": {}},
        {"input": {"messages": [P]}, "output": "c"},
        {**REQUEST, **said()},
        {"messages": [P], "response": said()},
        {"messages": [P], "response": "c"},
        {"request": {"model": "m", "prompt": "p"}, "response": {"choices": [{"text": " c", "finish_reason": "stop"}]}},
        {"request": {"model": "m", "input": "p"}, "response": {"status": "completed", "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]}]}},
        {"request": REQUEST, "response": {"role": "assistant", "content": [{"type": "text", "text": "c"}],
                                          "stop_reason": "end_turn"}},
        {"request": REQUEST, "response": {"message": C, "done": True}},
    ],
)  # fmt: skip
def test_one_exchange_in_every_form_is_the_same_conversation(record: dict[str, Any]) -> None:
    found = read(record)
    assert (found.shape, found.messages, found.tools) == ("exchange", [P, C], [])


def test_tools_calls_and_their_results_stay() -> None:
    messages = [P, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "found"}]
    called = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    found = read({"request": {"messages": messages, "tools": [TOOL]}, "response": said(called, "tool_calls")})
    function = {"name": "look", "arguments": {"at": "x"}}
    assert found.tools == [TOOL]
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert [call["function"] for call in found.messages[-1]["tool_calls"]] == [function] * 2
    items = [P, {"type": "function_call", "name": "look", "arguments": '{"at": "x"}', "call_id": "1"},
             {"type": "function_call_output", "call_id": "1", "output": "found"}]  # fmt: skip
    answer = [{"type": "function_call", "name": "look", "arguments": '{"at": "x"}'}] * 2
    again = read({"request": {"input": items, "tools": [TOOL]}, "response": {"output": answer}})
    assert (again.messages, again.tools) == (found.messages, found.tools)


def test_older_functions_and_instructions() -> None:
    request = {"input": "p", "instructions": "Be kind.", "functions": [TOOL["function"]]}
    found = read({"request": request, "response": said({"content": "c"})})
    assert found.messages == [{"role": "system", "content": "Be kind."}, P, C]
    assert found.tools == [TOOL]


def test_of_several_choices_the_first_is_taken_and_told() -> None:
    choices = [{"message": {"role": "assistant", "content": text}} for text in "cde"]
    found = read({"request": REQUEST, "response": {"choices": choices}})
    assert (found.messages[-1], found.notes) == (C, ["first of several choices taken"])


FAILED = [
    ("request failed", {"request": REQUEST, "response": {"error": {"message": "Rate limit", "code": 429}}}),
    ("request failed", {"request": REQUEST, "response": None, "error": "timeout"}),
    ("request failed", {"body": REQUEST, "response": {"status_code": 500, "body": {}}}),
    ("request failed", {"input": [P], "output": {"error": "x"}}),
    ("request without a response", {"request": REQUEST}),
    ("request without a response", {"request": REQUEST, "response": None}),
    ("request failed", {"request": json.dumps(REQUEST), "response": "Internal Server Error", "status_code": "500"}),
    ("request failed", {"request": REQUEST, "response": "Too many", "status_code": 429.0}),
    ("response without choices", {"request": REQUEST, "response": {"choices": []}}),
    ("response without choices", {"request": {"input": "p"}, "response": {"output": [{"type": "reasoning"}]}}),
    ("answer was cut off", {"request": REQUEST, "response": said(finish="length")}),
    ("answer was cut off", {"request": REQUEST, "response": {"content": "c", "stop_reason": "max_tokens"}}),
    ("answer was cut off", {"request": {"input": "p"}, "response": {
        "incomplete_details": {"reason": "max_output_tokens"}, "output": [{"type": "message", "content": "c"}]}}),
    ("answer was cut off", {"request": {"input": "p"}, "response": {
        "status": "incomplete", "output": [{"type": "message", "content": "c"}]}}),
    ("answer was cut off", {"request": REQUEST, "response": {"status_code": 200, "body": {
        "status": "cancelled", "output": [{"type": "message", "content": "c"}]}}}),
    ("answer was cut off", {"request": REQUEST, "response": said(finish="MAX_TOKENS")}),
    ("answer was cut off", {"request": REQUEST, "response": {"message": C, "done": True, "done_reason": "length"}}),
    ("answer was cut off", {"messages": [P], "response": "c", "finish_reason": "length"}),
    ("answer was cut off", {"request": REQUEST, "response": "c", "finish_reason": "length"}),
    ("answer was filtered", {"request": REQUEST, "response": said(finish="content_filter")}),
    ("answer is a refusal", {"request": REQUEST, "response": said({"content": None, "refusal": "I cannot."})}),
    ("response is a piece of a stream", {"request": REQUEST, "response": {"choices": [{"delta": {"content": "c"}}]}}),
    ("response without a message", {"request": REQUEST, "response": {"choices": [{"message": "c"}]}}),
    ("message content is null", {"request": REQUEST, "response": said({"content": None})}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "record"), FAILED)
def test_each_failure_has_its_reason(reason: str, record: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as refusal:
        read(record)
    assert refusal.value.reason == reason
    assert refusal.value.fix


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        ("columns", {"input": "p", "output": "c"}),
        ("columns", {"input": ["data"], "output": {"message": "x", "content": "y"}}),
        ("columns", {"input": "p", "output": {"choices": ["red", "green"]}}),
        ("columns", {"input": [P], "output": {"text": "structured"}}),
        ("alpaca", {"instruction": "i", "input": "p", "output": '{"content": "c"}'}),
        ("prompt_completion", {"prompt": "p", "response": '{"error": "none"}'}),
        ("alpaca", {"instruction": "Translate.", "input": '{"prompt": "p"}', "output": "c"}),
        ("columns", {"question": "Which is it?", "input": {"prompt": "p"}, "answer": "c", "output": None}),
        ("messages", {"messages": [P, C], "response": "another"}),
        ("messages", {"messages": [P, C], "choices": ["red", "green"]}),
        ("kto", {"messages": [P, C], "label": True}),
    ],
)
def test_what_is_no_log_is_read_as_before(shape: str, record: dict[str, Any]) -> None:
    assert read(record).shape == shape


def test_a_log_file_comes_to_rows_and_counted_failures(tmp_path: Path) -> None:
    good = [{"request": {"messages": [{**P, "content": f"p{i}"}]}, "response": said()} for i in range(20)]
    records = [*good, *(record for _, record in FAILED)]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "out").mkdir()
    summary = load.run([Source.model_validate({"path": str(path)})], None, 0.9, tmp_path / "out")
    assert summary["shapes"] == {"exchange": 20}
    assert summary["reasons"] == dict(Counter(reason for reason, _ in FAILED).most_common())
    assert len(list(store.read_jsonl(tmp_path / "out/quarantine.jsonl"))) == len(FAILED)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from([
            "messages", "role", "content", "choices", "message", "body", "error", "output", "type", "text", "delta",
            "input", "status_code", "tool_calls", "function", "name", "arguments", "finish_reason", "tools",
            "functions", "incomplete_details", "system", "prompt", "refusal",
        ]),
        inner | st.sampled_from(["user", "assistant", "message", "function_call", "stop", "length"]),
        max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["request", "response", "body", "input", "output", "messages", "choices", "error"]), VALUES
    )
)
def test_no_log_is_a_traceback(record: dict[str, Any]) -> None:
    with suppress(Unusable):
        assert shapes.read(record, None, None, []).messages[-1]["role"] == "assistant"


def test_a_group_column_names_the_thread_by_a_hash() -> None:
    fields = Fields(group="user")
    one = shapes.read({"prompt": "p", "completion": "c", "user": 7}, fields, None, [])
    same = shapes.read({"question": "q", "answer": "a", "user": "7"}, fields, None, [])
    none = shapes.read({"prompt": "p", "completion": "c", "user": None}, fields, None, [])
    assert (one.shape, same.shape) == ("prompt_completion", "columns")
    assert one.thread == same.thread != none.thread is None
    assert one.thread != "7"
    with pytest.raises(Unusable) as refusal:
        shapes.read({"prompt": "p", "completion": "c", "usr": 7}, fields, None, [])
    assert "`fields.group` names `user`" in refusal.value.fix


@pytest.mark.parametrize("name", sorted(exchanges.NAMES))
def test_a_column_of_a_log_that_json_cannot_hold_is_told_by_its_name(name: str) -> None:
    record = {"request": REQUEST, "response": said()} | {name: {**REQUEST, "latency": timedelta(1)}}
    with pytest.raises(Unusable, match="a value that JSON cannot hold") as refusal:
        plain_record(record, shapes.NAMES, [])
    assert f"the timedelta in `{name}`" in refusal.value.fix
