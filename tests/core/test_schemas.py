"""One reader of the answer schema, so that cleaning and scoring accept the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Gate
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.core.schemas import AnswerSchema
from tunesmith.data.cleaning import answers
from tunesmith.evaluate import gates


@pytest.mark.parametrize("text", ['\ufeff{"type": "object"}', "true", '{"required": ["a"]}'])
def test_cleaning_and_scoring_accept_the_same_schema(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text, encoding="utf-8")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": '{"a": 1}'}]
    row = Row(turns, "rows.jsonl", 1, "messages")
    assert list(answers.follows_schema([row], path)) == [Kept(row)]
    gates.check([Gate(metric="schema_valid")], "json", path)


def test_a_missing_schema_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as JSON") as error:
        AnswerSchema.read(tmp_path / "gone.json")
    assert error.value.why
    assert error.value.next


def test_an_answer_too_deep_for_a_recursive_schema_breaks_it(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "items": {"$ref": "#"}}')
    row = Row([{"role": "user", "content": "?"}, {"role": "assistant", "content": "[" * 900 + "]" * 900}], "a", 1, "x")
    [dropped] = answers.follows_schema([row], path)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "answer breaks the schema"
    assert "too deeply" in dropped.detail
