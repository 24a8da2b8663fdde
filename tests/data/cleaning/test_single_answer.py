"""Whether one answer is right, as rows show it: by their form, by a closed set of labels, by prompts that repeat."""

import csv
import json
import math
from functools import partial

import pytest
from judged import finding, judged

from tunesmith.core.records import Dropped, Row
from tunesmith.data.cleaning import contradictions


def row(prompt: str, answer: str, line: int = 1, system: str = "", calls: object = None, **more: object) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    last = {"role": "assistant", "content": answer} | ({"tool_calls": calls} if calls else {})
    return Row([*messages, {"role": "user", "content": prompt}, last], "t.csv", line, "messages", **more)


def dropped(rows: list[Row], one_right: contradictions.OneRight = "auto") -> list[str]:
    results = judged(rows, partial(contradictions.resolve, mode="drop", one_right=one_right))
    return [result.row.answer for result in results if isinstance(result, Dropped)]


def told(rows: list[Row], **options: object) -> tuple[dict, list[str]]:
    found = finding(rows, partial(contradictions.resolve, **{"mode": "drop", **options}))
    return found.facts, found.warnings


UP = [row("up?", "red"), row("up?", "green")]
SENTENCES = [row(f"say a word with {c}", f"a sentence of its own with {c}") for c in "abcdefghijkl"]


def repeated(agreeing: int, differing: int) -> list[Row]:
    """Prompts that stand there twice, in two spellings."""
    same = [row(prompt, f"only {i}", i) for i in range(agreeing) for prompt in (f"q{i}", f"Q{i}!")]
    return same + [row(f"r{i}", f"{side} {i}", i) for i in range(differing) for side in ("this", "that")]


def test_nothing_is_dropped_where_nothing_shows_that_one_answer_is_right():
    assert dropped(SENTENCES + UP) == []
    facts, warnings = told(SENTENCES + UP)
    assert (facts["rows"], facts["prompts"], facts["with_one_right_answer"]) == (2, 1, 0)
    assert warnings == [
        "1 prompts with several answers were left as they are: of 1 prompts that stand there more than once, "
        "0 have one answer, which does not show that one answer is right. If each prompt has one right answer, "
        "say `data.clean.single_answer: yes`."
    ]


@pytest.mark.parametrize("mode", ["majority", "newest", "review"])
def test_no_resolver_drops_what_may_be_right(mode):
    results = judged(SENTENCES + UP, partial(contradictions.resolve, mode=mode))
    assert not any(isinstance(result, Dropped) for result in results)
    assert results[-1].row.changes == ["contradicts t.csv:1"]


def test_the_project_file_overrules_the_rows():
    assert dropped(SENTENCES + UP, "yes") == ["red", "green"]
    labels = [row(f"message {n}", ("red", "green")[n % 2]) for n in range(40)]
    assert dropped(labels + UP) == ["red", "green"]
    assert dropped(labels + UP, "no") == []
    assert told(SENTENCES + UP, one_right="no")[1] == []


@pytest.mark.parametrize(("agreeing", "differing", "one_right"), [
    (4, 0, None), (4, 1, False), (8, 2, False), (9, 2, True), (20, 6, True), (20, 14, False),
])  # fmt: skip
def test_repeated_prompts_must_agree_more_often_than_not_beyond_doubt(agreeing, differing, one_right):
    rows = repeated(agreeing, differing)
    if one_right is None:
        assert told(rows)[0]["tasks"] == []
        return
    (task,) = told(rows)[0]["tasks"]
    assert (task["repeated"], task["agreeing"], task["one_right"]) == (agreeing + differing, agreeing, one_right)
    assert len(dropped(rows)) == (2 * differing if one_right else 0)


def test_a_long_answer_that_is_copied_is_no_second_vote():
    long = "a long and winding answer which nobody would write a second time, word for word"
    copies = [row(f"tell me about {c}", f"{long} {c}") for c in "abcdefghijkl" for _ in range(2)]
    contested = [row("tell me more", long), row("tell me more", "no")]
    (task,) = told(copies + contested)[0]["tasks"]
    assert (task["repeated"], task["agreeing"], task["one_right"]) == (1, 0, False)
    assert dropped(copies + contested) == []


@pytest.mark.parametrize(("rows", "one_right"), [
    ([row(f"message {n}", "abcd"[n % 4]) for n in range(40)], True),
    ([row(f"message {n}", "abcd"[n % 4]) for n in range(8)], False),  # too few to know all labels
    ([row(f"message {n}", f"name {n % 35}") for n in range(40)], False),  # most answers are new
    ([row(f"message {n}", "a paragraph of many more words, more than any label has " + "ab"[n % 2]) for n in range(40)],
     False),
    ([row("one message", "abcd"[n % 4]) for n in range(40)], False),  # a message that has all of the labels
], ids=["labels", "few rows", "names", "paragraphs", "one prompt"])  # fmt: skip
def test_a_closed_set_of_short_answers_is_labels(rows, one_right):
    assert bool(dropped([*rows, row("up?", "a"), row("up?", "b")])) == one_right


def test_json_and_calls_are_single_answer_by_form():
    assert len(dropped([row("q", '{"a": 1}'), row("q", '{"a": 2}')])) == 2
    assert len(dropped([row("q", '["a"]'), row("q", '["b"]')])) == 2
    assert len(dropped([row("q", "", calls=[{"function": {"name": name}}]) for name in "fg"])) == 2
    assert dropped([row("q", "1"), row("q", "2")]) == []
    assert dropped([row("q", '{"a": 1}'), row("q", "I do not know")]) == []


def test_each_task_is_judged_by_itself():
    """Messages to be labelled beside a chat: the labels show nothing about the chat."""
    labels = [row(f"message {n}", "ab"[n % 2], system="Label it.") for n in range(40)]
    rows = [*labels, row("up?", "a", system="Label it."), row("up?", "b", system="Label it."), *SENTENCES, *UP]
    assert dropped(rows) == ["a", "b"]
    facts, _ = told(rows)
    assert [(task["rows"], task["one_right"]) for task in facts["tasks"]] == [(42, True), (14, False)]


def test_the_loss_that_no_training_takes_away_is_told():
    rows = [row("up?", "a"), row("up?", "b"), row("down?", "a"), row("down?", "a"), row("down?", "b"), row("x", "a")]
    facts, _ = told(rows)
    of_two, of_three = math.log(2), -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert facts["rows"] == 5
    assert facts["nats_per_row"] == round((2 * of_two + 3 * of_three) / 5, 4)


def test_banking77_shows_that_one_intent_is_right(real_data):
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], r["category"], i) for i, r in enumerate(csv.DictReader(file), 1)]
    facts, warnings = told(rows)
    (task,) = facts["tasks"]
    assert (facts["rows"], facts["prompts"], facts["with_one_right_answer"], warnings) == (2, 1, 1, [])
    assert (task["answers"], task["repeated"], task["agreeing"]) == (77, 31, 30)
    assert task["why"] == "77 short answers serve 10,003 rows: they are labels, of which one is right"
    assert sorted(dropped(rows)) == ["pending_top_up", "top_up_reverted"]


def test_instructions_show_that_many_answers_are_right(real_data):
    data = json.loads((real_data / "instructions/instruction-data.json").read_text())
    rows = [row(f"{d['instruction']}\n{d['input']}", d["output"], i) for i, d in enumerate(data, 1)]
    facts, warnings = told(rows)
    assert (facts["prompts"], facts["with_one_right_answer"], len(warnings)) == (26, 0, 1)
    assert dropped(rows) == []


@pytest.mark.parametrize(("with_context", "prompts"), [(False, 42), (True, 3)])
def test_restaurant8k_contradicts_itself_where_what_was_asked_for_is_left_out(with_context, prompts, real_data):
    rows = []
    for side in ("train", "test"):
        for record in json.loads((real_data / f"restaurant8k/{side}.json").read_text()):
            asked = record.get("context", {}).get("requestedSlots", []) if with_context else []
            rows.append(row(record["userInput"]["text"], spans(record), system=" ".join(asked)))
    assert told(rows)[0]["prompts"] == prompts
    assert len(set(dropped(rows))) > 1


def spans(record: dict) -> str:
    text = record["userInput"]["text"]
    found = {label["slot"]: label["valueSpan"] for label in record.get("labels", [])}
    return json.dumps({slot: text[span.get("startIndex", 0) : span["endIndex"]] for slot, span in found.items()})
