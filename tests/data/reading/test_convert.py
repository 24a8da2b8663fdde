"""The user's own `convert`: whatever it does, it ends as a value, a reason or a ConfigError."""

import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.data.reading.convert import converter
from tunesmith.data.reading.values import Unusable


def written(folder, code):
    path = folder / "own.py"
    path.write_text(code)
    return path


def test_its_result_is_returned(tmp_path):
    code = """
from __future__ import annotations
from dataclasses import asdict, dataclass

@dataclass
class Pair:
    prompt: str
    completion: str

def convert(record):
    return asdict(Pair(*record))
"""
    assert converter(written(tmp_path, code))(["p", "c"]) == {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(("body", "reason", "fix"), [
    ("return None", "convert returned None", "return a record"),
    ("return [record]", "convert did not return an object", "not a list"),
    ("return record['b']", "convert raised an error", "mend `convert`: KeyError: 'b' (own.py:2)"),
    ("raise SystemExit(3)", "convert raised an error", "SystemExit: 3 (own.py:2)"),
    ("return convert(record)", "convert raised an error", "RecursionError"),
])  # fmt: skip
def test_a_record_that_it_cannot_convert_has_a_reason(body, reason, fix, tmp_path):
    convert = converter(written(tmp_path, f"def convert(record):\n    {body}\n"))
    with pytest.raises(Unusable) as refusal:
        convert({"a": 1})
    assert refusal.value.reason == reason
    assert fix in refusal.value.fix


@pytest.mark.parametrize(("code", "what", "why"), [
    ("def convert(record:\n", "cannot be imported", "SyntaxError"),
    ("x = 1\n1 / 0\n", "cannot be imported", "ZeroDivisionError: division by zero (own.py:2)"),
    ("raise SystemExit(1)\n", "cannot be imported", "SystemExit: 1"),
    ("import no_such_module\n", "cannot be imported", "No module named"),
    ("convert = 5\n", "has no function `convert`", "on each record"),
    ("", "has no function `convert`", "on each record"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_a_config_error(code, what, why, tmp_path):
    with pytest.raises(ConfigError, match=what) as refusal:
        converter(written(tmp_path, code))
    assert why in refusal.value.why
    assert refusal.value.next


def test_the_file_is_python(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    with pytest.raises(ConfigError) as refusal:
        converter(path)
    assert refusal.value.why == "it is not a Python file"
