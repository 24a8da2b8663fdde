"""The cleaning step: its order, its ledger, what each option changes, and what stops it."""

import csv
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import pipeline

LONG = "Could you please tell me when the parcel that I ordered from your shop last week is going to arrive"


def row(prompt: str, answer: str, line: int, **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, "t.jsonl", line, "messages", **more)


@pytest.fixture
def clean(tmp_path):
    """Cleans rows under these options; gives the summary, the kept lines, and the dropped lines with their reasons."""

    def run(rows: list[Row], **options: Any) -> tuple[dict[str, Any], list[int], dict[int, str]]:
        store.write_rows(tmp_path / "rows.jsonl", rows)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        summary = pipeline.run(Clean.model_validate(options), Artifact("load", "0", tmp_path, "done"), out)
        dropped = {d["line"]: d["reason"] for d in store.read_jsonl(out / "dropped.jsonl")}
        return summary, [r.line for r in store.read_rows(out / "rows.jsonl")], dropped

    return run


def schema(folder: Path, **properties: Any) -> str:
    (folder / "schema.json").write_text(json.dumps({"type": "object", "properties": properties}))
    return str(folder / "schema.json")


ROWS = [
    row("one", '{"team": "billing"}', 1),
    row("two", "", 2),
    row("three", "sorry", 3),
    row("four", '{"team": 4}', 4),
    row("I am a@x.com", '{"team": "it"}', 5),
    row("ONE", '{"team": "billing"}', 6),
    row(LONG, '{"team": "it"}', 7),
    row(LONG + "?!", '{"team": "it"}', 8),
    row(LONG + " ok", '{"team": "it"}', 9),
    row("ten", '{"team": "it"}', 10),
    row("ten", '{"team": "hr"}', 11),
    row("six", '```json\n{"team": "hr"}\n```', 12),
]


def test_each_stage_drops_its_kind_and_the_ledger_balances(clean, tmp_path):
    options = {
        "answer": "json",
        "answer_schema": schema(tmp_path, team={"type": "string"}),
        "personal_data": "drop",
        "contradictions": "drop",
    }
    summary, kept, dropped = clean(ROWS, **options)
    assert dropped == {
        2: "empty answer",
        3: "answer is not JSON",
        4: "answer breaks the schema",
        5: "personal data",
        6: "duplicate",
        8: "duplicate",
        9: "near-duplicate",
        10: "contradiction",
        11: "contradiction",
    }
    assert kept == [1, 7, 12]
    assert (summary["rows_in"], summary["kept"], summary["dropped"]) == (12, 3, 9)
    assert summary["reasons"] == {
        "duplicate": 2,
        "contradiction": 2,
        "empty answer": 1,
        "answer is not JSON": 1,
        "answer breaks the schema": 1,
        "personal data": 1,
        "near-duplicate": 1,
    }
    assert [s["stage"] for s in summary["stages"]] == [
        "text repair",
        "empty answers",
        "JSON answers",
        "answer schema",
        "personal data",
        "contradictions",
        "exact duplicates",
        "near-duplicates",
    ]
    assert all(s["rows_in"] == s["kept"] + s["dropped"] for s in summary["stages"])
    assert [s["kept"] for s in summary["stages"][:-1]] == [s["rows_in"] for s in summary["stages"][1:]]
    assert summary["changes"] == {"JSON taken out of a code fence": 1}
    assert summary["labels"] == {"team": {"billing": 1, "it": 1, "hr": 1}}


def test_dropped_rows_are_whole_with_reason_detail_and_stage(clean, tmp_path):
    clean(ROWS)
    twin = next(d for d in store.read_jsonl(tmp_path / "out" / "dropped.jsonl") if d["line"] == 6)
    assert Row.from_json({k: v for k, v in twin.items() if k not in ("reason", "detail", "stage")}) == ROWS[5]
    assert (twin["reason"], twin["detail"], twin["stage"]) == ("duplicate", "same as t.jsonl:1", "exact duplicates")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 3, 4, 5, 7, 10, 11, 12]),
        ({"answer": "json"}, [1, 4, 5, 7, 10, 11, 12]),
        ({"duplicates": "keep"}, [1, 3, 4, 5, 6, 7, 8, 10, 11, 12]),
        ({"duplicates": "keep", "near_duplicates": None}, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        ({"near_duplicates": None}, [1, 3, 4, 5, 7, 9, 10, 11, 12]),
        ({"near_duplicates": 0.99}, [1, 3, 4, 5, 7, 9, 10, 11, 12]),
        ({"contradictions": "drop"}, [1, 3, 4, 5, 7, 12]),
        ({"contradictions": "drop", "single_answer": "no"}, [1, 3, 4, 5, 7, 10, 11, 12]),
        ({"contradictions": "newest"}, [1, 3, 4, 5, 7, 11, 12]),
        ({"contradictions": "review"}, [1, 3, 4, 5, 7, 12]),
        ({"personal_data": "drop"}, [1, 3, 4, 7, 10, 11, 12]),
    ],
    ids=str,
)
def test_every_option_changes_what_is_kept(clean, options, kept):
    assert clean(ROWS, **options)[1] == kept


def test_a_majority_is_counted_before_its_votes_are_dropped_as_duplicates(clean):
    rows = [row("up", "no", 1), row("up", "yes", 2), row("up", "yes", 3)]
    _, kept, dropped = clean(rows, contradictions="majority", single_answer="yes")
    assert kept == [2]
    assert dropped == {1: "contradiction", 3: "duplicate"}


def test_texts_are_repaired_before_anything_looks_at_them_unless_they_are_to_be_kept(clean, tmp_path):
    rows = [row("one", "sch\u00c3\u00b6n", 1), row("two", "\u200b", 2), row("one", "schön", 3)]
    summary, kept, dropped = clean(rows)
    assert (kept, dropped) == ([1], {2: "empty answer", 3: "duplicate"})
    assert summary["changes"] == {"repaired: mojibake": 1}
    assert [r.answer for r in store.read_rows(tmp_path / "out" / "rows.jsonl")] == ["schön"]
    _, kept, dropped = clean(rows, repair="keep")
    assert (kept, dropped) == ([1, 3], {2: "empty answer"})


def test_a_finder_of_the_projects_own_is_used(clean, tmp_path):
    (tmp_path / "own.py").write_text(
        "def find(text):\n    return [('name', 0, 5)] if text.startswith('Clara') else []\n"
    )
    rows = [row("Clara here", "hi", 1), row("who?", "no one", 2)]
    assert clean(rows, personal_data="drop", find_personal=str(tmp_path / "own.py"))[2] == {1: "personal data"}
    assert clean(rows, personal_data="drop")[2] == {}


def test_surrogates_are_held_against_the_schema_again(clean, tmp_path):
    rows = [row("a", '{"to": "a@x.com"}', 1), row("b", '{"to": "none"}', 2)]
    rule = {"answer": "json", "answer_schema": schema(tmp_path, to={"pattern": "^[a-z@.]+$"})}
    assert clean(rows, **rule, personal_data="surrogate")[2] == {1: "answer breaks the schema"}


def test_notes_are_counted_by_kind(clean):
    rows = [row("up a@x.com", "no", 1, changes=["trailing user turn removed"]), row("up a@x.com", "yes", 2)]
    assert clean(rows)[0]["changes"] == {"contains: email": 2, "contradicts": 2, "trailing user turn removed": 1}


def test_replaced_answers_are_held_against_the_schema_again(clean, tmp_path):
    rows = [row("a", '{"to": "a@x.com"}', 1), row("b", '{"to": "none"}', 2)]
    rule = {"answer": "json", "answer_schema": schema(tmp_path, to={"pattern": "^[a-z@.]+$"})}
    assert clean(rows, **rule)[1] == [1, 2]
    summary, kept, dropped = clean(rows, **rule, personal_data="replace")
    assert (kept, dropped) == ([2], {1: "answer breaks the schema"})
    assert summary["stages"][5]["stage"] == "answer schema after replacement"


def test_labels_are_scalars_of_few_values(clean):
    rows = [
        row(f"q{i}", json.dumps({"n": i, "even": i % 2 == 0, "none": None, "list": [1], "kind": "ab"[i % 2]}), i)
        for i in range(1, 32)
    ]
    assert clean(rows, answer="json", near_duplicates=None)[0]["labels"] == {
        "even": {"false": 16, "true": 15},
        "none": {"null": 31},
        "kind": {"b": 16, "a": 15},
    }
    assert clean(rows, near_duplicates=None)[0]["labels"] == {}


def test_words_are_counted(clean):
    rows = [row("w " * n, "x " * (2 * n), n) for n in range(1, 101)]
    summary, _, _ = clean(rows, near_duplicates=None)
    bins = [[4, *[5] * 18, 6], [*range(0, 100, 5), 101]]  # the last has the longest too
    assert summary["prompt_words"] == {"p50": 50, "p95": 95, "max": 100, "histogram": bins}
    counts, edges = summary["answer_words"].pop("histogram")
    assert summary["answer_words"] == {"p50": 100, "p95": 190, "max": 200}
    assert (sum(counts), edges[:3], edges[-2:]) == (100, [0, 10, 20], [190, 201])


def test_answers_are_labels_where_they_are_few(clean):
    rows = [row(f"q{i}", f"team {i % 40}", i) for i in range(200)]
    assert clean(rows, near_duplicates=None)[0]["labels"] == {"answer": {f"team {i}": 5 for i in range(40)}}
    assert clean(rows[:199], near_duplicates=None)[0]["labels"] == {}  # 40 of them, and less than 5 rows for each
    assert clean(rows[:30], near_duplicates=None)[0]["labels"]["answer"]["team 7"] == 1


def test_a_field_of_too_many_values_is_no_label_when_its_rows_are_dropped(clean):
    rows = [row("same", json.dumps({"n": i, "kind": "ab"[i % 2]}), i) for i in range(400)]
    rows += [row(f"q{i}", json.dumps({"n": i, "kind": "a"}), i) for i in range(400, 800)]
    assert clean(rows, answer="json", contradictions="drop")[0]["labels"] == {"kind": {"a": 400}}


def test_a_schema_without_json_answers_is_refused(clean, tmp_path):
    with pytest.raises(ConfigError, match="answer_schema needs JSON answers") as caught:
        clean(ROWS, answer_schema=schema(tmp_path))
    assert "answer: json" in caught.value.next


def test_nothing_left_is_refused_with_the_reasons(clean, tmp_path):
    with pytest.raises(DataError, match="no row is left") as caught:
        clean([row("a", "", 1), row("b", "x", 2), row("c", "y", 3)], answer="json")
    assert caught.value.why == "all 3 rows were dropped: answer is not JSON (2), empty answer (1)"
    assert "output/failed/clean/dropped.jsonl" in caught.value.next
    assert len(list(store.read_jsonl(tmp_path / "out" / "dropped.jsonl"))) == 3
    with pytest.raises(DataError, match="no row is left"):
        clean([])


def test_a_stage_that_loses_a_row_is_caught(clean, monkeypatch):
    monkeypatch.setattr(pipeline.answers, "empty", lambda rows: iter(()))
    with pytest.raises(AssertionError, match="empty answers lost or made rows: 12 in, 0 out"):
        clean(ROWS)


def test_it_runs_as_a_step_and_keeps_what_a_refusal_wrote(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    store.write_rows(raw / "rows.jsonl", ROWS)
    step = Steps(tmp_path / "output")
    artifact = step("clean", pipeline.run, Clean(), Artifact("load", "1", raw, "done"))
    assert artifact.summary["kept"] == 8
    assert step("clean", pipeline.run, Clean(), Artifact("load", "1", raw, "done")).state == "done"
    store.write_rows(raw / "rows.jsonl", [row("a", "", 1)])
    with pytest.raises(DataError):
        step("clean", pipeline.run, Clean(), Artifact("load", "2", raw, "done"))
    assert (tmp_path / "output/failed/clean/dropped.jsonl").is_file()


def test_the_chain_is_one_line_a_stage():
    source = inspect.getsource(pipeline.stages) + inspect.getsource(pipeline.judgements)
    assert source.count(" yield ") == 15


def test_banking77_keeps_all_but_its_duplicates_and_contradictions(clean, real_data):
    with open(real_data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["text"], r["category"], i) for i, r in enumerate(csv.DictReader(file), 1)]
    summary, kept, _ = clean(rows, contradictions="drop", near_duplicates=None)
    assert summary["reasons"] == {"duplicate": 30, "contradiction": 2}
    assert len(kept) == 10_003 - 32
