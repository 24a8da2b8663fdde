"""Chat messages of any dialect as one canonical conversation, which every later stage relies on.

    [system]  user  assistant [tool assistant]  user  assistant ...

At most one system message, first; contents are texts; the last message is the assistant's, and is learnt. The last
answer may be empty: the clean stage drops and counts such rows.
"""

from __future__ import annotations

import difflib
from itertools import pairwise
from typing import Any

from tunesmith.core.records import Message
from tunesmith.data.reading.values import Unusable, compact, kind, named, parse, short, storable

_CALLS = ("function_call", "tool_call")
_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "ai": "assistant", **dict.fromkeys(_CALLS, "assistant"),
    "tool": "tool", "observation": "tool", "function": "tool", "tool_response": "tool", "function_response": "tool",
    "ipython": "tool",
}  # fmt: skip


def canonical(turns: list[Any], notes: list[str]) -> list[Message]:
    """The canonical conversation of these turns; notes what it repaired, raises Unusable for what it cannot."""
    if not turns:
        raise Unusable("conversation is empty", "give it a user message and an answer, or take the record out")
    messages = [message(turn, notes) for turn in turns]
    texts = []
    while messages and messages[0]["role"] == "system":
        texts.append(messages.pop(0)["content"])
    roles = [m["role"] for m in messages]
    if "system" in roles:
        raise Unusable("system message is not first", "move the system message to the beginning of the conversation")
    if "assistant" not in roles:
        raise Unusable("no assistant message", "add the answer to learn from as a last message of the role assistant")
    if not any(map(_is_learnt, messages)):
        raise Unusable("no answer is learnt", "give an answer the `weight` 1, or take the record out: all have 0")
    while not _is_learnt(messages[-1]):
        notes.append(f"trailing {messages.pop()['role']} turn removed")
    if "user" not in roles[: len(messages)]:
        raise Unusable("no user message", "begin the conversation with a message of the role user")
    for before, after in pairwise(messages):
        if before["role"] == after["role"] != "tool" and "tool_calls" not in before:
            raise Unusable(
                "two messages of one role in a row",
                f"join the neighbouring {after['role']} messages into "
                "one, or add the turn that is missing between them",
            )
    # Some sets repeat the system text in a column of its own: the same text once is enough.
    system = [{"role": "system", "content": "\n\n".join(filter(None, dict.fromkeys(texts)))}] if texts else []
    return system + messages


def _is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("learnt", True))


def role_of(turn: Any) -> str | None:
    """The canonical role of a message in any dialect; None for an unknown one and for what is no message."""
    return _role_named(_role_name(turn))


def _role_named(name: Any) -> str | None:
    return _ROLES.get(name) or _ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def _role_name(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return None
    return turn["role"] if turn.get("role") is not None else turn.get("from")


def are_turns(values: list[Any]) -> bool:
    """Whether values are messages, and not data of an answer's own that happens to have such keys."""
    return all(isinstance(v, dict) and v.keys() & {"content", "value", "tool_calls"} for v in values) and any(
        map(role_of, values)
    )


def message(turn: Any, notes: list[str]) -> Message:
    """One canonical message. A tool call becomes its compact JSON text, and stays a list under `tool_calls`. What is
    said by the assistant with OpenAI's `weight` of 0 belongs to the prompt: it is marked as not `learnt`."""
    if not isinstance(turn, dict):
        raise Unusable(
            "message is not an object",
            f"write each message as an object with `role` and `content`; one is {kind(turn)}",
        )
    found = _message(turn, notes)
    skipped = turn.get("weight") == 0 or turn.get("learnt") is False
    return {**found, "learnt": False} if skipped and found["role"] == "assistant" else found


def _message(turn: dict[str, Any], notes: list[str]) -> Message:
    name = _role_name(turn)
    role = _role_named(name)
    if name is None:
        raise Unusable("message without a role", f"give each message `role` and `content`; one has {named(turn)}")
    if role is None:
        near = difflib.get_close_matches(str(name).strip().lower(), _ROLES, 1, 0.6)
        valid = f"`{_ROLES[near[0]]}`" if near else "system, user, assistant or tool"
        raise Unusable("unknown role", f"write {valid} instead of the role `{short(name)}`")
    if name.strip().lower() in _CALLS:
        return _call_message(turn, notes)
    calls = _tool_calls(turn, notes)
    content = _content(turn, notes, may_be_null=bool(calls))
    if role == "assistant" and content != content.strip():
        content = content.strip()
        notes.append("white space around an answer removed")
    if not calls:
        return {"role": role, "content": content}
    functions = [call["function"] for call in calls]
    text = compact(functions[0] if len(functions) == 1 else functions)
    if content and not content.endswith(text):  # tunesmith's own rows hold the text already
        text = f"{content}\n{text}"
    return {"role": role, "content": text, "tool_calls": calls}


def _content_key(turn: dict[str, Any]) -> str:
    return "value" if turn.get("content") is None and "value" in turn else "content"


def _content(turn: dict[str, Any], notes: list[str], may_be_null: bool) -> str:
    key = _content_key(turn)
    content = turn.get(key)
    if isinstance(content, str):
        return content
    if content is None and may_be_null:
        return ""
    if content is None and key in turn:
        raise Unusable("message content is null", f"write a text under `{key}`, or take the record out")
    if content is None:
        raise Unusable("message without content", f"give each message `content`; one has {named(turn)}")
    if isinstance(content, list):
        return _joined(content, notes)
    raise Unusable("message content is not text", f"write `{key}` as text; it is {kind(content)}")


def _joined(parts: list[Any], notes: list[str]) -> str:
    """The text of a content that is written as a list of parts."""
    texts = []
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text")
        text = part.get("text") if is_text else part
        if not isinstance(text, str):
            seen = f"of type `{short(part.get('type'))}`" if isinstance(part, dict) else f"that is {kind(part)}"
            raise Unusable("message content is not text only", f"take out the part {seen}: rows hold text alone")
        texts.append(text)
    if len(texts) > 1:
        notes.append("content parts joined by line breaks")
    return "\n".join(texts)


def _tool_calls(turn: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """OpenAI's tool calls, or its older single `function_call`, without their random ids and with parsed arguments."""
    calls = turn.get("tool_calls") or turn.get("function_call")
    if not calls:
        return []
    if isinstance(calls, str):
        calls = _parsed_or_text(calls, notes)
    found = [_call(call, notes) for call in (calls if isinstance(calls, list) else [calls])]
    if None in found:
        raise Unusable(
            "tool call cannot be read", 'write each tool call as {"function": {"name": ..., "arguments": {...}}}'
        )
    return [call for call in found if call]


def tools_of(value: Any, notes: list[str]) -> list[dict[str, Any]]:
    """A record's tools as a list of objects; they may be JSON text, whole or one by one."""
    if value in (None, "", [], {}):
        return []
    try:
        tools = parse(value, notes) if isinstance(value, str) else value
        tools = tools if isinstance(tools, list) else [tools]
        tools = [parse(tool, notes) if isinstance(tool, str) else tool for tool in tools]
    except Unusable as problem:
        raise Unusable("tools cannot be read", f"write `tools` as a JSON list of objects: {problem.fix}") from None
    if not all(isinstance(tool, dict) for tool in tools):
        raise Unusable("tools cannot be read", f"write `tools` as a JSON list of objects; {short(tools)} stands there")
    return [storable(tool, "tools") for tool in tools]


def _call(call: Any, notes: list[str]) -> dict[str, Any] | None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed_or_text(arguments, notes)
    arguments = {} if arguments is None else storable(arguments, "arguments")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _call_message(turn: dict[str, Any], notes: list[str]) -> Message:
    """ShareGPT's function_call turn: a call or a list of calls, mostly as JSON text; other text stays as it is."""
    content = turn.get(_content_key(turn))
    if not isinstance(content, dict | list):
        content = _parsed_or_text(_content(turn, notes, may_be_null=False).strip(), notes)
    calls = [_call(call, notes) for call in (content if isinstance(content, list) else [content])]
    written: Message = {"role": "assistant", "content": compact(content)}
    return written if None in calls or not calls else {**written, "tool_calls": calls}


def _parsed_or_text(text: str, notes: list[str]) -> Any:
    try:
        return parse(text, notes)
    except Unusable:
        return text
