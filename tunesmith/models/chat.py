"""The one renderer: training, evaluation, export and serving all turn a conversation into tokens here.

A conversation is rendered with the model's own chat template and tokenised as one text. The loss mask covers, for
each assistant turn that is not marked as `learnt: False`, its content and the end token after it, and nothing else:
neither the prompt, nor the template's headers, nor the newline that follows the end token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tunesmith.core import store
from tunesmith.core.errors import ModelError
from tunesmith.core.records import Message

# Raise it when the same conversation would give other tokens or another mask, and with it VERSION in data/format.py and
# evaluate/predict.py: a step is made anew for its own version, not for this one.
RENDERER = 2

# Templates may ask for the date, and then training, scoring and chat would differ by the day. Llama's take it as
# `date_string`; for the others this macro stands before the template's own text and hides transformers' function. (The
# empty expression keeps a line break at the template's beginning, which would go with the tag before it.)
_DATE = "26 Jul 2024"
_STRFTIME = (
    "{% macro strftime_now(format) %}{{ format.replace('%d', '26').replace('%m', '07').replace('%Y', '2024')"
    ".replace('%b', 'Jul').replace('%B', 'July').replace('%A', 'Friday') }}{% endmacro %}{{ '' }}"
)


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation, whether each is learnt, and how many come before the last answer."""

    ids: list[int]
    learnt: list[bool]
    prompt_tokens: int


class CannotRender(Exception):
    """The template or the tokeniser gives no sound training example for this row.

    `reason` is a short fixed phrase to count by, `detail` what was seen.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]]) -> Rendered:
    """Tokens and loss mask of a conversation that ends with an assistant turn.

    Raises CannotRender when the template refuses the conversation or rewrites earlier turns (the conversation as it
    stood at one of them is no beginning of the whole), when a token straddles the border between prompt and answer,
    since generation could never meet it, and when the row's own text holds a control token.
    """
    if messages[0]["role"] == "assistant":
        raise CannotRender("the conversation begins with an answer")
    if token := _control_token(tokenizer, messages, tools):
        raise CannotRender("a message contains a control token of the model", token)
    text = _template(tokenizer, messages, tools, False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("learnt", True):
            continue
        start = _template(tokenizer, messages[:i], tools, True)
        turn = (text if message is messages[-1] else _template(tokenizer, messages[: i + 1], tools, False)).rstrip()
        if not text.startswith(start) or not text.startswith(turn):
            raise CannotRender("the template rewrites earlier turns")
        spans.append((len(start), len(turn)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learnt = [False] * len(encoded["input_ids"])
    at = prompt_tokens = 0
    for begin, end in spans:
        while at < len(learnt) and encoded["offset_mapping"][at][1] <= begin:
            at += 1
        if at < len(learnt) and encoded["offset_mapping"][at][0] < begin:
            raise CannotRender("a token straddles prompt and answer")
        prompt_tokens = at
        while at < len(learnt) and encoded["offset_mapping"][at][0] < end:
            learnt[at] = True
            at += 1
    return Rendered(list(encoded["input_ids"]), learnt, prompt_tokens)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
    """Tokens of a conversation that waits for the assistant's answer."""
    return list(tokenizer(_template(tokenizer, messages, tools, True), add_special_tokens=False)["input_ids"])


def stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """The tokens that end a generated answer: the tokeniser's end token and those of the generation config.

    Raises ModelError when there is none.
    """
    path = folder / "generation_config.json"
    configured = store.read_json(path).get("eos_token_id") if path.is_file() else None
    listed = configured if isinstance(configured, list) else [configured]
    found = sorted({i for i in [tokenizer.eos_token_id, *listed] if i is not None})
    if not found:
        raise ModelError(
            f"the model in {folder} names no end token",
            "neither its tokeniser nor its generation_config.json says which token ends an answer",
            "add eos_token to tokenizer_config.json, or choose another base (`tunesmith models`)",
        )
    return found


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes whenever a conversation could give other tokens: template, special tokens, vocabulary, this file."""
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    parts = [RENDERER, tokenizer.chat_template, tokenizer.special_tokens_map, vocabulary]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def require_usable(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ModelError for a tokeniser without a chat template, and for one that cannot say where its tokens stand."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"{name} has no chat template",
            "tunesmith renders conversations with the model's own template",
            "choose an instruct model (`tunesmith models`), or add chat_template.jinja to the model folder",
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"{name} has a slow tokeniser",
            "the loss mask needs each token's place in the text, which only tokenizer.json tokenisers tell",
            "choose another base (`tunesmith models`), or add a tokenizer.json to the model folder",
        )


def faults(rendered: Rendered, stops: list[int], bos: int | None) -> list[str]:
    """What would teach the model something wrong; an empty list is the proof that this row is sound."""
    found = []
    if not any(rendered.learnt):
        found.append("no token would be learnt")
    elif rendered.ids[max(i for i, learn in enumerate(rendered.learnt) if learn)] not in stops:
        found.append("the answer's end token would not be learnt")
    inside = zip(rendered.ids, rendered.learnt, rendered.learnt[1:])
    if any(token in stops and learn and more for token, learn, more in inside):
        found.append("an end token stands inside an answer")
    if bos is not None and rendered.ids[:2] == [bos, bos]:
        found.append("the beginning-of-text token stands twice")
    if rendered.learnt and rendered.learnt[0]:
        found.append("the first token would be learnt, but nothing comes before it")
    return found


def _control_token(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]]
) -> str | None:
    """A special token that stands in the row's own text, where the tokeniser would take it for the template's."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    text = json.dumps([messages, tools], ensure_ascii=False)
    return next((token for token in [*tokenizer.all_special_tokens, *added] if token in text), None)


def _template(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]], ask: bool
) -> str:
    """The conversation as text, each tool call once.

    A message has its calls as the last line of its content and as a list: a template that writes the list gets the
    content without that line, any other the content alone.
    """
    plain = [_without_calls(m) for m in messages]
    names = [call["function"]["name"] for m in messages for call in m.get("tool_calls") or []]
    if not names:
        return _apply(tokenizer, plain, tools, ask)
    listed = [{**m, "content": m["content"].rpartition("\n")[0]} if m.get("tool_calls") else m for m in messages]
    text = _apply(tokenizer, listed, tools, ask)
    silent = _apply(tokenizer, [_without_calls(m) for m in listed], tools, ask)
    # The names may stand in the list of tools and in questions too, so that they are counted.
    known = all(text.count(name) > silent.count(name) for name in names)
    return text if known else _apply(tokenizer, plain, tools, ask)


def _without_calls(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "tool_calls"}


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]], ask: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=_STRFTIME + tokenizer.get_chat_template(tools=tools or None),
            tokenize=False,
            add_generation_prompt=ask,
            enable_thinking=False,  # an empty block of thoughts belongs to the prompt, not to the answer
            date_string=_DATE,
        )
    except (TemplateError, TypeError) as error:  # TypeError: a template that joins a text and a call's arguments
        raise CannotRender("the chat template refuses it", str(error)) from None
    return str(text)
