"""One reader of the answer schema, so that cleaning and scoring accept the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("reference", ["file:///other.json", "https://example.org/s", "other.json#/a", "#/$defs/gone"])
@pytest.mark.parametrize(
    "draft", ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]
)
def test_a_reference_to_elsewhere_is_told_before_any_answer_is_read(tmp_path: Path, reference: str, draft: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"$schema": draft, "properties": {"a": {"items": {"$ref": reference}}}}))
    with pytest.raises(ConfigError, match="refers to something that is not in it") as error:
        AnswerSchema.read(path)
    assert reference.removeprefix("#") in error.value.why
    assert error.value.next


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}},
        {"$id": "https://example.org/s", "$defs": {"n": {"$anchor": "n", "type": "integer"}}, "items": {"$ref": "#n"}},
        {"$id": "https://example.org/s", "$defs": {"n": {"type": "integer"}}, "items": {"$ref": "s#/$defs/n"}},
        {"common": {"n": {"type": "integer"}}, "items": {"$ref": "#/common/n"}},
        {"items": {"type": "integer"}, "not": {"enum": [{"$ref": "a value, no reference"}]}},
    ],
)
def test_what_stands_in_the_file_may_be_referred_to(tmp_path: Path, schema: dict[str, Any]) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    read = AnswerSchema.read(path)
    assert (read.fault([1]), bool(read.fault(["1"]))) == (None, True)


def test_a_reference_to_elsewhere_behind_another_is_told_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"common": {"n": {"$ref": "other.json"}}, "items": {"$ref": "#/common/n"}}')
    with pytest.raises(ConfigError, match="refers to something that is not in it"):
        AnswerSchema.read(path).fault([1])
