"""Contradictions: what is one context, what is the same answer, and the three ways to go on."""

import csv
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import finding, judged

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.cleaning import contradictions


def resolve(
    rows: list[Row], mode: contradictions.Mode, one_right: contradictions.OneRight = "yes"
) -> list[Kept | Dropped]:
    return judged(rows, partial(contradictions.resolve, mode=mode, one_right=one_right))


def row(prompt: str, answer: str, line: int = 1, system: str = "", calls: object = None, **more: object) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    last = {"role": "assistant", "content": answer} | ({"tool_calls": calls} if calls else {})
    return Row([*messages, {"role": "user", "content": prompt}, last], "t.csv", line, "messages", **more)


def test_report_keeps_all_and_names_one_other_row():
    rows = [row("Up?", "yes", 1), row("other", "no", 2), row("up", "no", 3), row("UP", "yes", 4)]
    results = list(resolve(rows, "report"))
    assert [r.row.changes for r in results] == [
        ["contradicts t.csv:3"],
        [],
        ["contradicts t.csv:1"],
        ["contradicts t.csv:3"],
    ]
    assert [r.row.messages for r in results] == [r.messages for r in rows]


def test_whether_an_earlier_answer_is_learnt_makes_no_other_context():
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "wrong", "learnt": False}]
    marked = Row([*asked, *row("up", "yes").messages], "t.csv", 1, "messages")
    plain = Row(
        [asked[0], {"role": "assistant", "content": "wrong"}, *row("up", "no").messages], "t.csv", 2, "messages"
    )
    assert [type(result) for result in resolve([marked, plain], "drop")] == [Dropped, Dropped]


def test_drop_drops_all_rows_of_the_prompt():
    rows = [row("up", "yes", 1), row("other", "no", 2), row("up", "no", 3), row("up", "yes", 4)]
    first, kept, second, third = resolve(rows, "drop")
    assert kept == Kept(rows[1])
    assert first == Dropped(rows[0], "contradiction", "2 answers to one prompt; see t.csv:3")
    assert (second.detail, third.detail) == (
        "2 answers to one prompt; see t.csv:1",
        "2 answers to one prompt; see t.csv:3",
    )


def test_the_majority_stays():
    rows = [row("up", "no", 1), row("up", "yes", 2), row("up", " yes", 3)]
    outvoted, one, two = resolve(rows, "majority")
    assert (one, two) == (Kept(rows[1]), Kept(rows[2]))
    assert outvoted == Dropped(rows[0], "contradiction", "2 answers to one prompt; see t.csv:2")


@pytest.mark.parametrize("answers", [["a", "b"], ["a", "a", "b", "b", "c"], ["a", "b", "c"]])
def test_a_tie_drops_all(answers):
    results = list(resolve([row("up", answer) for answer in answers], "majority"))
    assert all(isinstance(result, Dropped) for result in results)


@pytest.mark.parametrize(("one", "two"), [
    ('{"a": 1, "b": 2}', '{"b":2,"a":1.0}'), ("yes  sir", " yes\nsir"), ('[{"x": 2.0}]', '[{"x": 2}]'),
    ('"é"', r'"\u00e9"'),
])  # fmt: skip
def test_the_same_answer_written_two_ways_is_no_contradiction(one, two):
    assert all(isinstance(result, Kept) for result in resolve([row("q", one), row("q", two)], "drop"))


@pytest.mark.parametrize(("one", "two"), [
    ('{"a": 1}', '{"a": true}'), ('{"a": "x  y"}', '{"a": "x y"}'), ("a b", '"a b"'), ('["a", "b"]', '["b", "a"]'),
    ("Yes", "yes"), ('{"a": null}', "{}"),
])  # fmt: skip
def test_different_answers_contradict(one, two):
    assert all(isinstance(result, Dropped) for result in resolve([row("q", one), row("q", two)], "drop"))


def test_different_calls_contradict():
    rows = [row("q", "", calls=[{"function": {"name": name}}]) for name in "fg"]
    assert all(isinstance(result, Dropped) for result in resolve(rows, "drop"))


@pytest.mark.parametrize("other", [
    row("q", "no", system="Answer no."), row("q", "no", tools=[{"type": "function"}]), row("q", "no", split="test"),
    row("-q", "no", system="x"),
])  # fmt: skip
def test_another_context_is_no_contradiction(other):
    assert all(isinstance(result, Kept) for result in resolve([row("q", "yes"), other], "drop"))


def test_sums_that_differ_in_a_sign_are_two_prompts():
    rows = [row("What is 5 + 3?", "8"), row("What is 5 - 3?", "2"), row("What is 5.3?", "a number")]
    assert list(resolve(rows, "drop")) == [Kept(r) for r in rows]


@pytest.mark.parametrize(("one", "two"), [
    ("Great 😀", "Great 😡"), ("I write C++", "I write C#"), ("is x > y", "is x < y"), ("¬a", "a")])  # fmt: skip
def test_prompts_that_differ_in_a_sign_or_a_picture_are_two(one, two):
    rows = [row(one, "yes"), row(two, "no")]
    assert list(resolve(rows, "drop")) == [Kept(r) for r in rows]


@pytest.mark.parametrize(
    ("one", "two"), [("It works!", "it works"), ("“so”, he said", '"so," he said…'), ("£ or $?", "$ or £?")]
)
def test_punctuation_makes_no_other_prompt(one, two):
    assert not any(isinstance(found, Kept) for found in resolve([row(one, "yes"), row(two, "no")], "drop"))


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abc")), max_size=10), st.randoms())
def test_what_is_dropped_does_not_depend_on_the_order(pairs, random):
    rows = [row(prompt, answer, i) for i, (prompt, answer) in enumerate(pairs)]
    for mode in ("drop", "majority"):
        kept = {r.row.line for r in resolve(rows, mode) if isinstance(r, Kept)}
        shuffled = random.sample(rows, len(rows))
        assert {r.row.line for r in resolve(shuffled, mode) if isinstance(r, Kept)} == kept


def test_banking77_contradicts_itself_once(real_data):
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], r["category"], i) for i, r in enumerate(csv.DictReader(file), 1)]
    dropped = [result.row for result in resolve(rows, "drop") if isinstance(result, Dropped)]
    assert sorted((r.messages[0]["content"], r.answer) for r in dropped) == [
        ("Has my top up gone through?", "pending_top_up"),
        ("Has my top-up gone through?", "top_up_reverted"),
    ]


def test_the_newest_answer_stays_with_all_rows_that_give_it():
    rows = [row("up", "old", 1), row("up", "new", 2), row("up", "old", 3), row("up", " new", 4)]
    first, one, third, two = resolve(rows, "newest")
    assert (one, two) == (Kept(rows[1]), Kept(rows[3]))
    assert first == Dropped(rows[0], "contradiction", "a newer answer is in t.csv:4")
    assert third == Dropped(rows[2], "contradiction", "a newer answer is in t.csv:4")


def test_the_time_of_an_answer_counts_more_than_its_place():
    rows = [row("up", "new", 1, time=9.0), row("up", "old", 2, time=8.0), row("up", "undated", 3)]
    results = resolve(rows, "newest")
    assert [type(result) for result in results] == [Kept, Dropped, Dropped]
    assert results[2].detail == "a newer answer is in t.csv:1"


def reviewed(rows: list[Row], decided: dict[int, bool]) -> list[str]:
    """What becomes of each row; decisions are by line."""
    decisions = {int(r.id, 16): decided[r.line] for r in rows if r.line in decided}
    options = {"mode": "review", "one_right": "yes", "reviewed": decisions}
    return [
        result.reason if isinstance(result, Dropped) else "kept"
        for result in judged(rows, partial(contradictions.resolve, **options))
    ]


@pytest.mark.parametrize(("decided", "expected"), [
    ({}, ["waits"] * 3), ({1: True}, ["kept", "gone", "gone"]), ({1: True, 2: True}, ["kept", "kept", "gone"]),
    ({1: False}, ["gone", "waits", "waits"]), ({1: False, 2: False, 3: False}, ["gone"] * 3),
    ({3: True, 1: False}, ["gone", "gone", "kept"]),
])  # fmt: skip
def test_a_review_decides(decided, expected):
    rows = [row("up", "a", 1), row("up", "b", 2), row("up", "c", 3), row("other", "d", 4)]
    words = {"waits": contradictions.WAITS, "gone": "contradiction", "kept": "kept"}
    assert reviewed(rows, decided) == [*(words[word] for word in expected), "kept"]


def test_decisions_that_no_longer_matter_are_told():
    rows = [row("up", "a", 1), row("up", "b", 2), row("other", "d", 4)]
    decisions = {int(r.id, 16): True for r in rows[1:]}
    found = finding(rows, partial(contradictions.resolve, mode="review", reviewed=decisions))
    assert found.warnings[-1] == (
        f"1 decisions in data.clean.reviewed are about rows that contradict none any more, as {rows[2].id}."
    )
