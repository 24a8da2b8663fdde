"""Broken and odd files, made on the spot, each with what must become of it.

`kept` and `quarantined` are counted by hand, independently of the reader; `refused` is a part of the message of a file
that cannot be read at all. `reason` is the reason under which the quarantined records stand.
"""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import parquet

GOOD = '{"prompt": "p", "completion": "c"}'
QUESTION, ANSWER = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
CALL = '{"name": "f", "arguments": {}}'


@dataclass(frozen=True)
class Case:
    name: str
    content: bytes
    kept: int = 0
    quarantined: int = 0
    reason: str | None = None
    refused: str | None = None


def lines(*texts: str) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def chat(*turns: tuple[str, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns], **more})


def table(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def deep(levels: int) -> str:
    return '{"prompt": "p", "completion": ' + "[" * levels + "]" * levels + "}"


ENCODING = [
    Case(
        "bad_utf8_line.jsonl",
        lines(GOOD) + b'{"prompt": "caf\xe9", "completion": "c"}\n' + lines(GOOD),
        2,
        1,
        "not valid UTF-8",
    ),
    Case(
        "bad_utf8_inside_array.json",
        b'[{"prompt": "caf\xe9", "completion": "c"}, ' + GOOD.encode() + b"]",
        1,
        1,
        "not valid UTF-8",
    ),
    Case("bad_utf8_at_the_fault.json", b'[{"prompt": \xe9}]', 0, 1, "not valid JSON"),
    Case("bad_utf8_cell.csv", b"prompt,completion\ncaf\xe9,c\np,c\n", 1, 1, "not valid UTF-8"),
    Case("bad_utf8_header.csv", b"pr\xe9mpt,completion\np,c\n", refused="the header of"),
    Case("cut_inside_a_character.jsonl", (lines(GOOD) + '{"prompt": "é'.encode())[:-1], 1, 1, "not valid UTF-8"),
    Case("bom.jsonl", b"\xef\xbb\xbf" + lines(GOOD, GOOD), 2),
    Case("bom.json", b"\xef\xbb\xbf[" + GOOD.encode() + b"]", 1),
    Case("bom.csv", b"\xef\xbb\xbfprompt,completion\np,c\n", 1),
    Case("utf16.jsonl", lines(GOOD).decode().encode("utf-16"), refused="not UTF-8 text"),
    Case("utf16_without_bom.csv", "prompt,completion\np,c\n".encode("utf-16-le"), refused="not UTF-8 text"),
    Case("utf32.json", f"[{GOOD}]".encode("utf-32"), refused="not UTF-8 text"),
    Case("lone_surrogate.jsonl", lines(r'{"prompt": "a\ud83d b", "completion": "\udc00c"}'), 1),
    Case("lone_surrogate_in_key.jsonl", lines(r'{"prompt": "p", "completion": "c", "\ud800": 1}'), 1),
    Case(
        "lone_surrogate_in_role.jsonl",
        lines(r'{"messages": [{"role": "us\ud800r", "content": "p"}]}'),
        0,
        1,
        "unknown role",
    ),
    Case(
        "lone_surrogate_in_array.json",
        rb'[{"prompt": "\ud800", "completion": ["\udfff"]}, {"x": "\ud800"}]',
        1,
        1,
        "columns are not recognised",
    ),
    Case("emoji_and_rtl.jsonl", lines('{"prompt": "👩‍👩‍👧‍👦 שלום \u202e", "completion": "\\ud83d\\ude00 مرحبا"}'), 1),
    Case("unicode_line_separators.jsonl", lines('{"prompt": "a\u2028b\u2029c\u0085d", "completion": "c"}'), 1),
    Case("crlf.jsonl", f"{GOOD}\r\n{GOOD}\r\n".encode(), 2),
    Case("cr_only.jsonl", f"{GOOD}\r{GOOD}\r".encode(), 2),
    Case("cr_only.csv", b"prompt,completion\rp,c\rp,c\r", 2),
    Case("gzip_named.jsonl", gzip.compress(lines(GOOD)), kept=1),
    Case("excel_named.csv", b"PK\x03\x04" + bytes(40), refused="ZIP or Excel"),
    Case("web_page.json", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", refused="is a web page"),
    Case("picture.jsonl", b"\x89PNG\r\n\xff\x13", 0, 2, "not valid UTF-8"),
]

JSON_FILES = [
    Case("truncated_array.json", f"[{GOOD}, {GOOD}, ".encode() + b'{"prompt": "p", "compl', 2, 1, "not valid JSON"),
    Case("truncated_between.json", f"[{GOOD}, {GOOD}".encode(), 2, 1, "not valid JSON"),
    Case("truncated_object.json", b'{"data": [' + f"{GOOD}, {GOOD}, {GOOD[:9]}".encode(), 2, 1, "not valid JSON"),
    Case("truncated_record.json", GOOD[:20].encode(), 0, 1, "not valid JSON"),
    Case("text_behind_array.json", f"[{GOOD}]\nand so on".encode(), 1, 1, "not valid JSON"),
    Case("trailing_comma.json", f"[{GOOD}, {GOOD},]".encode(), 2),
    Case("trailing_comma_inside.json", f'[{GOOD}, {{"prompt": "p",}}]'.encode(), 1, 1, "not valid JSON"),
    Case("comments.json", f"[ // rows\n{GOOD}]".encode(), 0, 1, "not valid JSON"),
    Case("single_quotes.json", b"[{'prompt': 'p', 'completion': 'c'}]", 0, 1, "not valid JSON"),
    Case("lines_named.json", lines(GOOD, "", GOOD), 2),
    Case("pretty_objects_in_a_row.json", json.dumps(json.loads(GOOD), indent=1).encode() * 3, 3),
    Case("array_named.jsonl", f"[\n{GOOD},\n{GOOD}\n]\n".encode(), 2),
    Case("wrapped.json", f'{{"version": 1, "data": [{GOOD}]}}'.encode(), 1),
    Case("one_record.json", chat(("user", "p"), ("assistant", "c")).encode(), 1),
    Case("two_lists.json", f'{{"train": [{GOOD}], "test": [{GOOD}]}}'.encode(), refused="several lists of records"),
    Case("empty_array.json", b"[]", refused="holds no records"),
    Case("empty_object.json", b"{}", 0, 1, "record is empty"),
    Case("null.json", b"null", 0, 1, "record is not an object"),
    Case("scalar.json", b'"hello"', refused="holds no records"),
    Case("array_of_scalars.json", b'[1, "a", null, [], true]', 0, 5, "record is not an object"),
    Case("deep_in_array.json", f"[{GOOD}, {deep(300)}]".encode(), 1, 1, "nested too deeply"),
    Case("bottomless_in_array.json", f"[{GOOD}, {deep(100_000)}]".encode(), 1, 1, "nested too deeply"),
    Case("long_number_in_array.json", f'[{GOOD}, {{"prompt": {"9" * 5000}}}]'.encode(), 1, 1, "a number is too long"),
]

JSON_LINES = [
    Case("empty.jsonl", b"", refused="holds no records"),
    Case("empty_but_for_bom.jsonl", b"\xef\xbb\xbf", refused="holds no records"),
    Case("blank_lines.jsonl", b"\n \n\t\n\r\n", refused="holds no records"),
    Case("truncated_line.jsonl", lines(GOOD) + GOOD[:-8].encode(), 1, 1, "not valid JSON"),
    Case("two_on_a_line.jsonl", lines(GOOD + GOOD, GOOD), 1, 1, "not valid JSON"),
    Case("scalar_lines.jsonl", lines("1", '"a"', "null", "true", "1.5"), 0, 5, "record is not an object"),
    Case("nested_lists.jsonl", lines("[[1], [2]]", "[]", f"[{GOOD}]"), 0, 3, "record is not an object"),
    Case("megabytes_on_a_line.jsonl", lines(json.dumps({"prompt": "é" * 2_600_000, "completion": "c"}), GOOD), 2),
    Case("broken_megabytes.jsonl", lines('{"prompt": "' + "x" * 5_000_000, GOOD), 1, 1, "not valid JSON"),
    Case(
        "nan.jsonl",
        lines('{"prompt": "p", "completion": NaN}', '{"prompt": "p", "completion": "c", "x": -Infinity}'),
        1,
        1,
        "a needed value is null",
    ),
    Case("number_out_of_range.jsonl", lines('{"prompt": "p", "completion": {"n": 1e999}}'), 1),
    Case("huge_whole_number.jsonl", lines('{"prompt": "p", "completion": {"id": 123456789012345678901234567890}}'), 1),
    Case(
        "endless_whole_number.jsonl",
        lines('{"prompt": "p", "completion": %s}' % ("9" * 5000)),
        0,
        1,
        "a number is too long",
    ),
    Case("deep.jsonl", lines(deep(99), deep(101), deep(500), GOOD), 2, 2, "nested too deeply"),
    Case("bottomless.jsonl", lines(deep(100_000), GOOD), 1, 1, "nested too deeply"),
    Case("bottomless_text.jsonl", lines(json.dumps({"messages": "[" * 100_000})), 0, 1, "messages are not a list"),
    Case("duplicate_keys.jsonl", lines('{"prompt": "a", "prompt": "p", "completion": "c"}'), 1),
    Case("raw_line_break.jsonl", b'{"prompt": "a\nb", "completion": "c"}\n', 0, 2, "not valid JSON"),
    Case(
        "nul_byte.jsonl",
        lines('{"prompt": "a\\u0000b", "completion": "c"}', '{"prompt": "a\0"}'),
        1,
        1,
        "not valid JSON",
    ),
    Case("null_record_values.jsonl", lines('{"prompt": null, "completion": null}'), 0, 1, "a needed value is null"),
]

SHAPES = [
    Case(
        "mixed_shapes.jsonl",
        lines(
            GOOD,
            chat(("user", "p"), ("assistant", "c")),
            '{"question": "q", "answer": "a"}',
            '{"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]}',
        ),
        4,
    ),
    Case(
        "missing_answer.jsonl", lines('{"prompt": "p"}', '{"instruction": "i", "input": ""}'), 0, 2, "no answer column"
    ),
    Case(
        "answers_of_all_kinds.jsonl",
        lines(*(json.dumps({"prompt": "p", "completion": value}) for value in ({"a": 1}, [1], 5, 0.5, True, ""))),
        6,
    ),
    Case("raw_text.txt", b"one\n\ntwo\nthree", 0, 3, "raw text has no answer to learn from"),
    Case("raw_text.jsonl", lines('{"text": "a"}', '{"text": "b"}'), 0, 2, "raw text has no answer to learn from"),
    Case("unknown_columns.jsonl", lines('{"a": 1, "b": 2}'), 0, 1, "columns are not recognised"),
    Case(
        "messages_as_text.jsonl",
        lines(json.dumps({"messages": json.dumps([QUESTION, ANSWER])}), '{"messages": "hello"}'),
        1,
        1,
        "messages are not a list",
    ),
    Case("messages_empty.jsonl", lines('{"messages": []}'), 0, 1, "conversation is empty"),
    Case("messages_an_object.jsonl", lines('{"messages": {"role": "user"}}'), 0, 1, "messages are not a list"),
    Case("messages_of_texts.jsonl", lines('{"messages": ["hi", "hello"]}'), 0, 1, "message is not an object"),
    Case("message_without_role.jsonl", lines('{"messages": [{"content": "p"}]}'), 0, 1, "message without a role"),
    Case("message_without_content.jsonl", lines('{"messages": [{"role": "user"}]}'), 0, 1, "message without content"),
    Case("unknown_role.jsonl", lines(chat(("user", "p"), ("asistant", "c"))), 0, 1, "unknown role"),
    Case("role_of_wrong_type.jsonl", lines('{"messages": [{"role": ["user"], "content": "p"}]}'), 0, 1, "unknown role"),
    Case("null_content.jsonl", lines(chat(("user", "p"), ("assistant", None))), 0, 1, "message content is null"),
    Case("content_number.jsonl", lines(chat(("user", 5), ("assistant", "c"))), 0, 1, "message content is not text"),
    Case("ends_with_user.jsonl", lines(chat(("user", "p"), ("assistant", "c"), ("user", "and?"))), 1),
    Case("only_user.jsonl", lines(chat(("user", "p"))), 0, 1, "no assistant message"),
    Case("only_assistant.jsonl", lines(chat(("assistant", "c"))), 0, 1, "no user message"),
    Case("only_system.jsonl", lines(chat(("system", "s"))), 0, 1, "no assistant message"),
    Case(
        "system_in_the_middle.jsonl",
        lines(chat(("user", "p"), ("system", "s"), ("assistant", "c"))),
        0,
        1,
        "system message is not first",
    ),
    Case(
        "two_users.jsonl",
        lines(chat(("user", "p"), ("user", "p"), ("assistant", "c"))),
        0,
        1,
        "two messages of one role in a row",
    ),
    Case(
        "image_part.jsonl",
        lines(chat(("user", [{"type": "text", "text": "p"}, {"type": "image_url"}]), ("assistant", "c"))),
        0,
        1,
        "message content is not text only",
    ),
    Case(
        "tools_broken.jsonl",
        lines(
            chat(("user", "p"), ("assistant", "c"), tools='[{"name": "f"'),
            chat(("user", "p"), ("assistant", "c"), tools=[1]),
        ),
        0,
        2,
        "tools cannot be read",
    ),
    Case(
        "tools_with_huge_number.jsonl",
        lines(chat(("user", "p"), ("assistant", "c"), tools=[{"max": 10**30}])),
        0,
        1,
        "a number is too long",
    ),
    Case(
        "tool_call_broken.jsonl",
        lines(
            '{"messages": [{"role": "user", "content": "p"}, '
            '{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}'
        ),
        0,
        1,
        "tool call cannot be read",
    ),
    Case(
        "function_call_not_json.jsonl",
        lines(
            json.dumps(
                {"conversations": [{"from": "human", "value": "p"}, {"from": "function_call", "value": CALL[:-3]}]}
            )
        ),
        1,
    ),
    Case(
        "history_broken.jsonl",
        lines(
            '{"instruction": "i", "output": "o", "history": [["q"]]}',
            '{"instruction": "i", "output": "o", "history": "[["}',
        ),
        0,
        2,
    ),
    Case("pair_without_prompt.jsonl", lines('{"chosen": "a", "rejected": "b"}'), 0, 1, "no prompt column"),
    Case(
        "labelled.jsonl",
        lines(
            '{"prompt": "p", "completion": "c", "label": true}', '{"prompt": "p", "completion": "c", "label": false}'
        ),
        1,
        1,
        "answer labelled as bad",
    ),
    Case(
        "two_answers.jsonl",
        lines('{"question": "q", "answer": "a", "response": "b"}'),
        0,
        1,
        "several columns could be the answer",
    ),
]

TABLES = [
    Case("unclosed_quote.csv", b'prompt,completion\np,c\n"p,c\np,c\n', 1, 1, "broken quotes"),
    Case("stray_quote.csv", b'prompt,completion\n"p"x,c\np,c\n', 1, 1, "broken quotes"),
    Case("ragged.csv", b"prompt,completion\np\np,c,d\np,c\n\n", 1, 2, "wrong number of columns"),
    Case("duplicate_header.csv", b"text,text\na,b\n", refused="two columns named `text`"),
    Case("broken_header.csv", b'"prompt,completion\np,c\n', refused="the header of"),
    Case("control_character.csv", b"\x1f", refused="holds no records"),
    Case("only_header.csv", b"prompt,completion\n", refused="holds no records"),
    Case("without_header.csv", b"How are you?,fine\nAnd you?,fine too\n", 0, 1, "columns are not recognised"),
    Case("nul_bytes.csv", b"prompt,completion\np\0q,c\n", 1),
    Case("megabytes_in_a_cell.csv", b"prompt,completion\n" + b"x" * 5_000_000 + b",c\n", 1),
    Case("semicolons.csv", b"prompt;completion\np, or so;c\n", 1),
    Case("line_breaks_in_cells.csv", b'prompt,completion\n"a\nb","c\r\nd"\n', 1),
    Case("tabs.tsv", b"prompt\tcompletion\np, q\tc\n", 1),
    Case("index_column.csv", b",prompt,completion\n0,p,c\n", 1),
    Case(
        "nested.parquet",
        table({"messages": [[QUESTION, ANSWER], [QUESTION]], "meta": [{"a": 1}, None]}),
        1,
        1,
        "no assistant message",
    ),
    Case(
        "mixed_shapes.parquet",
        table({"prompt": ["p", None], "completion": ["c", None], "text": [None, "t"]}),
        1,
        1,
        "raw text has no answer to learn from",
    ),
    Case("bytes.parquet", table({"prompt": ["p"], "completion": [b"\xff"]}), 0, 1, "a value that JSON cannot hold"),
    Case("bytes_beside.parquet", table({"prompt": ["p"], "completion": [b"c"], "image": [{"bytes": b"\xff"}]}), 1),
    Case("bytes_in_tools.parquet", table({"prompt": ["p"], "completion": ["c"], "tools": [b"\xff"]}), 0, 1),
    Case("zero_rows.parquet", table({"prompt": pyarrow.array([], "string")}), refused="holds no records"),
    Case("corrupt_footer.parquet", table({"prompt": ["p"]})[:-6] + b"broken", refused="not a readable Parquet file"),
    Case(
        "truncated.parquet",
        table({"prompt": ["p" * 500], "completion": ["c"]})[:300],
        refused="not a readable Parquet file",
    ),
    Case("not_parquet.parquet", b"prompt,completion\np,c\n", refused="not a readable Parquet file"),
    Case("rows.data", lines(GOOD, GOOD), 2),
    Case("rows.dat", b"prompt,completion\np,c\n", 1),
    Case("notes.doc", b"just some words\n", refused="of a kind that tunesmith does not read"),
]

CASES = [*ENCODING, *JSON_FILES, *JSON_LINES, *SHAPES, *TABLES]
