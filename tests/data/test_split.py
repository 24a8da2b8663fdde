"""The split: no prompt on two sides, nothing moves when rows are added, pins win, and every row is accounted for."""

import csv
import json
import random
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tunesmith.core import store
from tunesmith.core.data_section import Source, Split
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Dropped, Row
from tunesmith.core.step import Artifact
from tunesmith.data import links, load, parts, sketches, split, traits
from tunesmith.data.split import ALIKE, SIDES


def assign(rows: list[Row], settings: Split) -> tuple[dict[str, list[Row]], list[Dropped]]:
    """The rows of each side, in their order, and those that no side could take."""
    noted = traits.of(rows, split._placed, split._PLACED)
    prompts = sketches.sketched([traits.prompt_text(row) for row in rows], sketches.banding(ALIKE, len(rows)))
    found = split.assign(noted, linked(rows, noted), prompts, settings)
    sides = {side: [rows[place] for place in found.of(i)] for i, side in enumerate(SIDES)}
    return sides, [Dropped(rows[place], *why) for place, why in sorted(found.gone.items())]


def linked(rows: list[Row], noted: traits.Traits) -> links.Links:
    """Noted in two parts."""
    half = len(rows) // 2
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder), Path(folder, "second")]
        folders[1].mkdir()
        for of_part, some in zip(folders, (rows[:half], rows[half:])):
            links.write(of_part, some)
        return links.together(folders, noted, [half, len(rows) - half])


def row(prompt: str, answer: str = "ok", line: int = 1, pin: str = "auto", **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, f"{pin}.jsonl", line, "messages", split=pin, **more)


def sides_of(rows: list[Row], settings: Split) -> dict[int, str]:
    """Each row's side by its line; rows that were dropped are absent."""
    sides, _ = assign(rows, settings)
    return {r.line: side for side in SIDES for r in sides[side]}


def numbered(rows: list[Row]) -> list[Row]:
    return [row(r.messages[0]["content"], r.answer, i, r.split) for i, r in enumerate(rows)]


automatic = st.builds(row, st.sampled_from([f"prompt {c}" for c in "abcdefghijklmnop"]), st.sampled_from("xyz"))
pinned = st.builds(
    row,
    st.sampled_from([f"prompt {c}" for c in "abcdef"]),
    st.sampled_from("xyz"),
    st.just(1),
    st.sampled_from(["auto", "train", "validation", "test"]),
)
splits = st.builds(
    Split,
    validation=st.sampled_from([0, 0.1, 0.3]),
    test=st.sampled_from([0, 0.2, 0.4]),
    max_train_rows=st.none() | st.integers(1, 5),
    max_validation_rows=st.none() | st.integers(1, 2),
    max_test_rows=st.none() | st.integers(1, 2),
)


@given(st.lists(pinned, max_size=20), splits)
def test_no_prompt_is_on_two_sides_and_the_ledger_balances(rows, settings):
    sides, dropped = assign(rows, settings)
    groups = [{r.group for r in sides[side]} for side in SIDES]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert sum(map(len, sides.values())) + len(dropped) == len(rows)
    assert Counter(map(id, rows)) == Counter(id(r) for r in [*chain(*sides.values()), *(d.row for d in dropped)])
    assert all(r.split in ("auto", side) for side in SIDES for r in sides[side])


@given(st.lists(automatic, max_size=15), st.lists(automatic, max_size=15), splits)
def test_adding_rows_moves_no_row(rows, added, settings):
    settings = Split(validation=settings.validation, test=settings.test)
    rows = numbered(rows + added)
    before, after = sides_of(rows[: len(rows) - len(added)], settings), sides_of(rows, settings)
    assert after | before == after


@given(st.lists(pinned, min_size=1, max_size=15), st.lists(pinned, max_size=15))
def test_adding_to_pinned_files_can_take_a_prompt_away_but_moves_none(rows, added):
    """Both files are there already; a prompt that is new in the exam leaves the other sides."""
    files = [row("only in validation", pin="validation"), row("only in test", pin="test")]
    rows = numbered(files + rows + added)
    before, after = sides_of(rows[: len(rows) - len(added)], Split()), sides_of(rows, Split())
    assert all(after.get(line, side) == side for line, side in before.items())
    assert all(line in after for line, side in before.items() if side == "test")


@given(st.lists(pinned, max_size=20), splits, st.randoms())
def test_the_order_of_the_rows_decides_nothing(rows, settings, random):
    rows = numbered(rows)

    def contents(given_rows):
        return {side: Counter(r.id for r in found) for side, found in assign(given_rows, settings)[0].items()}

    assert contents(random.sample(rows, len(rows))) == contents(rows)


@given(st.lists(automatic, max_size=20), st.integers(1, 6))
def test_caps_keep_the_lowest_hashes_and_say_what_went(rows, limit):
    sides, dropped = assign(rows, Split(validation=0, test=0, max_train_rows=limit))
    assert len(sides["train"]) == min(limit, len(rows))
    assert {d.reason for d in dropped} <= {"over max_train_rows"}
    places = [split._position(int(r.group, 16)) for r in sides["train"]]
    assert all(split._position(int(d.row.group, 16)) >= max(places) for d in dropped)


@pytest.mark.parametrize("side", SIDES)
def test_every_side_has_its_own_cap(side):
    rows = [row(f"q{i}", line=i) for i in range(300)]
    before, after = assign(rows, Split())[0], assign(rows, Split.model_validate({f"max_{side}_rows": 7}))[0]
    assert {s: len(after[s]) for s in SIDES} == {s: 7 if s == side else len(before[s]) for s in SIDES}


def test_fractions_are_met():
    words = random.Random(0).choices(range(10**9), k=4000)  # no two alike
    sides, _ = assign([row(f"{word:x}", line=i) for i, word in enumerate(words)], Split(validation=0.1, test=0.25))
    assert len(sides["test"]) / 4000 == pytest.approx(0.25, abs=0.025)
    assert len(sides["validation"]) / 4000 == pytest.approx(0.1, abs=0.02)


def test_sides_are_those_of_the_published_hash():
    """These prompts' sides must not change from one version to the next: frozen exams depend on it."""
    prompts = ["Where is my order?", "where is MY order", "hello", "7", "b"]
    rows = [row(prompt, line=i) for i, prompt in enumerate(prompts)]
    assert sides_of(rows, Split(validation=0.3, test=0.3)) == {
        0: "test",
        1: "test",
        2: "validation",
        3: "train",
        4: "validation",
    }


def test_a_pinned_exam_takes_the_place_of_the_fraction():
    rows = [row(f"q{i}", line=i) for i in range(200)]
    examined = sides_of([*rows, row("exam", pin="test", line=-1)], Split())
    assert [line for line, side in examined.items() if side == "test"] == [-1]
    assert Counter(examined.values())["validation"] > 5
    checked = sides_of([*rows, row("check", pin="validation", line=-1)], Split())
    assert [line for line, side in checked.items() if side == "validation"] == [-1]
    assert Counter(checked.values())["test"] > 20


def test_what_stands_in_the_exam_is_dropped_elsewhere_with_its_place():
    rows = [
        row("Q1", pin="train", line=1),
        row("q2", pin="train", line=2),
        row("q3", line=3),
        row("q4", line=4),
        row("q1", pin="test", line=5),
        row("q3!", pin="test", line=6),
        row("Q2", pin="validation", line=7),
        row("q1?", pin="validation", line=8),
    ]
    sides, dropped = assign(rows, Split())
    assert {side: [r.line for r in sides[side]] for side in SIDES} == {"train": [4], "validation": [7], "test": [5, 6]}
    assert [(d.row.line, d.reason, d.detail) for d in dropped] == [
        (1, "prompt also in test", "same prompt as test.jsonl:5"),
        (2, "prompt also in validation", "same prompt as validation.jsonl:7"),
        (3, "prompt also in test", "same prompt as test.jsonl:6"),
        (8, "prompt also in test", "same prompt as test.jsonl:5"),
    ]


def run(folder, rows, pinned=(), **options):
    store.write_rows(folder / "rows.jsonl", rows)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return split.run(Split.model_validate(options), pinned, Artifact("clean", "0", folder, "done"), out)


def test_files_and_summary(tmp_path):
    rows = [row(f"q{i}", line=i) for i in range(60)] + [
        row("q1", "other", 60),
        row("exam", pin="test", line=61),
        row("EXAM", pin="train", line=62),
    ]
    summary = run(tmp_path, rows, max_train_rows=40)
    lines = {side: [r.line for r in store.read_rows(tmp_path / "out" / f"{side}.jsonl")] for side in SIDES}
    dropped = list(store.read_jsonl(tmp_path / "out" / "dropped.jsonl"))
    assert {side: len(lines[side]) for side in SIDES} == {side: summary[side] for side in SIDES}
    assert lines["train"] == sorted(lines["train"])
    assert sorted([*chain(*lines.values()), *(d["line"] for d in dropped)]) == list(range(63))
    assert summary["rows_in"] == 63 == sum(summary[side] for side in SIDES) + summary["dropped"]
    assert summary["reasons"] == dict(Counter(d["reason"] for d in dropped))
    assert summary["reasons"]["prompt also in test"] == 1
    assert summary["groups"] == {
        side: len({r.group for r in store.read_rows(tmp_path / "out" / f"{side}.jsonl")}) for side in SIDES
    }
    assert summary["warnings"] == []


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_a_split_that_tears_two_rows_apart_is_not_certified(one, other, tmp_path, monkeypatch):
    def torn(*given):
        found = assign(*given)
        found.side_N[[60, 61]] = SIDES.index(one), SIDES.index(other)
        return found

    assign = split.assign
    monkeypatch.setattr(split, "assign", torn)
    rows = [row(f"{i * 7919:x} {i * 104729:x}", line=i) for i in range(60)]
    rows += [row("where on earth is my parcel now", line=60), row("where on earth is my parcel, now?", line=61)]
    with pytest.raises(AssertionError, match="1 rows have their like on another side"):
        run(tmp_path, rows)


def test_an_empty_side_is_a_warning(tmp_path):
    summary = run(tmp_path, [row("a train row"), row("test me", pin="test")], validation=0.0001, test=0)
    assert summary["warnings"] == [
        "validation is empty: none of the 2 rows fell into its share of 0.0001; add examples."
    ]
    assert run(tmp_path, [row("a train row")], validation=0, test=0)["warnings"] == []
    both = [row("a train row"), row("a", pin="test"), row("A", pin="validation")]
    assert run(tmp_path, both)["warnings"] == [
        "validation is empty: every prompt of the files that are pinned to it also stands in test."
    ]


def test_a_pinned_exam_of_which_nothing_is_left_is_no_other_exam(tmp_path):
    summary = run(tmp_path, [row(f"question {word}") for word in range(200)], pinned=["test"], validation=0, test=0.5)
    assert (summary["train"], summary["test"]) == (200, 0)
    assert summary["warnings"] == [
        "test is empty: no row of the files that are pinned to it is left (`tunesmith data` tells why)."
    ]


def test_fractions_that_leave_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="leaves no rows to train on") as caught:
        run(tmp_path, [row("a")], validation=0.5, test=0.5)
    assert "validation 0.5 and test 0.5 make 1" in caught.value.why
    assert caught.value.next


def test_nothing_to_train_on_is_refused_and_what_happened_is_on_disk(tmp_path):
    with pytest.raises(DataError, match="no row is left to train on") as caught:
        run(tmp_path, [row("a", pin="train"), row("A", pin="test"), row("b", pin="validation")])
    assert caught.value.why == "1 in validation, 1 in test, 1 dropped: prompt also in test"
    assert len(list(store.read_jsonl(tmp_path / "out" / "dropped.jsonl"))) == 1


def test_banking77_as_published_leaks_25_exam_prompts_into_training(real_data):
    rows = []
    for pin in ("train", "test"):
        with open(real_data / f"banking77/{pin}.csv", newline="", encoding="utf-8") as file:
            rows += [row(r["text"], r["category"], i, pin) for i, r in enumerate(csv.DictReader(file), 1)]
    sides, dropped = assign(rows, Split())
    assert len(sides["test"]) == 3080
    exam = {r.group for r in sides["test"]}
    assert not exam & {r.group for r in sides["train"]}
    assert sum(r.group in {d.row.group for d in dropped} for r in sides["test"]) == 25
    assert Counter(d.reason for d in dropped) == {"prompt also in test": 25, "prompt like one in test": 567}


def likest(some: list[Row], others: list[Row]) -> float:
    """The highest Jaccard similarity between a prompt of these and one of those, over all pairs."""
    texts = [traits.prompt_text(row) for row in [*some, *others]]
    grams = [{text[i : i + 4] for i in range(max(len(text) - 3, 1))} for text in texts]
    number = {gram: i for i, gram in enumerate(sorted(set().union(*grams)))}
    columns = [number[gram] for its in grams for gram in its]
    begins = np.cumsum([0, *map(len, grams)])
    has = csr_array((np.ones(len(columns), np.float32), columns, begins), shape=(len(grams), len(number)))
    shared = (has[: len(some)] @ has[len(some) :].T).tocoo()
    sizes = np.diff(begins)
    whole = sizes[shared.row] + sizes[len(some) + shared.col] - shared.data
    return float((shared.data / whole).max())


def instructions(folder: Path) -> list[Row]:
    data = json.loads((folder / "instructions/instruction-data.json").read_text())
    return [row(f"{d['instruction']}\n{d['input']}", d["output"], i) for i, d in enumerate(data, 1)]


def banking(folder: Path, pins: dict[str, str]) -> list[Row]:
    rows = []
    for name, pin in pins.items():
        with open(folder / f"banking77/{name}.csv", newline="", encoding="utf-8") as file:
            rows += [row(r["text"], r["category"], i, pin) for i, r in enumerate(csv.DictReader(file), 1)]
    return rows


@pytest.mark.parametrize("of", ["instructions", "banking77", "banking77 as published"])
def test_no_exam_row_is_like_one_that_trains(of, tmp_path, real_data):
    """What the certificate vouches for, by comparing all pairs; and what a random split of the same rows leaks."""
    if of == "instructions":
        rows = instructions(real_data)
    else:
        pins = ("auto", "auto") if of == "banking77" else ("train", "test")
        rows = banking(real_data, dict(zip(("train", "test"), pins)))
    summary = run(tmp_path, rows)
    train, *held_out = (store.read_rows(tmp_path / "out" / f"{side}.jsonl") for side in SIDES)
    assert likest([*chain(*held_out)], train) < ALIKE
    certificate = store.read_json(tmp_path / "out/certificate.json")
    assert certificate == summary["certificate"]
    assert certificate["leaks"] == certificate["joined_on_suspicion"] == 0
    leaked = {
        name: round(told["leaks"] / max(told["test"], 1), 2) for name, told in certificate.items() if "split" in name
    }
    assert leaked == {"random_split": {"instructions": 0.37, "banking77": 0.14, "banking77 as published": 0.07}[of]}
    assert certificate["pinned_exam"] == (
        {"test": 3080, "leaks": 492} if "published" in of else {"test": 0, "leaks": 0}
    )
    told = {"instructions": "would have let training know 8", "banking77": "would have let training know 3",
            "banking77 as published": "492 of 3,080 were, before such rows were dropped"}  # fmt: skip
    assert told[of] in summary["vouched"]
    assert summary["vouched"].rstrip(".") in summary["headline"]
    assert summary["test"] == pytest.approx(0.2 * len(rows), rel=0.05) or "published" in of


def test_children_stay_with_their_parent():
    parent = row("the only question of this kind", line=1)
    children = [row(word, line=i, parents=[parent.id]) for i, word in enumerate(["alpha", "beta", "gamma", "delta"], 2)]
    strangers = [row(f"{i:b}", line=i) for i in range(100, 160)]
    sides, _ = assign([parent, *strangers, *children], Split(validation=0.3, test=0.3))
    holding = [side for side in SIDES if any(r.line < 10 for r in sides[side])]
    assert len(holding) == 1


def test_all_parents_count_and_so_do_threads():
    """Two families with a child in common, a grandchild, and a thread that has one row in each: one group."""
    first, second = row("of apples and their kinds", line=1), row("where rivers go in winter", line=2)
    common = row("child of two", line=3, parents=[second.id, first.id])
    grandchild = row("child of a child", line=4, parents=["f" * 16, common.id])
    talk = [row(f"{word} said", line=i, thread="t") for i, word in enumerate(["zebra", "ivory", "quartz"], 5)]
    linked = row("both a child and of the thread", line=8, parents=[first.id], thread="t")
    rows = [grandchild, *talk, linked, common, second, first]
    strangers = [row(f"{i:b}", line=i) for i in range(100, 160)]
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        sides, dropped = assign([*strangers, *rows], Split(validation=0.3, test=0.3))
        assert not dropped
        assert sorted(len([r for r in sides[side] if r.line < 10]) for side in SIDES) == [0, 0, 8]
    apart = [row(r.prompt[0]["content"], line=r.line) for r in rows]
    sides, _ = assign([*strangers, *apart], Split(validation=0.3, test=0.3))
    assert sum(any(r.line < 10 for r in sides[side]) for side in SIDES) > 1


threaded = st.builds(
    row,
    st.sampled_from([f"prompt {c}" for c in "abcdefghijklmnop"]),
    st.sampled_from("xyz"),
    st.just(1),
    st.sampled_from(["auto", "auto", "train", "validation", "test"]),
    thread=st.none() | st.sampled_from("tuvw"),
    parents=st.lists(st.sampled_from(["a" * 16, "b" * 16, "c" * 16]), max_size=2),
)


@given(st.lists(threaded, max_size=20), splits)
def test_no_thread_and_no_parent_is_on_two_sides(rows, settings):
    sides, dropped = assign(rows, settings)
    for keys in (lambda r: [r.thread] if r.thread else [], lambda r: [r.id, *r.parents]):
        found = [{key for r in sides[side] for key in keys(r)} for side in SIDES]
        assert sum(map(len, found)) == len(set().union(*found))
    assert sum(map(len, sides.values())) + len(dropped) == len(rows)
    assert all(r.split in ("auto", side) for side in SIDES for r in sides[side])


def test_a_thread_that_grows_stays_where_it_is():
    for thread in "abcdefgh":
        before = sides_of([row("first words", line=0, thread=thread)], Split(validation=0.3, test=0.3))
        for i in range(10):
            grown = [
                row("first words", line=0, thread=thread),
                row(f"{i} more, of something else", line=1, thread=thread),
            ]
            assert set(sides_of(grown, Split(validation=0.3, test=0.3)).values()) == set(before.values())


def talk(*asked: str, line: int, pin: str = "auto") -> Row:
    """A conversation of these questions, each with an answer of its own."""
    turns = [({"role": "user", "content": text}, {"role": "assistant", "content": f"a{line}"}) for text in asked]
    return Row([{"role": "system", "content": f"s{line}"}, *chain(*turns)], f"{pin}.jsonl", line, "messages", split=pin)


def test_a_conversation_stays_with_whoever_asks_what_it_asked_on_its_way():
    longest = ["Where do rivers go?", "zebra", "ivory quartz", "and what of apples"]
    rows = [talk(*longest[: i + 1], line=i) for i in (3, 0, 1, 2)] + [talk("where do RIVERS go", "xylophones", line=4)]
    strangers = [talk(f"{i:b}", f"{i:o}" * 9, line=i) for i in range(100, 160)]
    sides, dropped = assign([*rows, *strangers], Split(validation=0.3, test=0.3))
    assert not dropped
    assert sorted(len([r for r in sides[side] if r.line < 10]) for side in SIDES) == [0, 0, 5]
    apart = [talk(*longest[i:], line=i) for i in range(4)]
    sides, _ = assign([*apart, *strangers], Split(validation=0.3, test=0.3))
    assert sum(any(r.line < 10 for r in sides[side]) for side in SIDES) > 1


def test_a_pinned_exam_is_not_asked_on_the_way_of_what_trains():
    rows = [
        talk("what is a fox", "and what does it eat", line=1, pin="train"),
        talk("what is a cow", line=2, pin="train"),
        talk("what is a fox", line=3, pin="test"),
        talk("what is a cow", "and where do they sleep", line=4, pin="test"),
    ]
    sides, dropped = assign(rows, Split())
    assert [r.line for r in sides["test"]] == [3, 4]
    assert {d.row.line: d.reason for d in dropped} == dict.fromkeys([1, 2], "thread, parent or turn also in test")


def test_what_many_conversations_begin_with_does_not_join_them(tmp_path):
    greeted = [talk("hello there", f"{random.Random(i).random()}", line=i) for i in range(links.OF_FORM + 1)]
    rows = [*greeted, *(talk("hello there", line=i) for i in range(100, 103))]
    noted = traits.of(rows, split._placed, split._PLACED)
    assert linked(rows, noted).of_form.tolist() == [21, 22, 23]
    sides, _ = assign(rows, Split(validation=0.3, test=0.3))
    assert all(sides[side] for side in SIDES)
    pinned = [talk("hello there", line=i, pin="test") for i in range(100, 103)]
    summary = run(tmp_path, [*greeted, *pinned], ["test"])
    assert summary["certificate"]["exam_of_form"] == summary["test"] == 3
    assert "What 3 of them ask, more than 20 conversations ask on their way" in summary["vouched"]


def test_where_all_files_are_pinned_elsewhere_more_examples_are_no_help(tmp_path):
    rows = [row("what is a fox", pin="train"), row("where do rivers go", pin="test")]
    summary = run(tmp_path, rows, ["train", "test"])
    assert summary["warnings"] == [
        "validation is empty: all files are pinned elsewhere; leave `split` out of one, or pin one to validation."
    ]


def test_what_is_of_a_thread_of_the_exam_is_dropped_elsewhere_with_its_place():
    rows = [
        row("an early question", pin="train", line=1, thread="t"),
        row("something else entirely", pin="train", line=2),
        row("the exam's question", pin="test", line=3, thread="t"),
    ]
    sides, dropped = assign(rows, Split())
    assert [r.line for r in sides["train"]] == [2]
    assert [(d.row.line, d.reason, d.detail) for d in dropped] == [
        (1, "thread, parent or turn also in test", "a thread, parent or turn in common with test.jsonl:3")
    ]


def test_threads_are_known_across_parts_and_files(tmp_path, monkeypatch):
    """From the column in the file to the sides: many parts, many users, each user on one side."""
    monkeypatch.setattr(parts, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(parts.cut, "__defaults__", (2000,))
    for name in "ab":
        lines = [
            {"prompt": f"{random.Random(f'{name}{i}').random()}", "completion": "c", "user": i % 40} for i in range(200)
        ]
        store.write_jsonl(tmp_path / f"{name}.jsonl", lines)
    sources = [Source.model_validate({"path": str(tmp_path / f"{n}.jsonl"), "fields": {"group": "user"}}) for n in "ab"]
    load.run(sources, None, 0.0, tmp_path)
    assert len(list(parts.cut(tmp_path / "rows.jsonl"))) > 10
    out = tmp_path / "out"
    out.mkdir()
    split.run(Split(validation=0.2, test=0.3), [], Artifact("clean", "0", tmp_path, "done"), out)
    users = [{r.thread for r in store.read_rows(out / f"{side}.jsonl")} for side in SIDES]
    assert sum(map(len, users)) == len(set().union(*users)) == 40
    assert all(users)


def test_a_group_that_would_be_half_the_exam_trains():
    alike = [row(f"please write a short poem about the colour of the sky, take {i}", line=i) for i in range(100)]
    strangers = [row(f"{hash((i, 'x')):x}", line=1000 + i) for i in range(300)]
    for added in range(6):
        rows = [*alike, row(f"{added} please write a short poem about the colour of the sky", line=100), *strangers]
        sides, _ = assign(rows, Split())
        assert {r.line for r in rows if r.line <= 100} <= {r.line for r in sides["train"]}
