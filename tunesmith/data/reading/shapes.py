"""The shape of a record, told from the record itself, and the conversation that it holds.

A file may mix shapes: each record is looked at alone. The narrower shape is tried first, so that a preference pair with
an instruction is not read as Alpaca, and one with a good or bad label is not read as plain messages.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from tunesmith.core.data_section import Fields
from tunesmith.core.records import Message, content_id
from tunesmith.data import strings
from tunesmith.data.reading import columns, exchanges
from tunesmith.data.reading.columns import Record
from tunesmith.data.reading.conversation import are_turns, canonical, message, role_of, tools_of
from tunesmith.data.reading.values import Unusable, compact, kind, named, parse, seconds, short

_CONVERSATION = ("messages", "conversations", "conversation", "chat")
_SYSTEM = ("system", "system_prompt")
_OUTPUT = ("output", "response", "answer", "completion")
_COMPLETION = ("completion", "response", "answer", "output", "chosen")
_PROMPTS = ("instruction", "prompt", "question", "query", "input", "text", "message", "user")
_PAIRS = (
    ("input", "output"), ("input", "target"), ("question", "answer"), ("question", "response"), ("query", "response"),
    ("query", "answer"), ("text", "label"), ("text", "category"), ("text", "intent"), ("text", "summary"),
    ("sentence", "label"), ("source", "target"), ("message", "reply"), ("message", "response"), ("user", "assistant"),
    ("human", "assistant"), ("document", "summary"), ("article", "summary"), ("article", "highlights"),
    ("dialogue", "summary"), ("question", "output"), ("query", "output"),
)  # fmt: skip
_ANSWERS = tuple(dict.fromkeys((*_COMPLETION, *(answer for _, answer in _PAIRS))))
_OPTIONS = ("choices", "options")
_OF_OPTION = re.compile(r"\W*(\d{1,2}|[A-Za-z])\W*")  # 1, B, (c)
_QUOTED = re.compile(r"""(['"])(.*?)\1""")
_OPENAI_PAIR = ("preferred_output", "non_preferred_output")
_LABELS = ("label", "kto_tag")
NAMES = frozenset((
    *_CONVERSATION, *_SYSTEM, *columns.INPUT, *_PROMPTS, *(prompt for prompt, _ in _PAIRS), *_ANSWERS, *_LABELS,
    *_OPTIONS, *_OPENAI_PAIR, *exchanges.NAMES, "chosen", "rejected", "history",
))  # fmt: skip
"""The columns in which something is looked for."""
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")  # how Anthropic's HH-RLHF writes a conversation


class Reading(NamedTuple):
    """What a record holds: its shape, its turns in any dialect, the worse answer of a preference pair, and the tools
    of a logged request."""

    shape: str
    turns: list[Any]
    rejected: Any = None
    tools: Any = None


class Conversation(NamedTuple):
    """A record as the parts of a Row; `notes` are the repairs that it took."""

    shape: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    rejected: str | None
    notes: list[str]
    time: float | None = None
    thread: str | None = None


def read(record: Any, fields: Fields | None, system: str | None, notes: list[str]) -> Conversation:
    """The conversation in a plain record, with `system` before it where it has no system message of its own.

    Raises Unusable for a record that is of no known shape or that cannot become a canonical conversation.
    """
    if not isinstance(record, dict):
        raise Unusable("record is not an object", f"write it as an object with named keys; it is {kind(record)}")
    notes = list(notes)
    others = _others(record, fields) if fields else record
    reading = _explicit(record, others, fields, notes) if fields else recognise(record, notes)
    column = (fields and fields.system) or columns.first(others, _SYSTEM)
    own = record.get(column) if column else None
    before = [] if own in (None, "") else _turns_of_system(own)
    messages = canonical([*before, *reading.turns], notes)
    if reading.shape != "exchange":
        _refuse_unshown_options(others, messages)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    rejected = None if reading.rejected is None else _worse_answer(reading, notes)
    thread = _thread(record.get(fields.group)) if fields and fields.group else None
    tools = tools_of(reading.tools or exchanges.tools(others), notes)
    time = seconds(record.get(fields.time)) if fields and fields.time else None
    return Conversation(reading.shape, messages, tools, rejected, sorted(set(notes)), time, thread)


def _refuse_unshown_options(record: Record, messages: list[Message]) -> None:
    """Raises Unusable for an answer that is the number or letter of an option which the question does not show."""
    name, answer = columns.first(record, _OPTIONS), messages[-1]["content"]
    of_option = _OF_OPTION.fullmatch(answer) if name else None
    if not name or not of_option:
        return
    options, told = _options(record[name]), of_option[1]
    place = int(told) if told.isdecimal() else ord(told.lower()) - ord("a") + 1
    asked = "\n".join(message["content"] for message in messages[:-1])
    if answer not in options and place <= len(options) and not all(option.strip() in asked for option in options):
        raise Unusable(
            "options are not in the question",
            f"write the options under `{name}` into the question with their letters, or their text as the answer: "
            f"`{short(answer)}` alone teaches nothing",
        )


def _options(value: Any) -> list[str]:
    """The texts of a question's options: of a list, of an object with one under `text`, or of one by their letters."""
    if isinstance(value, str):
        try:
            value = parse(value, [])
        except Unusable:
            value = [text for _, text in _QUOTED.findall(value)]  # as Python and numpy write a list into a table
    if isinstance(value, dict):
        value = value.get("text") or [text for letter, text in value.items() if len(letter) == 1]
    return list(strings.texts(value)) if isinstance(value, list) else []


def _others(record: Record, fields: Fields) -> Record:
    """The columns that `fields` give no part: each plays one part alone."""
    parts = (fields.prompt, fields.answer, fields.system, fields.messages, fields.group, fields.time)
    return {name: value for name, value in record.items() if name not in parts}


def _turns_of_system(value: Any) -> list[Any]:
    """A system column, which may be a text, a list of its parts, or any other value."""
    in_parts = isinstance(value, list) and all(isinstance(part, dict) and "text" in part for part in value)
    return [{"role": "system", "content": value if in_parts else compact(value)}]


def _thread(value: Any) -> str | None:
    """A hash, since who wrote or asked is nobody's business. 7 in JSON and "7" in a table are the same."""
    return None if value in (None, "") else content_id(compact(value))


def _worse_answer(reading: Reading, notes: list[str]) -> str:
    better, worse = message(reading.turns[-1], []), message(reading.rejected, notes)
    if better["role"] != "assistant" or worse["role"] != "assistant":
        raise Unusable("chosen and rejected are not answers", "end both with a message of the role assistant")
    return str(worse["content"])


def prompt(record: Any, notes: list[str]) -> list[Message]:
    """The prompt in a plain record, which needs no answer. Raises Unusable where there is none."""
    if not isinstance(record, dict):
        raise Unusable("record is not an object", f"write it as an object with named keys; it is {kind(record)}")
    try:
        turns = recognise(record, notes).turns
    except Unusable as problem:
        found = _prompt(record, notes)
        if found is None:
            raise problem from None
        turns = found
    messages = [message(turn, notes) for turn in turns]
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def recognise(record: Record, notes: list[str]) -> Reading:
    """The first shape that fits the record; raises Unusable, saying what is missing, where none does."""
    for detect in _DETECTORS:
        reading = detect(record, notes)
        if reading is not None:
            return reading
    raise _unknown(record)


def _explicit(record: Record, others: Record, fields: Fields, notes: list[str]) -> Reading:
    """What the project file's `fields` say; of prompt and answer, the one that they leave out is found by its name
    among the `others`, to which they give no part."""
    for part, name in fields.model_dump(exclude_none=True).items():
        if name not in record:
            near = difflib.get_close_matches(name, record, 1, 0.6)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise Unusable(
                "a column named in `fields` is missing",
                f"`fields.{part}` names `{short(name)}`, but this record has {named(record)}{hint}",
            )
    if fields.messages or fields.answer:
        label = label_of(record, fields)
        _refuse_bad(record, label if label in others else None)
    if fields.messages:
        turns = columns.turn_list(record[fields.messages], fields.messages, notes)
        asks = (
            bool(turns)
            and role_of(turns[-1]) == "user"
            and columns.has(others, "chosen")
            and columns.has(others, "rejected")
        )
        return _pair(turns, others, "fields") if asks else Reading("fields", turns)
    if not fields.prompt and not fields.answer:
        return recognise(others, notes)
    prompt = columns.turns(record[fields.prompt], "user", fields.prompt) if fields.prompt else _prompt(others, notes)
    if prompt is None:
        raise Unusable("no prompt column", f"name the prompt's column as `fields.prompt`; there is {named(others)}")
    if fields.answer:
        return Reading("fields", prompt + columns.turns(record[fields.answer], "assistant", fields.answer))
    if columns.has(others, "chosen") and columns.has(others, "rejected"):
        return _pair(prompt, others, "fields")
    answer = columns.only(others, _ANSWERS)
    if answer is None:
        raise Unusable("no answer column", f"name the answer's column as `fields.answer`; there is {named(others)}")
    return Reading("fields", prompt + columns.turns(others[answer], "assistant", answer))


def _preference(record: Record, notes: list[str]) -> Reading | None:
    if not (columns.has(record, "chosen") and columns.has(record, "rejected")):
        return None
    return _pair(_prompt(record, notes), record, "preference")


def _openai_preference(record: Record, notes: list[str]) -> Reading | None:
    """OpenAI's preference files: a request, and two lists of messages that may follow it."""
    request, pair = record.get("input"), dict(zip(("chosen", "rejected"), map(record.get, _OPENAI_PAIR)))
    if not isinstance(request, dict) or None in pair.values():
        return None
    asked = columns.turn_list(request.get("messages"), "messages", notes)
    return _pair(asked, pair, "preference")._replace(tools=exchanges.tools(request))


def _pair(prompt: list[Any] | None, record: Record, shape: str) -> Reading:
    """A preference pair: two answers to the prompt, or two whole conversations that differ in their last message."""
    chosen, rejected = (
        _transcript(columns.turns(_from_text(record[key]), "assistant", key)) for key in ("chosen", "rejected")
    )
    if chosen[:-1] != rejected[:-1]:
        raise Unusable(
            "chosen and rejected are not answers to one prompt",
            "let `chosen` and `rejected` differ in their last message only",
        )
    if _is_whole(chosen):
        return Reading(shape, chosen, rejected[-1])
    if prompt is None:
        raise Unusable("no prompt column", f"add `prompt` beside `chosen` and `rejected`; there is {named(record)}")
    return Reading(shape, prompt + chosen, rejected[-1])


def _from_text(value: Any) -> Any:
    """The messages of an answer that a table holds as JSON text; any other value as it is."""
    with suppress(Unusable):
        found = parse(value, []) if isinstance(value, str) and value.lstrip().startswith(("{", "[")) else None
        if found and are_turns(found if isinstance(found, list) else [found]):
            return found
    return value


def _is_whole(turns: list[Any]) -> bool:
    """Whether an answer's turns bring their question with them."""
    return any(role_of(turn) == "user" for turn in turns)


def _transcript(turns: list[Any]) -> list[Any]:
    """Splits the one text "Human: ... Assistant: ..." into its turns; anything else stays."""
    text = turns[0].get("content") if len(turns) == 1 else None
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return turns
    _, *pieces = _TRANSCRIPT.split(text.strip())
    return [{"role": role.lower(), "content": content} for role, content in zip(pieces[::2], pieces[1::2])]


def _exchange(record: Record, notes: list[str]) -> Reading | None:
    found = exchanges.read(record, notes)
    return Reading("exchange", found.turns, tools=found.tools) if found else None


def _kto(record: Record, notes: list[str]) -> Reading | None:
    label = label_of(record)
    if label is None:
        return None
    rest = {key: value for key, value in record.items() if key != label}
    reading = _messages(rest, notes) or _alpaca(rest, notes) or _prompt_completion(rest, notes)
    if reading is None:
        return None
    _refuse_bad(record, label)
    return reading._replace(shape="kto")


def label_of(record: Record, fields: Fields | None = None) -> str | None:
    """The column that tells good answers from bad ones, if there is one."""
    by_fields = bool(fields and fields.prompt and fields.answer)
    return next((key for key in _LABELS if key in record and _truth(record, key, by_fields) is not None), None)


def _refuse_bad(record: Record, label: str | None) -> None:
    if label is not None and not _truth(record, label):
        is_number = label != "kto_tag" and _truth(record, label, by_fields=True) is None
        say = "say in the source which columns count, `fields: {prompt: ..., answer: ...}`"
        raise Unusable(
            "answer labelled as bad",
            f"leave it out: where `{label}` is {short(record[label])}, a row can train preference methods, not "
            "supervised tuning; where that column says something else, "
            + (f"as a class, {say}" if is_number else "name it otherwise"),
        )


def _truth(record: Record, label: str, by_fields: bool = False) -> bool | None:
    """A label's truth. In CSV it is text, and to read it as an ordinary column would let the bad answers in. 0 and 1
    may be any two classes: they say good and bad under a name that means nothing else, and beside a completion, unless
    prompt and answer are named `by_fields`."""
    written = compact(record[label]).strip().lower() if isinstance(record[label], str | bool | int | float) else ""
    if written in ("true", "false"):
        return written == "true"
    beside = not by_fields and columns.has(record, "prompt") and columns.has(record, "completion")
    return {"0": False, "0.0": False, "1": True, "1.0": True}.get(written) if beside or label == "kto_tag" else None


def _messages(record: Record, notes: list[str]) -> Reading | None:
    key = columns.first(record, _CONVERSATION)
    if key is None:
        return None
    turns = columns.turn_list(record[key], key, notes)
    sharegpt = any(isinstance(turn, dict) and "from" in turn and "role" not in turn for turn in turns)
    return Reading("sharegpt" if sharegpt else "messages", turns)


def _alpaca(record: Record, notes: list[str]) -> Reading | None:
    output = columns.only(record, _OUTPUT) if columns.has(record, "instruction") else None
    if output is None:
        return None
    asked = [*columns.history(record, notes), *columns.with_input(record, "instruction")]
    return Reading("alpaca", asked + columns.turns(record[output], "assistant", output))


def _prompt_completion(record: Record, notes: list[str]) -> Reading | None:
    answer = columns.only(record, _COMPLETION) if columns.has(record, "prompt") else None
    if answer is None:
        return None
    turns = columns.turns(record[answer], "assistant", answer)
    prompt = [] if _is_whole(turns) else columns.history(record, notes) + columns.with_input(record, "prompt")
    return Reading("prompt_completion", prompt + turns)


def _columns(record: Record, notes: list[str]) -> Reading | None:
    present = {name for name, value in record.items() if value is not None}
    pairs = [(prompt, answer) for prompt, answer in _PAIRS if prompt in present and answer in present]
    if len(pairs) > 1:
        both = dict.fromkeys(name for pair in pairs for name in pair)
        raise Unusable(
            "several columns could be the answer",
            f"say in the project file which of {named(both)} count: "
            f"`fields: {{prompt: {pairs[0][0]}, answer: {pairs[0][1]}}}`",
        )
    if not pairs:
        return None
    prompt, answer = pairs[0]
    return Reading("columns", columns.with_input(record, prompt) + columns.turns(record[answer], "assistant", answer))


def _text(record: Record, notes: list[str]) -> Reading | None:
    if [key for key, value in record.items() if value is not None] != ["text"]:
        return None
    raise Unusable(
        "raw text has no answer to learn from",
        "add an answer column beside `text`; or name text alone under `pretrain.texts`, which continues pretraining",
    )


_DETECTORS: tuple[Callable[[Record, list[str]], Reading | None], ...] = (
    _preference, _openai_preference, _exchange, _kto, _messages, _alpaca, _prompt_completion, _columns, _text,
)  # fmt: skip


def _unknown(record: Record) -> Unusable:
    if not record:
        return Unusable("record is empty", "take out the empty object")
    if {"custom_id", "response"} <= record.keys():
        return Unusable(
            "response without its request",
            "join a batch's output with its requests by `custom_id`, so that each record has `body` and `response`",
        )
    known = (*_ANSWERS, *_PROMPTS, *_CONVERSATION)
    null = next((name for name in known if name in record and record[name] is None), None)
    if null is not None:
        return columns.null(null)
    prompt = next((name for name in _PROMPTS if name in record), None)
    if prompt is not None:
        return Unusable(
            "no answer column",
            f"none of {named(record)} is known as an answer: name it in the project "
            f"file with `fields: {{prompt: {prompt}, answer: ...}}`",
        )
    return Unusable(
        "columns are not recognised",
        f"say in the project file what {named(record)} are, with `fields: "
        "{prompt: ..., answer: ...}` or a `convert` file",
    )


def _prompt(record: Record, notes: list[str]) -> list[Any] | None:
    """The prompt's turns, found by the usual names."""
    conversation = _messages({key: value for key, value in record.items() if key in _CONVERSATION}, notes)
    if conversation is not None:
        return conversation.turns
    name = columns.first(record, _PROMPTS)
    return None if name is None else columns.history(record, notes) + columns.with_input(record, name)
