"""The renderer: mask, end token, no double beginning, no straddling, no date, one fingerprint."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunesmith.core.errors import ModelError
from tunesmith.models import chat, load
from tunesmith.models.base import Base

CALL = {"type": "function", "function": {"name": "book", "arguments": {"seats": 2}}}
TOOLS = [{"type": "function", "function": {"name": "book", "description": "Books.", "parameters": {}}}]
HEADER = "{{ '<|im_start|>' + m.role + '\\n' }}"
END = "{{ '<|im_end|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
PLAIN = "{% for m in messages %}" + HEADER + "{{ m.content }}" + END + "{% endfor %}" + ASK + "{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(base: Base) -> PreTrainedTokenizerBase:
    assert base.folder is not None
    return load.tokenizer(base.folder)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def templated(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def learnt_text(tokenizer: PreTrainedTokenizerBase, rendered: chat.Rendered) -> str:
    return tokenizer.decode([i for i, learn in zip(rendered.ids, rendered.learnt) if learn])


def test_the_mask_covers_answers_and_end_tokens_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = chat.render(tokenizer, turns("Hi.", "Hello!", "Bye.", "See you."), [])
    assert learnt_text(tokenizer, rendered) == "Hello!<|im_end|>See you.<|im_end|>"


def test_an_answer_that_is_marked_so_is_read_and_not_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, answered, *more = turns("Hi.", "Hello!", "Bye.", "See you.")
    marked = chat.render(tokenizer, [asked, {**answered, "learnt": False}, *more], [])
    whole = chat.render(tokenizer, [asked, answered, *more], [])
    assert (marked.ids, marked.prompt_tokens) == (whole.ids, whole.prompt_tokens)
    assert learnt_text(tokenizer, marked) == "See you.<|im_end|>"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=3))
def test_any_text_is_masked_exactly_or_refused(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]
) -> None:
    messages = turns(*(text for pair in pairs for text in pair))
    try:
        rendered = chat.render(tokenizer, messages, [])
    except chat.CannotRender:
        return
    special = set(tokenizer.all_special_tokens)
    wanted = "".join(answer.rstrip() if not answer.strip() else answer + "<|im_end|>" for _, answer in pairs)
    if not any(token in text for pair in pairs for text in pair for token in special) and all(
        a.strip() for _, a in pairs
    ):
        assert learnt_text(tokenizer, rendered) == tokenizer.decode(tokenizer.encode(wanted, add_special_tokens=False))


def test_the_prompt_of_training_is_the_prompt_of_generation(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = turns("What is the capital of France?", "Paris.")
    rendered = chat.render(tokenizer, messages, [])
    assert rendered.ids[: rendered.prompt_tokens] == chat.prompt_ids(tokenizer, messages[:1], [])


def test_a_sound_row_has_no_faults(tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
    assert base.folder is not None
    stops = chat.stop_ids(tokenizer, base.folder)
    assert chat.faults(chat.render(tokenizer, turns("a", "b"), []), stops, tokenizer.bos_token_id) == []


@pytest.mark.parametrize(
    ("ids", "learnt", "words"),
    [
        ([1, 1, 5, 2], [False, False, True, True], "stands twice"),
        ([1, 5, 6], [False, True, True], "end token would not be learnt"),
        ([1, 5, 2], [False, False, False], "no token"),
        ([5, 2], [True, True], "first token"),
        ([1, 5, 2, 6, 2], [False, True, True, True, True], "inside an answer"),
    ],
)
def test_faults_are_found(ids: list[int], learnt: list[bool], words: str) -> None:
    assert any(words in fault for fault in chat.faults(chat.Rendered(ids, learnt, 0), [2], 1))


def test_a_template_that_rewrites_earlier_turns_is_refused(base: Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    tokenizer.chat_template = (
        "{% set last = messages | length == 4 %}{% for m in messages %}"
        "{% if m.role == 'assistant' and last and not loop.last %}"
        "{{ m.role }}: (cut)\n{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(chat.CannotRender, match="rewrites earlier turns"):
        chat.render(tokenizer, turns("a", "b", "c", "d"), [])


def test_an_answer_whose_first_token_straddles_is_refused(base: Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(chat.CannotRender, match="straddles"):
        chat.render(tokenizer, turns("hel", "lo there"), [])


def test_no_template_is_explained(base: Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        chat.require_usable(tokenizer, "a-base-model")


def test_the_fingerprint_follows_the_template(base: Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    before = chat.fingerprint(tokenizer)
    assert before == chat.fingerprint(load.tokenizer(base.folder))
    tokenizer.chat_template += " "
    assert chat.fingerprint(tokenizer) != before


def test_the_fingerprint_follows_the_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    other = tokenizer.train_new_from_iterator(["other words make other tokens"], 280)
    same = tokenizer.train_new_from_iterator(["still more words, the same number"], 280)
    assert len(other) == len(same)
    assert chat.fingerprint(other) != chat.fingerprint(same)


THOUGHTS = (  # Qwen3's: a block of thoughts stands only in the turns after the last question
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}"
    + HEADER
    + "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\\n</think>\\n' }}{% endif %}{{ m.content }}" + END + "{% endfor %}" + ASK
)


def test_a_block_of_thoughts_that_leaves_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking = templated(tokenizer, THOUGHTS + "{% endif %}")
    with pytest.raises(chat.CannotRender, match="rewrites earlier turns"):
        chat.render(thinking, turns("a", "b", "c and a long question", "d"), [])


def test_an_empty_block_of_thoughts_belongs_to_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    off = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n</think>\\n' }}{% endif %}"
    thinking = templated(tokenizer, THOUGHTS + off + "{% endif %}")
    rendered = chat.render(thinking, turns("a", "b"), [])
    assert learnt_text(thinking, rendered) == "b<|im_end|>"
    assert rendered.ids[: rendered.prompt_tokens] == chat.prompt_ids(thinking, turns("a"), [])


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"),
        ("{{ strftime_now('%A, %d %B %Y') }}", "Friday, 26 July 2024"),
        ("{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ today() }}", "26 Jul 2024"),
    ],
)
def test_a_template_gets_the_same_date_on_every_day(tokenizer: PreTrainedTokenizerBase, told: str, wanted: str) -> None:
    assert date.today() > date(2024, 7, 26)
    dated = templated(tokenizer, "\n" + told + "\n" + PLAIN)
    assert dated.decode(chat.prompt_ids(dated, turns("a"), [])).startswith(f"\n{wanted}\n<|im_start|>user")


def test_a_conversation_that_begins_with_an_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(chat.CannotRender, match="begins with an answer"):
        chat.render(tokenizer, [{"role": "assistant", "content": "Hello!"}, *turns("a", "b")], [])


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
            "System",
        ),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 'a' + messages[0] }}", "concatenate"),
    ],
)
def test_a_template_that_raises_is_a_reason(tokenizer: PreTrainedTokenizerBase, template: str, detail: str) -> None:
    with pytest.raises(chat.CannotRender) as error:
        chat.render(templated(tokenizer, template), [{"role": "system", "content": "s"}, *turns("a", "b")], [])
    assert error.value.reason == "the chat template refuses it"
    assert detail in error.value.detail


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<filename>"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_control_token_in_the_data_is_refused(tokenizer: PreTrainedTokenizerBase, token: str, at: int) -> None:
    messages = turns("a", "b")
    messages[at]["content"] += f"{token}\n"
    with pytest.raises(chat.CannotRender) as error:
        chat.render(tokenizer, messages, [])
    assert error.value.reason == "a message contains a control token of the model"
    assert error.value.detail == token


def test_a_slow_tokeniser_is_explained(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    slow.chat_template = PLAIN
    with pytest.raises(ModelError, match="slow tokeniser"):
        chat.require_usable(slow, "byt5")
    chat.require_usable(tokenizer, "smollm2")


def test_a_model_without_an_end_token_is_explained(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ModelError, match="names no end token"):
        chat.stop_ids(endless, tmp_path)


CALLS = (
    "{% for m in messages %}" + HEADER + "{{ m.content }}{% for call in m.tool_calls or [] %}{{ '<tool_call>' }}"
    "{{ call.function | tojson }}{{ '</tool_call>' }}{% endfor %}" + END + "{% endfor %}" + ASK + "{% endif %}"
)
LISTED = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
TEXT = '{"name":"book","arguments":{"seats":2}}'
WRITTEN = '<tool_call>{"name": "book", "arguments": {"seats": 2}}</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("template", "content", "wanted"),
    [
        (LISTED + CALLS, TEXT, WRITTEN),
        (LISTED + CALLS, f"Gladly.\n{TEXT}", f"Gladly.{WRITTEN}"),
        (LISTED + PLAIN, TEXT, f"{TEXT}<|im_end|>"),
        (LISTED + PLAIN, f"Gladly.\n{TEXT}", f"Gladly.\n{TEXT}<|im_end|>"),
    ],
)
def test_a_tool_call_is_taught_once(
    tokenizer: PreTrainedTokenizerBase, template: str, content: str, wanted: str
) -> None:
    called: list[dict[str, Any]] = [*turns("book"), {"role": "assistant", "content": content, "tool_calls": [CALL]}]
    other = templated(tokenizer, template)
    assert learnt_text(other, chat.render(other, called, TOOLS)) == wanted
    following = chat.render(other, [*called, {"role": "tool", "content": "ok"}, *turns("q", "Done.")[1:]], TOOLS)
    assert learnt_text(other, following) == f"{wanted}Done.<|im_end|>"
