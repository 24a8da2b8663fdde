"""The renderer: mask, end token, no double beginning, no straddling, one fingerprint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunesmith.core.errors import ModelError
from tunesmith.models import chat, load
from tunesmith.models.base import Base


@pytest.fixture(scope="module")
def tokenizer(base: Base) -> PreTrainedTokenizerBase:
    assert base.folder is not None
    return load.tokenizer(base.folder)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def learnt_text(tokenizer: PreTrainedTokenizerBase, rendered: chat.Rendered) -> str:
    return tokenizer.decode([i for i, learn in zip(rendered.ids, rendered.learnt) if learn])


def test_the_mask_covers_answers_and_end_tokens_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = chat.render(tokenizer, turns("Hi.", "Hello!", "Bye.", "See you."), [])
    assert learnt_text(tokenizer, rendered) == "Hello!<|im_end|>See you.<|im_end|>"


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
        chat.require_template(tokenizer, "a-base-model")


def test_the_fingerprint_follows_the_template(base: Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    before = chat.fingerprint(tokenizer)
    assert before == chat.fingerprint(load.tokenizer(base.folder))
    tokenizer.chat_template += " "
    assert chat.fingerprint(tokenizer) != before
