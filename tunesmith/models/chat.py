"""The one renderer: training, evaluation, export and serving all turn a conversation into tokens here.

A conversation is rendered with the model's own chat template and tokenised as one text. The loss mask covers, for
each assistant turn, its content and the end token after it, and nothing else: neither the prompt, nor the template's
headers, nor the newline that follows the end token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.core import store
from tunesmith.core.errors import ModelError
from tunesmith.core.records import Message

RENDERER = 1  # raise when the same conversation would give other tokens or another mask


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation, whether each is learnt, and how many come before the last answer."""

    ids: list[int]
    learnt: list[bool]
    prompt_tokens: int


class CannotRender(Exception):
    """The template or the tokeniser gives no sound training example for this row; the message is a drop reason."""


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]]) -> Rendered:
    """Tokens and loss mask of a conversation that ends with an assistant turn.

    Raises CannotRender when the template rewrites earlier turns (the rendered prompt is no beginning of the rendered
    conversation), or when a token straddles the border between prompt and answer, since generation could never meet it.
    """
    text = _template(tokenizer, messages, tools, False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _template(tokenizer, messages[:i], tools, True)
        if not text.startswith(start):
            raise CannotRender("the template rewrites earlier turns")
        turn = _template(tokenizer, messages[: i + 1], tools, False)[len(start) :]
        spans.append((len(start), len(start) + len(turn.rstrip())))
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
    """The tokens that end a generated answer: the tokeniser's end token and those of the generation config."""
    path = folder / "generation_config.json"
    configured = store.read_json(path).get("eos_token_id") if path.is_file() else None
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [tokenizer.eos_token_id, *listed] if i is not None})


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes whenever a conversation could give other tokens: template, special tokens, vocabulary, this file."""
    parts = [RENDERER, tokenizer.chat_template, tokenizer.special_tokens_map, len(tokenizer)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def require_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{name} has no chat template",
            "tunesmith renders conversations with the model's own template",
            "choose an instruct model (`tunesmith models`), or add chat_template.jinja to the model folder",
        )


def faults(rendered: Rendered, stops: list[int], bos: int | None) -> list[str]:
    """What would teach the model something wrong; an empty list is the proof that this row is sound."""
    found = []
    if not any(rendered.learnt):
        found.append("no token would be learnt")
    elif rendered.ids[max(i for i, learn in enumerate(rendered.learnt) if learn)] not in stops:
        found.append("the answer's end token would not be learnt")
    if bos is not None and rendered.ids[:2] == [bos, bos]:
        found.append("the beginning-of-text token stands twice")
    if rendered.learnt and rendered.learnt[0]:
        found.append("the first token would be learnt, but nothing comes before it")
    return found


def _template(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]], ask: bool
) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=ask))
