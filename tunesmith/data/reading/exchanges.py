"""Logs of a model's requests and responses, one exchange a record: the conversation that was asked, and its answer.

    {"request": {"messages": [...], "tools": [...]}, "response": {"choices": [{"message": ...}]}}
    {"body": {...}, "response": {"status_code": 200, "body": {...}}}       OpenAI's batches, both files joined
    {"input": ..., "output": {"choices": ...}}, {"messages": [...], "response": {...}}       flat traces

Requests may be those of chat completions, of completions (`prompt`) or of responses (`input`); any of these objects may
be written as JSON text. A request that failed teaches nothing: it is refused, and each way to fail has a reason of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data.reading.conversation import role_of
from tunesmith.data.reading.values import Unusable, named, parse, short

Object = dict[str, Any]

_SIGNS = frozenset({"request", "body", "response", "choices", "output"})
_ANSWERS = frozenset({"choices", "error", "status_code", "role"})  # what tells a response from any other object
NAMES = frozenset((
    *_SIGNS, "messages", "input", "prompt", "completion", "instructions", "system", "tools", "functions", "error",
    "status_code", "finish_reason",
))  # fmt: skip
"""The columns in which something is looked for."""
_SAYS = frozenset({"output", "message", "content", "body"})  # what one has that stands beside a request
_OTHER_PROMPTS = frozenset({"instruction", "question", "query"})  # beside one of these, `input` is what it is about
_CUT_OFF = (
    "length",
    "max_tokens",
    "max_output_tokens",
    "model_context_window_exceeded",
    "incomplete",
    "cancelled",
    "in_progress",
)
_FILTERED = ("content_filter", "safety", "refusal")


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered, as turns of any dialect, and the tools that the model could call."""

    turns: list[Any]
    tools: Any


def read(record: Object, notes: list[str]) -> Exchange | None:
    """The exchange in a record; None for a record that is no log. Raises Unusable where the request failed."""
    if _SIGNS.isdisjoint(record):
        return None
    request = _request(record)
    if request is None:
        return None
    response = _response(record, request is record)
    if response is None:
        return None
    _refuse_failed(record, response)
    answer = _answer(response, notes)
    _refuse_unfinished({}, record.get("finish_reason"))
    return Exchange([*_asked(request), answer], tools(request))


def tools(request: Object) -> Any:
    """The tools that a request offers, also as the functions of OpenAI's older requests."""
    functions = request.get("functions")
    return request.get("tools") or [
        {"type": "function", "function": one}
        for one in (functions if isinstance(functions, list) else [])
        if isinstance(one, dict) and "name" in one
    ]


def _request(record: Object) -> Object | None:
    """The request's own object; that of a flat trace is the record."""
    for key in ("request", "body", "input") if _OTHER_PROMPTS.isdisjoint(record) else ("request", "body"):
        found = _object(record.get(key))
        found = _object(found.get("body")) or found if found else None
        if found and found.keys() & {"messages", "prompt", "input"}:
            return found
    asked: list[Any] = next((record[key] for key in ("messages", "input") if isinstance(record.get(key), list)), [])
    return (
        record if asked and all(isinstance(turn, dict) and turn.keys() & {"role", "type"} for turn in asked) else None
    )


def _response(record: Object, flat: bool) -> Object | None:
    """The response's own object; empty where the log of a request has none, None where the record is no log at all."""
    choices = record.get("choices")
    if isinstance(choices, list) and not any(isinstance(choice, str) for choice in choices):
        return {"choices": choices}
    for key in ("response", "output", "completion"):
        value = record.get(key)
        if isinstance(value, list) and value and all(isinstance(one, dict) and "type" in one for one in value):
            return {"output": value}
        found = _object(value)
        if found is not None and found.keys() & (_ANSWERS if flat else {*_ANSWERS, *_SAYS}):
            return found
        if found is None and isinstance(value, str) and not (flat and _is_answered(record)):
            return {"content": value}
    return None if flat else {}


def _is_answered(record: Object) -> bool:
    """Whether the messages of a flat trace end with an answer already."""
    return role_of((record.get("messages") or record["input"])[-1]) == "assistant"


def _object(value: Any) -> Object | None:
    """The value, if it is an object or the JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse(value, [])
        except Unusable:
            return None
    return value if isinstance(value, dict) else None


def _refuse_failed(record: Object, response: Object) -> None:
    body = _object(response.get("body")) or {}
    status = _number(response.get("status_code", record.get("status_code")))
    error = next((one["error"] for one in (record, response, body) if one.get("error")), None)
    if error is not None or (status and status >= 400) or response.get("status") == "failed":
        message = error.get("message", error) if isinstance(error, dict) else error
        told = short(message) if message else f"status {status or 0:.0f}"
        raise Unusable("request failed", f"leave it out: the service answered with an error ({told})")
    if not response:
        raise Unusable("request without a response", "leave it out, or join it with its response")


def _number(value: Any) -> float | None:
    """A status, which a table holds as text, or as a float where others are missing."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _answer(response: Object, notes: list[str]) -> Any:
    """The message of the response; raises Unusable for none, and for one that ended too early."""
    body = _object(response.get("body")) or response
    if isinstance(body.get("output"), list):
        return _of_items(body)
    if "choices" not in body:
        message = _object(body.get("message")) or body
        reasons = (body.get(key) for key in ("stop_reason", "finish_reason", "done_reason"))
        _refuse_unfinished(message, next(filter(None, reasons), None))
        return {"role": "assistant", **message}
    choices = body["choices"]
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable("response without choices", "leave it out: the model gave no answer")
    if len(choices) > 1:
        notes.append("first of several choices taken")
    return _of_choice(choices[0])


def _of_choice(choice: Object) -> Any:
    if "delta" in choice:
        raise Unusable("response is a piece of a stream", "log the whole message, not the pieces that it came in")
    message = choice["message"] if "message" in choice else {"content": choice.get("text")}
    if not isinstance(message, dict):
        raise Unusable("response without a message", f"write the answer as `message`; the choice has {named(choice)}")
    _refuse_unfinished(message, choice.get("finish_reason"))
    return {"role": "assistant", **{key: message[key] for key in message if key != "role" or message[key]}}


def _refuse_unfinished(message: Object, why: Any) -> None:
    why = why.lower() if isinstance(why, str) else why
    if why in _CUT_OFF:
        raise Unusable("answer was cut off", "leave it out, or ask again with room for a longer answer")
    if why in _FILTERED:
        raise Unusable("answer was filtered", "leave it out: what the service took away cannot be learnt")
    if message.get("refusal"):
        raise Unusable("answer is a refusal", "leave it out, or write the refusal as its content if it is wanted")


def _of_items(response: Object) -> Any:
    """The answer in the items of a response: its texts and its calls; what it thought before is left out."""
    incomplete = response.get("incomplete_details") or {}
    reason = incomplete.get("reason") if isinstance(incomplete, dict) else None
    _refuse_unfinished({}, reason or response.get("status"))
    texts: list[Any] = []
    calls = []
    for item in response["output"]:
        if not isinstance(item, dict):
            continue
        if item.get("type") == "function_call":
            calls.append(item)
        elif item.get("type") == "message":
            content = item.get("content")
            texts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    if any(isinstance(text, dict) and text.get("type") == "refusal" for text in texts):
        _refuse_unfinished({"refusal": True}, None)
    if not texts and not calls:
        raise Unusable("response without choices", "leave it out: the model gave no answer")
    return {"role": "assistant", "content": texts or None, **({"tool_calls": calls} if calls else {})}


def _asked(request: Object) -> list[Any]:
    """The turns of the request, its instructions first."""
    system = request.get("instructions") or (request.get("system") if "messages" in request else None)
    before = [{"role": "system", "content": system}] if system else []
    asked = next((request[key] for key in ("messages", "input", "prompt") if request.get(key)), None)
    if not isinstance(asked, list):
        asked = [{"role": "user", "content": asked}]
    turns: list[Any] = []
    for turn in asked:
        kind = turn.get("type") if isinstance(turn, dict) else None
        if kind == "function_call":
            turns.append({"role": "assistant", "content": None, "tool_calls": [turn]})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "content": turn.get("output")})
        elif kind != "reasoning":
            turns.append({"role": "user", "content": turn} if isinstance(turn, str) else turn)
    return before + turns
