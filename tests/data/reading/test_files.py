"""Reading files into records: which reader a file gets, where its records stand, and how little memory that takes."""

import json
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from tunesmith.core.errors import DataError
from tunesmith.data.reading import documents, files

GOOD = '{"prompt": "p", "completion": "c"}'


@pytest.mark.parametrize(("name", "head", "format"), [
    ("a.jsonl", GOOD, "lines"), ("a.NDJSON", GOOD, "lines"), ("a.jsonl", "[\n{", "json"), ("a.jsonl", "{\n", "json"),
    ("a.jsonl", "[1]\n[2]", "lines"), ("a.json", f"[{GOOD}]", "json"), ("a.json", f"{GOOD}\n{GOOD}", "lines"),
    ("a.jsonl", f"[{GOOD},\n{GOOD}]\n", "json"), ("a.jsonl", f"[ {GOOD}, {GOOD}]", "json"),
    ("a.jsonl", f"[{GOOD}]\n[{GOOD}]\n", "lines"), ("a.json", f"{GOOD}\n", "json"),
    ("a.csv", "a,b", "csv"), ("a.tsv", "a\tb", "tsv"), ("a.txt", GOOD, "text"),
    ("a", "  [1]", "json"), ("a.log", f"\n{GOOD}\n{GOOD}", "lines"), ("a.dat", "a;b\n1;2", "csv"),
    ("a.bin", "PAR1", "parquet"),
])  # fmt: skip
def test_format_by_name_and_content(tmp_path, name, head, format):
    assert files.format_of(tmp_path / name, head.encode()) == format


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"gone.jsonl cannot be opened"):
        list(files.records(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(("name", "content"), [
    ("a.docx", b"PK\x03\x04"), ("a.pdf", b"%PDF-1.4\n"), ("a.html", b"<!doctype html><p>x"), ("A.HTM", b"<p>x, y</p>"),
    ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nhi\n"), ("a.vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\nhi\n"),
])  # fmt: skip
def test_a_document_among_the_sources_is_told_where_it_belongs(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is a document, and holds no conversations") as refusal:
        list(files.records(tmp_path / name))
    assert "`pretrain.texts`" in refusal.value.next
    assert "`data.grow.synthesise.questions.documents`" in refusal.value.next
    assert files.why_not(name, texts=True) == "documents, not examples"


def test_every_kind_of_document_is_known_as_one():
    assert set(files.DOCUMENTS) == set(documents._WHOLE)


def test_a_compressed_file_inside_another_is_told_so(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match="is compressed") as refusal:
        list(files.records(tmp_path / "a.jsonl"))
    assert refusal.value.why.startswith("a compressed file is unpacked once")


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", f"{GOOD}\n\né\n{GOOD}"), ("a.json", f"[{GOOD}, {GOOD}]"), ("a.csv", 'a,b\n1,"é\n"\n3\n'),
    ("a.txt", "one\ntwo\n"),
])  # fmt: skip
def test_records_add_up_to_the_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    size = path.stat().st_size
    assert size * 0.7 <= sum(record.size_bytes for record in files.records(path)) <= size


def test_salvage_names_the_line_of_the_fault(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f"[\n{GOOD},\n{GOOD},\n{{'prompt': 'p'}},\n{GOOD}]")
    *whole, rest = files.records(path)
    assert [record.value for record in whole] == [json.loads(GOOD)] * 2
    assert rest.line == 3
    assert rest.swallows
    assert rest.problem is not None
    assert "from line 4 on: put keys and texts in double quotes" in rest.problem.fix


def test_what_stands_behind_an_array_is_named_by_its_own_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f"[{GOOD}\n]\n[{GOOD}]\n")
    *_, rest = files.records(path)
    assert rest.problem is not None
    assert rest.problem.fix == "take out what stands behind the array, from line 3 on"


@pytest.mark.parametrize("whole", [
    {"prompt": ["p", "q"], "completion": ["c", "d"]},
    {"prompt": {"0": "p", "1": "q"}, "completion": {"0": "c", "1": "d"}},
    {"prompt": {"7": "p"}, "completion": {"7": "c"}},
])  # fmt: skip
def test_a_table_written_column_by_column_is_no_single_record(tmp_path, whole):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"a.json holds columns, not records") as refusal:
        list(files.records(path))
    assert "orient='records'" in refusal.value.next


@pytest.mark.parametrize("whole", [
    {"messages": [{"role": "user", "content": "p"}], "choices": [{"message": {"role": "assistant", "content": "c"}}]},
    {"input": [{"role": "user", "content": "p"}], "output": [{"type": "message", "content": "c"}]},
    {"chosen": [{"role": "user", "content": "p"}], "rejected": [{"role": "user", "content": "p"}]},
    {"input": {"messages": [{"role": "user", "content": "p"}]}, "preferred_output": [{"content": "c"}],
     "non_preferred_output": [{"content": "w"}]},
    {"prompt": ["a"], "completion": ["b"]}, {"prompt": "p", "completion": ["b", "c"]}, {"prompt": {}, "completion": {}},
])  # fmt: skip
def test_an_object_that_is_one_record_stays_whole(tmp_path, whole):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole))
    assert [record.value for record in files.records(path)] == [whole]


def test_csv_goes_on_behind_a_broken_quote(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n"3"x,4\n5,6\n')
    assert [(record.line, record.value) for record in files.records(path)] == [
        (2, {"a": "1", "b": "2"}),
        (3, None),
        (4, {"a": "5", "b": "6"}),
    ]


def test_a_csv_file_may_use_another_separator(tmp_path):
    for separator in ",;\t|":
        path = tmp_path / "a.csv"
        path.write_text(f"prompt{separator}completion\np{separator}c\n")
        assert [record.value for record in files.records(path)] == [json.loads(GOOD)]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;\r", "\ufeffsep=;"])
def test_a_csv_file_of_excels_may_name_its_separator(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\nprompt;completion\np, and so on, and on;c\n")
    [record] = files.records(path)
    assert (record.line, record.value) == (3, {"prompt": "p, and so on, and on", "completion": "c"})


def test_parquet_rows_are_numbered_through_the_batches(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": range(1000)}), path, row_group_size=300)
    records = list(files.records(path))
    assert [record.line for record in records] == list(range(1, 1001))
    assert [record.value["n"] for record in records] == list(range(1000))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_lines_and_tables_are_streamed(tmp_path, name):
    path = tmp_path / name
    text = "x" * 1000
    row = f"{text},c\n" if name == "a.csv" else json.dumps({"prompt": text, "completion": "c"}) + "\n"
    path.write_text(("prompt,completion\n" if name == "a.csv" else "") + row * 4000)
    tracemalloc.start()
    assert sum(1 for _ in files.records(path)) == 4000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000 < path.stat().st_size
