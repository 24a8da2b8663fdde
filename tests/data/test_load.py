"""Loading whole files: the ledger, the quarantine, refusals, `convert`, and what the published formats come to."""

import csv
import json
import os
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tunesmith.core import store
from tunesmith.core.data_section import Source
from tunesmith.core.errors import ConfigError, DataError, UserError
from tunesmith.core.step import Steps
from tunesmith.data import load

CASES = runpy.run_path(str(Path(__file__).parent / "malformed" / "make.py"))["CASES"]
REAL = os.environ.get("TUNESMITH_REAL_DATA")
real_data = pytest.mark.skipif(not REAL, reason="TUNESMITH_REAL_DATA does not name the folder of published data files")
GOOD = {"prompt": "p", "completion": "c"}


def source(path: Path, **more: Any) -> Source:
    return Source.model_validate({"path": str(path), **more})


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def loaded(folder: Path, *sources: Source, system: str | None = None, max_quarantined: float = 1.0) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return load.run(list(sources), system, max_quarantined, out)


def rows(folder: Path) -> list[Any]:
    return store.read_rows(folder / "out" / "rows.jsonl")


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return list(store.read_jsonl(folder / "out" / "quarantine.jsonl"))


def assert_readable(error: UserError) -> None:
    assert error.what
    assert error.why
    assert error.next
    str(error).encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_file_is_refused_or_counted_to_the_last_record(case, tmp_path):
    path = tmp_path / case.name
    path.write_bytes(case.content)
    if case.refused:
        with pytest.raises(DataError) as refusal:
            loaded(tmp_path, source(path))
        assert_readable(refusal.value)
        assert case.refused in refusal.value.what
        assert case.name in refusal.value.what
        return
    if case.kept:
        summary = loaded(tmp_path, source(path))
        assert (summary["rows_in"], summary["kept"]) == (case.kept + case.quarantined, case.kept)
    else:
        with pytest.raises(DataError) as refusal:
            loaded(tmp_path, source(path))
        assert_readable(refusal.value)
    assert len(rows(tmp_path)) == case.kept
    assert len(quarantine(tmp_path)) == case.quarantined
    assert all(case.reason in (None, q["reason"]) for q in quarantine(tmp_path))
    assert all(
        q["fix"] and q["line"] > 0 and q["source"] == case.name and len(q["record"]) <= 500
        for q in quarantine(tmp_path)
    )


def test_there_are_enough_malformed_files():
    assert len(CASES) == len({case.name for case in CASES}) >= 45


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([
    "messages", "conversations", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected",
    "label", "text", "tools", "history", "system", "question", "answer",
])  # fmt: skip
TURN = st.fixed_dictionaries({}, optional={
    "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON, "content": st.text(max_size=5) | JSON,
    "from": st.sampled_from(["human", "gpt", "function_call"]), "value": st.text(max_size=5) | JSON, "tool_calls": JSON,
})  # fmt: skip
RECORD = st.dictionaries(NAMES, st.text(max_size=5) | st.lists(TURN, max_size=4) | JSON, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(records=st.lists(RECORD | JSON, min_size=1, max_size=6), as_array=st.booleans())
def test_no_json_value_breaks_the_ledger(records, as_array, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    path = folder / ("random.json" if as_array else "random.jsonl")
    path.write_text(json.dumps(records) if as_array else "".join(json.dumps(record) + "\n" for record in records))
    if len(records) == 1 and isinstance(records[0], list) and isinstance(next(iter(records[0]), None), dict):
        records = records[0] if not as_array else records  # an array of objects is one in a file of any name
    try:
        summary = loaded(folder, source(path))
    except DataError as error:
        assert_readable(error)
        assert not rows(folder)
    else:
        assert summary["kept"] == len(rows(folder)) == sum(summary["shapes"].values()) > 0
        for row in rows(folder):
            assert [m["role"] for m in row.messages if m["role"] == "system"] in ([], [row.messages[0]["role"]])
            assert row.messages[-1]["role"] == "assistant"
            assert all(isinstance(m["content"], str) for m in row.messages)
    assert len(rows(folder)) + len(quarantine(folder)) == len(records)


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a/new", "b/new", "c"):
        (tmp_path / folder).mkdir(parents=True)
        jsonl(tmp_path / folder / "rows.jsonl", GOOD)
    summary = loaded(
        tmp_path, source(tmp_path / "a/new"), source(tmp_path / "b/new/rows.jsonl"), source(tmp_path / "c/rows.jsonl")
    )
    names = ["a/new/rows.jsonl", "b/new/rows.jsonl", "c/rows.jsonl"]
    assert [row.source for row in rows(tmp_path)] == names
    assert [one["path"] for one in summary["sources"]] == names
    twice = loaded(tmp_path, source(tmp_path / "c/rows.jsonl"), source(tmp_path / "c/rows.jsonl", split="test"))
    assert len({one["path"] for one in twice["sources"]}) == 1


def test_the_summary_counts_by_source_shape_reason_and_repair(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", GOOD, {"instruction": "i", "output": " o\n"}, {"text": "t"})
    two = jsonl(tmp_path / "two.jsonl", {"question": "q", "answer": "a"})
    summary = loaded(tmp_path, source(one), source(two, split="test"), max_quarantined=0.5)
    assert summary == {
        "headline": "4 records: 3 rows, 1 quarantined",
        "rows_in": 4, "kept": 3, "quarantined": 1,
        "shapes": {"prompt_completion": 1, "alpaca": 1, "columns": 1},
        "reasons": {"raw text has no answer to learn from": 1},
        "repairs": {"white space around an answer removed": 1},
        "sources": [
            {"path": "one.jsonl", "rows_in": 3, "kept": 2, "quarantined": 1,
             "shapes": {"prompt_completion": 1, "alpaca": 1}},
            {"path": "two.jsonl", "rows_in": 1, "kept": 1, "quarantined": 0, "shapes": {"columns": 1}},
        ],
        "skipped": {},
    }  # fmt: skip
    assert [(r.source, r.line, r.split) for r in rows(tmp_path)] == [
        ("one.jsonl", 1, "auto"),
        ("one.jsonl", 2, "auto"),
        ("two.jsonl", 1, "test"),
    ]
    assert rows(tmp_path)[1].changes == ["white space around an answer removed"]


def test_lines_are_those_of_an_editor(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n{{broken\n")
    loaded(tmp_path, source(path))
    assert [r.line for r in rows(tmp_path)] == [2]
    assert [q["line"] for q in quarantine(tmp_path)] == [4]
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\n\np,c\nonly\n')
    loaded(tmp_path, source(path))
    assert [r.line for r in rows(tmp_path)] == [2, 5]
    assert [q["line"] for q in quarantine(tmp_path)] == [6]


def test_the_quarantine_shows_the_record_as_it_stood(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n  {{"b":1,   "a":2}}  \n')
    loaded(tmp_path, source(path))
    assert quarantine(tmp_path) == [
        {
            "source": "rows.jsonl",
            "line": 2,
            "reason": "columns are not recognised",
            "record": '{"b":1,   "a":2}',
            "fix": "say in the project file what `b`, `a` are, with `fields: {prompt: ..., answer: ...}` or a "
            "`convert` file",
        }
    ]


def test_the_budget_stops_the_run_and_says_what_to_do(tmp_path):
    records = [GOOD] * 17 + [{"text": "t"}] * 2 + [{"a": 1}]
    path = jsonl(tmp_path / "rows.jsonl", *records)
    with pytest.raises(DataError) as refusal:
        loaded(tmp_path, source(path), max_quarantined=0.1)
    assert refusal.value.what == "3 of 20 records cannot be used"
    assert refusal.value.why == (
        "raw text has no answer to learn from: 2, first at rows.jsonl:18; "
        "columns are not recognised: 1, first at rows.jsonl:20"
    )
    assert "output/failed/load/quarantine.jsonl" in refusal.value.next
    assert "add an answer column beside `text`" in refusal.value.next
    assert "data.max_quarantined (now 0.1)" in refusal.value.next
    assert loaded(tmp_path, source(path), max_quarantined=0.15)["quarantined"] == 3


def test_the_quarantine_of_a_refused_step_can_be_read(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"text": "t"})
    with pytest.raises(DataError):
        Steps(tmp_path / "output")("load", load.run, [source(path)], None, 0.05)
    assert [q["line"] for q in store.read_jsonl(tmp_path / "output/failed/load/quarantine.jsonl")] == [1]


def test_one_broken_place_that_hides_many_records_does_not_count_as_one(tmp_path):
    """99 rows stand before the break and 900 behind it: one record in a hundred, nine tenths of the file."""
    path = tmp_path / "rows.json"
    good = json.dumps(GOOD) + ","
    path.write_text("[" + good * 99 + '{"prompt": "p" "completion": "c"},' + good * 900 + "{}]")
    with pytest.raises(DataError, match=r"90% of rows.json cannot be read, from record or line 100 on"):
        loaded(tmp_path, source(path), max_quarantined=0.05)
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + "p,c\n" * 99 + '"p,c\n' + "p,c\n" * 900)
    with pytest.raises(DataError, match=r"rows.csv cannot be read, from record or line 101 on"):
        loaded(tmp_path, source(path), max_quarantined=0.05)


def test_many_places_that_hide_a_few_records_each_are_counted_together(tmp_path):
    """Each unclosed quote swallows 30 lines up to the next one, 3 % of the file; ten of them swallow nearly a third."""
    path = tmp_path / "rows.csv"
    swallowed = '"p,c\n' + "p,c\n" * 29 + '"p" p,c\n'
    path.write_text("prompt,completion\n" + ("p,c\n" * 70 + swallowed) * 10)
    assert len(path.read_text().splitlines()) == 1011
    with pytest.raises(DataError, match=r"6% of rows.csv cannot be read, from record or line 72 on"):
        loaded(tmp_path, source(path), max_quarantined=0.05)
    assert loaded(tmp_path, source(path), max_quarantined=0.5)["quarantined"] == 10


def test_nothing_to_load_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nothing to load"):
        loaded(tmp_path)


def test_system_goes_before_rows_that_have_none(tmp_path):
    own = {
        "messages": [
            {"role": "system", "content": "own"},
            {"role": "user", "content": "p"},
            {"role": "assistant", "content": "c"},
        ]
    }
    loaded(tmp_path, source(jsonl(tmp_path / "rows.jsonl", GOOD, own)), system="ours")
    assert [r.messages[0] for r in rows(tmp_path)] == [
        {"role": "system", "content": "ours"},
        {"role": "system", "content": "own"},
    ]


def test_fields_name_the_columns(tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl", {"ask": "p", "tell": {"a": 1}, "who": "s"}, {"ask": "p", "tall": "c", "who": "s"}
    )
    loaded(tmp_path, source(path, fields={"prompt": "ask", "answer": "tell", "system": "who"}))
    assert [[m["content"] for m in r.messages] for r in rows(tmp_path)] == [["s", "p", '{"a": 1}']]
    assert quarantine(tmp_path)[0]["reason"] == "a column named in `fields` is missing"
    assert quarantine(tmp_path)[0]["fix"] == (
        "`fields.answer` names `tell`, but this record has `ask`, `tall`, `who`; did you mean `tall`?"
    )


def test_convert_sees_each_record_before_its_shape_is_looked_at(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def convert(record):\n    return record['deep'] if record else None\n")
    path = jsonl(tmp_path / "rows.jsonl", {"deep": GOOD}, {}, {"flat": 1}, {"deep": {"prompt": "p"}})
    summary = loaded(tmp_path, source(path, convert=str(code)))
    assert (summary["kept"], rows(tmp_path)[0].answer) == (1, "c")
    assert [q["reason"] for q in quarantine(tmp_path)] == [
        "convert returned None",
        "convert raised an error",
        "no answer column",
    ]
    assert quarantine(tmp_path)[1]["record"] == '{"flat": 1}'


def test_convert_may_make_something_of_what_json_cannot_hold(tmp_path):
    path, code = tmp_path / "a.parquet", tmp_path / "convert.py"
    parquet.write_table(pyarrow.table({"prompt": ["p"], "spoken": [b"\xff\xff"], "image": [b"\xfe"]}), path)
    code.write_text("def convert(record):\n    return {**record, 'completion': len(record['spoken'])}\n")
    loaded(tmp_path, source(path, convert=str(code)))
    [row] = rows(tmp_path)
    assert (row.answer, row.changes) == ("2", ["column of bytes left out"])


def test_what_convert_does_to_a_record_changes_nothing_that_is_told_of_it(tmp_path):
    code = tmp_path / "convert.py"
    code.write_text(
        "def convert(r):\n    r['completion'] = r.pop('ans')\n    return 1 / 0 if r['prompt'] == 'b' else r\n"
    )
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "ans": "c"}, {"prompt": "b", "ans": "d"}]')
    its = source(tmp_path / "rows.json", convert=str(code))
    assert load.preview(its)["columns"] == ["prompt", "ans"]
    loaded(tmp_path, its, max_quarantined=0.5)
    [quarantined] = store.read_jsonl(tmp_path / "out/quarantine.jsonl")
    assert json.loads(quarantined["record"]) == {"prompt": "b", "ans": "d"}


def test_an_unusable_convert_file_stops_the_step(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(ConfigError, match="cannot be used for `convert`") as refusal:
        loaded(tmp_path, source(path, convert=str(path)))
    assert_readable(refusal.value)


def test_preview_writes_nothing_and_names_the_columns(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", *[GOOD] * 4, {"text": "t", "url": "u"}, *[GOOD] * 300)
    found = load.preview(source(path), limit=5)
    assert {k: v for k, v in found.items() if k != "examples"} == {
        "files": 1,
        "skipped": {},
        "rows_in": 5,
        "kept": 4,
        "quarantined": 1,
        "shapes": {"prompt_completion": 4},
        "reasons": {"no answer column": 1},
        "fixes": {
            "no answer column": "rows.jsonl:5: none of `text`, `url` is known as an answer: name it in the project "
            "file with `fields: {prompt: text, answer: ...}`"
        },
        "columns": ["prompt", "completion", "text", "url"],
        "unread": [],
    }
    assert [example["line"] for example in found["examples"]] == [1, 2, 3]
    assert load.preview(source(path))["rows_in"] == 200
    assert os.listdir(tmp_path) == ["rows.jsonl"]
    json.dumps(found)


@pytest.mark.parametrize(
    ("record", "more", "unread"),
    [
        ({"instruction": "Add.", "input": "2 and 3", "output": "5", "id": "r-17", "lang": "en"}, {}, ["id", "lang"]),
        ({"question": "Why?", "answer": {"kind": "none", "n": 3}, "note": None, "empty": ""}, {}, []),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "score": 8.5, "rank": 12}, {}, ["score", "rank"]),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, {}, []),
        ({"messages": '[{"role": "user", "content": "caf\\u00e9?"}, {"role": "assistant", "content": "yes"}]'}, {}, []),
        ({"prompt": "Hi", "completion": "Ho", "user": "anna", "when": "2026-01-01"},
         {"fields": {"group": "user", "time": "when"}}, []),
        ({"prompt": "Hi", "completion": "Ho", "label": True}, {}, []),
        ({"prompt": "Hi", "completion": "Ho", "label": "greeting"}, {}, ["label"]),
        ({"prompt": "Hi", "completion": "Ho", "label": 1}, {}, []),
        ({"prompt": "Hi", "completion": "Ho", "label": 1},
         {"fields": {"prompt": "prompt", "answer": "completion"}}, ["label"]),
        ({"prompt": "Hi", "completion": "Ho", "rejected": "No"}, {}, ["rejected"]),
    ],
)  # fmt: skip
def test_preview_tells_of_columns_that_are_in_no_row(tmp_path, record, more, unread):
    assert load.preview(source(jsonl(tmp_path / "rows.jsonl", record, record), **more))["unread"] == unread


def test_no_message_repeats_personal_data(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", *[{**GOOD, "day": "anna.berg@example.com"}] * 2)
    asked = source(path, fields={"time": "day"})
    with pytest.raises(DataError) as refusal:
        loaded(tmp_path, asked, max_quarantined=0.05)
    told = [str(refusal.value), json.dumps(load.preview(asked)["fixes"])]
    assert all("a number; [masked] stands there" in text and "anna" not in text for text in told)


def test_preview_of_an_empty_table_is_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n")
    with pytest.raises(DataError, match=r"rows.csv holds no records"):
        load.preview(source(path))


# What the published files hold, counted by their own format's plainest reader; kept is how many become rows.
REAL_FILES = {
    "formats/alpaca_en_demo.json": (999, "alpaca"), "formats/identity.json": (91, "alpaca"),
    "formats/glaive_toolcall_en_demo.json": (300, "sharegpt"), "formats/dpo_en_demo.json": (300, "preference"),
    "formats/kto_en_demo.json": (150, "kto"), "formats/c4_demo.jsonl": (0, None), "formats/wiki_demo.txt": (0, None),
    "instructions/instruction-data.json": (1100, "alpaca"),
    "preferences/instruction-data-with-preference.json": (1100, "preference"),
    "banking77/train.csv": (10003, "columns"), "banking77/test.csv": (3080, "columns"),
    "restaurant8k/test.json": (0, None), "safety/xstest_prompts.csv": (0, None),
    "pii/synthetic-pii-750.json": (0, None),
}  # fmt: skip


def counted(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return len(json.loads(text))
    if path.suffix == ".csv":
        return len(list(csv.DictReader(text.splitlines(keepends=True))))
    return len([line for line in text.split("\n") if line.strip()])


@real_data
@pytest.mark.parametrize("name", REAL_FILES)
def test_published_files_balance(name, tmp_path):
    path = Path(str(REAL)) / name
    kept, shape = REAL_FILES[name]
    if kept:
        summary = loaded(tmp_path, source(path))
        assert summary["shapes"] == {shape: kept}
        assert summary["rows_in"] == counted(path)
    else:
        with pytest.raises(DataError, match=f"{counted(path):,} of {counted(path):,} records cannot") as refusal:
            loaded(tmp_path, source(path))
        assert_readable(refusal.value)
    assert len(rows(tmp_path)) == kept
    assert len(rows(tmp_path)) + len(quarantine(tmp_path)) == counted(path)


@real_data
def test_published_contents_survive(tmp_path):
    folder = Path(str(REAL))
    path = folder / "formats/glaive_toolcall_en_demo.json"
    loaded(tmp_path, source(path))
    originals = json.loads(path.read_text())
    for row, original in zip(rows(tmp_path), originals, strict=True):
        calls = [turn for turn in original["conversations"] if turn["from"] == "function_call"]
        assert row.tools == json.loads(original["tools"] or "[]")
        assert [m["tool_calls"][0]["function"] for m in row.messages if "tool_calls" in m] == [
            json.loads(turn["value"]) for turn in calls
        ]
    again = tmp_path / "again.jsonl"
    (tmp_path / "out" / "rows.jsonl").rename(again)
    once = store.read_rows(again)
    loaded(tmp_path, source(again))
    assert [(r.messages, r.tools) for r in rows(tmp_path)] == [(r.messages, r.tools) for r in once]
    path = folder / "formats/kto_en_demo.json"
    loaded(tmp_path, source(path))
    assert Counter(q["reason"] for q in quarantine(tmp_path)) == {"answer labelled as bad": 150}
    path = folder / "preferences/instruction-data-with-preference.json"
    loaded(tmp_path, source(path))
    originals = json.loads(path.read_text())
    assert [(r.answer, r.rejected) for r in rows(tmp_path)] == [
        (o["chosen"].strip(), o["rejected"].strip()) for o in originals
    ]


@real_data
def test_the_fix_for_unknown_columns_leads_to_rows(tmp_path):
    path = Path(str(REAL)) / "safety/xstest_prompts.csv"
    with pytest.raises(DataError, match=r"fields: \{prompt: prompt, answer: ...\}"):
        loaded(tmp_path, source(path))
    assert loaded(tmp_path, source(path, fields={"answer": "label"}))["shapes"] == {"fields": 450}
