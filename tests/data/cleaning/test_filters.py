"""Filters: what each drops and why, what it never drops, and what stops it."""

import csv
import json
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.core.clean_section import Clean, Length, Repetition, Toxicity
from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Dropped, Row
from tunesmith.data import pipeline
from tunesmith.data.cleaning import filters


def row(prompt: str, answer: str, **more: Any) -> Row:
    return Row(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, **more}], "a", 1, "messages"
    )


def reasons(results) -> list[str | None]:
    return [result.reason if isinstance(result, Dropped) else None for result in results]


@pytest.mark.parametrize(("limits", "reason", "detail"), [
    ({"min_prompt": 4}, "prompt too short", "3 of at least 4 words"),
    ({"max_prompt": 2}, "prompt too long", "3 of at most 2 words"),
    ({"min_answer": 3}, "answer too short", "2 of at least 3 words"),
    ({"max_answer": 1}, "answer too long", "2 of at most 1 words"),
    ({"max_answer": 8, "unit": "characters"}, "answer too long", "9 of at most 8 characters"),
    ({"min_prompt": 3, "max_prompt": 3, "min_answer": 2, "max_answer": 2}, None, None),
    ({"min_prompt": 13, "max_answer": 9, "unit": "characters"}, None, None),
])  # fmt: skip
def test_length_is_told_in_the_unit_that_is_asked_for(limits, reason, detail):
    [result] = filters.length([row("what is  this", "one  more")], Length(**limits))
    assert (result.reason, result.detail) == (reason, detail) if reason else not isinstance(result, Dropped)


def test_an_answer_that_only_calls_a_tool_is_not_too_short():
    call = row("what is this", "", tool_calls=[{"type": "function"}])
    assert reasons(filters.length([call, row("what is this", "")], Length(min_answer=1))) == [None, "answer too short"]


def test_limits_that_leave_no_row_are_refused():
    with pytest.raises(ValidationError, match="min_answer 5 is more than max_answer 4"):
        Clean.model_validate({"length": {"min_answer": 5, "max_answer": 4}})


SONG = "We are going home tonight.\n" * 4 + "And that is all.\n"


def test_shares_of_what_is_said_again():
    assert filters.lines_again("one\ntwo\none\n\n  one\n---\n---") == pytest.approx(6 / 12)
    assert filters.runs_again("a b c d e f g h i j " * 2) == pytest.approx(0.5)
    assert filters.runs_again("a b c d e f g h i j k l m n o p q r s t") == filters.lines_again("") == 0
    assert filters.runs_again("no " * 20) == pytest.approx(0.95)
    assert filters.runs_again("no " * 19) == 0


def test_repetition_in_lines_and_in_runs_of_words():
    again = row("sing", SONG)
    assert reasons(filters.repetition([again, row(SONG, "fine")], Repetition(lines=0.2))) == ["repetitive"] * 2
    [dropped] = filters.repetition([again], Repetition(lines=0.2))
    assert "repeated lines" in dropped.detail
    [dropped] = filters.repetition([row("say", "I do not know what to say, " * 3)], Repetition(runs=0.15))
    assert dropped.detail == "67% of a message of the assistant in repeated runs of words"
    assert reasons(filters.repetition([again], Repetition(lines=0.9))) == [None]
    listed = json.dumps([{"name": "x", "kind": "y"}] * 9, indent=1)
    assert reasons(filters.repetition([row("list", listed)], Repetition(lines=0.1, runs=0.1))) == [None]


GERMAN = "Ich habe gestern meine Karte verloren und brauche schnell Hilfe"
FRENCH = "J'ai perdu ma carte hier soir, que dois-je faire maintenant ?"


def test_rows_in_another_language_are_dropped():
    rows = [row("I lost my card yesterday", GERMAN), row(FRENCH, "Please call us at once"), row("Why?", "Because.")]
    first, second, third = filters.languages(rows, ["en"])
    assert (first.reason, first.detail) == ("another language", "the answer is de (100%)")
    assert second.detail.startswith("the prompt is fr")
    assert not isinstance(third, Dropped)
    assert reasons(filters.languages(rows, ["en", "de"])) == [None, "another language", None]


@pytest.mark.parametrize("text", [
    "Danke schön", "¿Qué?",
    "Guten Morgen, liebe Leute", "card_arrival", '{"Stadt": "München", "Straße": "Am alten Markt"}',
    "```\nfür alle Karten, die gestern gesperrt wurden\n```", "明日", "12345 67890 12345 67890", "",
])  # fmt: skip
def test_short_texts_code_and_json_are_not_told_by_their_language(text):
    assert reasons(filters.languages([row("I lost my card yesterday", text)], ["en"])) == [None]


def test_scripts_without_spaces_are_told_apart():
    rows = [
        row("I lost my card yesterday", "我昨天丢了我的卡，现在应该怎么办？"),
        row("I lost it", "私のカードが届きません"),
    ]
    assert reasons(filters.languages(rows, ["en"])) == ["another language"] * 2
    assert reasons(filters.languages(rows, ["en", "zh", "ja"])) == [None, None]


def test_an_unknown_language_is_refused():
    with pytest.raises(ConfigError, match="no language `english`") as refusal:
        list(filters.languages([], ["english"]))
    assert "en, eo" in refusal.value.why


def test_english_customers_are_not_taken_for_others(real_data):
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], r["category"]) for r in csv.DictReader(file)][::5]
    assert set(reasons(filters.languages(rows, ["en"]))) == {None}


def test_toxic_answers_are_dropped_and_prompts_where_asked():
    pytest.importorskip("profanity_check", reason="the extra `toxicity` is not installed")
    rude = "That is all fine. You are a fucking idiot! Have a nice day."
    rows = [row("how are you", rude), row(rude, "I am sorry to hear it"), row("how are you", "")]
    first, second, third = filters.toxicity(rows, Toxicity(above=0.9))
    assert (first.reason, first.detail) == ("toxic", "score 1.00, above 0.9")
    assert not isinstance(second, Dropped)
    assert not isinstance(third, Dropped)
    assert reasons(filters.toxicity(rows, Toxicity(above=0.9, where="all"))) == ["toxic", "toxic", None]


OWN = "def score(text):\n    return 0.6 if 'weather' in text else 0\n"


def test_a_score_of_the_projects_own_decides(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    rows = [row("hi", "the weather"), row("the weather", "hi")] * 700
    assert reasons(filters.toxicity(rows, Toxicity(above=0.5, score=path))) == ["toxic", None] * 700
    assert reasons(filters.toxicity(rows[:2], Toxicity(above=0.7, score=path))) == [None, None]


def test_an_answer_that_is_not_learnt_is_scored_only_where_all_texts_are(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    first = row("hi", "the weather", learnt=False)
    both = Row([*first.messages, *row("and?", "fine").messages], "a", 1, "messages")
    assert reasons(filters.toxicity([both], Toxicity(above=0.5, score=path))) == [None]
    assert reasons(filters.toxicity([both], Toxicity(above=0.5, score=path, where="all"))) == ["toxic"]


@pytest.mark.parametrize(("code", "why"), [
    ("def score(text): return 2", "it returned 2"), ("def score(text): return 'a'", "it returned 'a'"),
    ("def score(text): return text.x", "AttributeError"), ("x = 1", "on each text"),
])  # fmt: skip
def test_a_score_that_cannot_be_used_is_a_config_error(code, why, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(code)
    with pytest.raises(ConfigError) as refusal:
        list(filters.toxicity([row("a", "b")], Toxicity(above=0.5, score=path)))
    assert why in refusal.value.why


def test_filters_are_off_until_they_are_asked_for(tmp_path):
    assert [name for name, _ in pipeline.stages(Clean())] == ["text repair", "empty answers", "personal data"]
    asked = {
        "length": {"max_answer": 5},
        "repetition": {"runs": 0.2},
        "languages": ["en"],
        "toxicity": {"above": 0.9},
    }
    names = [name for name, _ in pipeline.stages(Clean.model_validate(asked))]
    assert names[3:] == ["length", "repetition", "languages", "toxicity"]
    assert len(list(pipeline.stages(Clean.model_validate({"length": {"unit": "characters"}})))) == 3
