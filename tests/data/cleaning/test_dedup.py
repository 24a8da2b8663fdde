"""Exact and near-duplicates: what goes, what a number or a negation protects, and that the index misses nothing."""

import csv
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import judged

from tunesmith.core.records import Dropped, Kept, Row, normalised
from tunesmith.data import sketches, traits
from tunesmith.data.cleaning import dedup
from tunesmith.data.traits import prompt_text


def exact(rows: list[Row]) -> list[Kept | Dropped]:
    return judged(rows, dedup.exact)


def near(rows: list[Row], threshold: float, keep_equal: bool = False) -> list[Kept | Dropped]:
    prompts = sketches.sketched([prompt_text(row) for row in rows], sketches.banding(threshold, len(rows)))
    return judged(rows, partial(dedup.near, prompts=prompts, threshold=threshold, keep_equal=keep_equal))


REFUND = "Please tell me how I can get a refund for the order that I placed with you yesterday evening"


def row(prompt: str, answer: str = "ok", line: int = 1, system: str = "", calls: object = None, **more: object) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    last = {"role": "assistant", "content": answer} | ({"tool_calls": calls} if calls else {})
    return Row([*messages, {"role": "user", "content": prompt}, last], "tickets.jsonl", line, "messages", **more)


def kept_lines(results) -> list[int]:
    return [result.row.line for result in results if isinstance(result, Kept)]


def test_the_same_prompt_and_answer_is_a_duplicate_of_the_first():
    rows = [row("Where is my order?", "On its way.", 14), row("where is  my ORDER", "On its\nway. ", 20), row("Where?")]
    first, twin, other = exact(rows)
    assert (first, other) == (Kept(rows[0]), Kept(rows[2]))
    assert twin == Dropped(rows[1], "duplicate", "same as tickets.jsonl:14")


@pytest.mark.parametrize(("one", "two"), [
    (row("q", "yes"), row("q", "no")),
    (row("q", system="Be brief."), row("q", system="Be polite.")),
    (row("q"), row("q", tools=[{"type": "function", "function": {"name": "f"}}])),
    (row("q", calls=[{"function": {"name": "f"}}]), row("q", calls=[{"function": {"name": "g"}}])),
    (row("q", rejected="bad"), row("q", rejected="worse")),
    (row("5 - 0"), row("5 + 0")), (row("1.5 m"), row("1, 5 m")),
    (row("up 5%"), row("up 5")), (row("-5 °C"), row("5 °C")),
    (row("in C++"), row("in C#")), (row("fine 👍"), row("fine 🙏")),
    (row("q", split="test"), row("q")), (row("q", split="test"), row("q", split="validation")),
    (row("q", split="train"), row("q", split="test")),
], ids=["answer", "system", "tools", "calls", "rejected", "sign", "point", "percent", "negative", "language", "picture",
        "test-auto", "test-validation", "train-test"])  # fmt: skip
def test_rows_that_differ_in_what_counts_both_stay(one, two):
    assert list(exact([one, two])) == [Kept(one), Kept(two)]
    assert list(near([one, two], 0.6)) == [Kept(one), Kept(two)]


def test_a_row_with_an_answer_that_is_not_learnt_repeats_none_in_which_it_is():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "wrong"}, *row("and now?").messages]
    marked = [turns[0], {**turns[1], "learnt": False}, *turns[2:]]
    rows = [Row(messages, "a.jsonl", line, "messages") for line, messages in enumerate((turns, marked, marked), 1)]
    assert kept_lines(exact(rows)) == [1, 2]
    assert kept_lines(near(rows, 0.9)) == [1, 2]
    kinds = traits.of(rows, traits.compared, traits.COMPARED)["kind"]
    assert kinds[0] != kinds[1] == kinds[2]


def test_one_row_twice_is_a_duplicate():
    twice = [row("q", line=3)] * 2
    assert list(exact(twice)) == [Kept(twice[0]), Dropped(twice[0], "duplicate", "same as tickets.jsonl:3")]
    assert [type(result) for result in near(twice, 0.9)] == [Kept, Dropped]


def test_a_row_pinned_to_train_is_compared_with_rows_that_may_go_there():
    assert kept_lines(exact([row("q", line=1, split="train"), row("q", line=2)])) == [1]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=12))
def test_exactly_one_row_of_each_kind_stays_and_it_is_the_first(pairs):
    rows = [row(prompt, answer, i) for i, (prompt, answer) in enumerate(pairs)]
    assert kept_lines(exact(rows)) == sorted(pairs.index(pair) for pair in set(pairs))


def test_a_near_duplicate_needs_the_same_answer():
    rows = [
        row(REFUND, "See returns.", 3),
        row(REFUND, "Other.", 4),
        row(REFUND + ", or not yet", " See  returns.", 5),
        row(REFUND + " please", " See  returns.", 6),
    ]
    *others, twin = near(rows, 0.8)
    assert others == [Kept(r) for r in rows[:3]]
    expected = similarity(REFUND, REFUND + " please")
    assert twin == Dropped(rows[3], "near-duplicate", f"{expected:.2f} like tickets.jsonl:3")


@pytest.mark.parametrize(("one", "two"), [
    ("order 20931", "order 20932"), ("2 of 3", "3 of 3"), ("I can come", "I can't come"),
    ("I can come", "I can not come"), ("is it on", "is it not on"), ("with a bag", "without a bag"),
    ("dont do it", "do it"), ("you must go", "you mustn’t go"), ("my card does work", "my card dosn't work"),
    ("Ich habe eine", "Ich habe keine"),
])  # fmt: skip
def test_a_number_or_a_negation_protects(one, two):
    rows = [row(f"{REFUND}: {one}. {REFUND}."), row(f"{REFUND}: {two}. {REFUND}.")]
    assert kept_lines(near(rows, 0.55)) == [1, 1]


@pytest.mark.parametrize(("one", "two"), [
    ("a cotton shirt", "a cotton t-shirt"), ("what you can. shirts", "what you can. T-shirts"),
    ("there is no shirt", "there is no t-shirt"),
])  # fmt: skip
def test_a_shirt_denies_nothing(one, two):
    rows = [row(f"{REFUND}: {one}"), row(f"{REFUND}: {two}", line=2)]
    assert kept_lines(near(rows, 0.8)) == [1]


def test_numbers_may_change_places():
    rows = [row(f"{REFUND} of 3 or 4", line=1), row(f"{REFUND} of 4 or 3", line=2)]
    assert kept_lines(near(rows, 0.9)) == [1]


def test_the_threshold_changes_what_goes():
    rows = [row("the opposite of dark", line=1), row("the opposite of deep", line=2)]  # 14 of 20 shingles are shared
    assert kept_lines(near(rows, 0.7)) == [1]
    assert kept_lines(near(rows, 0.71)) == [1, 2]


def test_equal_prompts_may_be_kept():
    rows = [row(REFUND, line=1), row(REFUND.upper(), line=2), row(REFUND + " please", line=3), row(REFUND, line=4)]
    assert kept_lines(near(rows, 0.9)) == [1]
    assert kept_lines(near(rows, 0.9, keep_equal=True)) == [1, 2, 4]


def test_texts_shorter_than_a_shingle_are_compared_whole():
    rows = [row(prompt, line=i) for i, prompt in enumerate(["hi", "yo", "Hi!", "?", "!", ""])]
    assert kept_lines(near(rows, 0.6)) == [0, 1, 3, 4, 5]


def similarity(a: str, b: str) -> float:
    shingles = [{t[i : i + 4] for i in range(max(len(t) - 3, 1))} for t in (normalised(a), normalised(b))]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def by_all_pairs(prompts: list[str], threshold: float) -> list[int]:
    kept: list[int] = []
    for i, prompt in enumerate(prompts):
        if all(similarity(prompt, prompts[j]) < threshold for j in kept):
            kept.append(i)
    return kept


phrases = st.sampled_from(["book ", "a table ", "for my ", "family ", "friends ", "tonight", "today"])
prompts = st.text("abc d", max_size=14) | st.lists(phrases, max_size=7).map("".join)


@given(st.lists(prompts, max_size=14), st.sampled_from([0.51, 0.55, 2 / 3, 0.7, 0.8, 0.9, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(prompts, threshold):
    rows = [row(prompt, line=i) for i, prompt in enumerate(prompts)]
    assert kept_lines(near(rows, threshold)) == by_all_pairs(prompts, threshold)


def test_real_prompts_as_by_all_pairs(real_data):
    """Of the first 400 published instructions 48 are like an earlier one; not one of them has its answer, too."""
    data = json.loads((real_data / "instructions/instruction-data.json").read_text())[:400]
    prompts = ["".join(c for c in f"{d['instruction']}\n{d['input']}" if not c.isdigit()) for d in data]
    prompts = [" ".join(w for w in normalised(p).split() if w not in ("not", "no", "t", "without")) for p in prompts]
    rows = [row(prompt, line=i) for i, prompt in enumerate(prompts)]
    kept = kept_lines(near(rows, 0.7))
    assert kept == by_all_pairs(prompts, 0.7)
    assert len(kept) == 352
    assert len(kept_lines(near([row(p, d["output"]) for p, d in zip(prompts, data)], 0.7))) == 400


def test_banking77_has_31_repeated_prompts_of_which_one_is_a_contradiction(real_data):
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], r["category"], i) for i, r in enumerate(csv.DictReader(file), 1)]
    assert sum(isinstance(result, Dropped) for result in exact(rows)) == 30


def test_ten_thousand_rows_with_one_answer(real_data):
    """All of banking77 under one answer takes seconds; by all pairs it would be fifty million comparisons."""
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], line=i) for i, r in enumerate(csv.DictReader(file), 1)]
    results = list(near(rows, 0.9))
    assert [result.row for result in results] == rows
    for twin in (result for result in results if isinstance(result, Dropped)):
        earlier = rows[int(twin.detail.rpartition(":")[2]) - 1]
        assert similarity(twin.row.messages[0]["content"], earlier.messages[0]["content"]) >= 0.9
