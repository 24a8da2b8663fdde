"""A person decides about contradictions: the file to fill in, the file filled in, and what is wrong in it."""

from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import pipeline


def row(prompt: str, answer: str, line: int) -> Row:
    return Row(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], "t.csv", line, "columns"
    )


ROWS = [row("up", "a", 1), row("down", "x", 2), row("up", "b", 3), row("down", "y", 4), row("in", "z", 5)]


@pytest.fixture
def clean(tmp_path):
    def run(**options: Any) -> dict[str, Any]:
        store.write_rows(tmp_path / "rows.jsonl", ROWS)
        (tmp_path / "out").mkdir(exist_ok=True)
        settings = Clean.model_validate({"contradictions": "review", "single_answer": "yes", **options})
        return pipeline.run(settings, Artifact("load", "0", tmp_path, "done"), tmp_path / "out")

    return run


def kept(tmp_path) -> list[int]:
    return [r.line for r in store.read_rows(tmp_path / "out/rows.jsonl")]


def test_what_waits_is_written_prompt_by_prompt_and_decisions_bring_it_back(clean, tmp_path):
    assert clean()["reasons"] == {"contradiction, waits for a review": 4}
    asked = list(store.read_jsonl(tmp_path / "out/review.jsonl"))
    assert [line["line"] for line in asked] == [1, 3, 2, 4]
    assert all(line["keep"] is None and line["prompt"] and line["answer"]["content"] for line in asked)
    asked[0]["keep"], asked[1]["keep"] = False, True
    store.write_jsonl(tmp_path / "decided.jsonl", asked)
    summary = clean(reviewed=str(tmp_path / "decided.jsonl"))
    assert kept(tmp_path) == [3, 5]
    assert summary["reasons"] == {"contradiction, waits for a review": 2, "contradiction": 1}
    assert [line["line"] for line in store.read_jsonl(tmp_path / "out/review.jsonl")] == [2, 4]


def test_an_editor_may_add_its_mark_and_its_ends_of_lines(clean, tmp_path):
    clean()
    text = (tmp_path / "out/review.jsonl").read_text().replace('"keep":null', '"keep":true').replace("\n", "\r\n")
    (tmp_path / "decided.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    clean(reviewed=str(tmp_path / "decided.jsonl"))
    assert kept(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"id": "00"}', '{"id": "xyz", "keep": true}',
                                  '{"id": "00", "keep": "yes"}', '{"id": 3, "keep": 1}'])  # fmt: skip
def test_a_line_that_decides_nothing_is_named(clean, tmp_path, line):
    (tmp_path / "decided.jsonl").write_text('{"id": "00", "keep": null}\n\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"decided\.jsonl:3 is no decision") as caught:
        clean(reviewed=str(tmp_path / "decided.jsonl"))
    assert "review.jsonl" in caught.value.next
