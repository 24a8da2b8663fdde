"""The first project file for somebody's data, written by looking at the data."""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core import hub, inputs
from tunesmith.core.data_section import Fields, Source
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.data import load
from tunesmith.data.reading import unpack

_TEMPLATE = """\
# Made by `tunesmith init` from {file}. `tunesmith check` looks at it again, `tunesmith run` runs it.
# What is left out is decided by the planner, which tells its reasons. Every key: docs/config.md.
name: {name}
model: smollm2-135m-instruct    # `tunesmith models` lists others; a local folder or a hub id works too

data:
  sources:
    # {seen}
    - path: {path}{fields}
  # Say what the model should do; every row without a system message gets this one.
  # system: Answer the customer's question in one short paragraph.
  clean:
    answer: {answer}                # {answer_reason}
    # answer_schema: answer.schema.json   # a JSON Schema that every answer must follow
    # personal_data: replace      # report (default), replace, surrogate or drop: addresses, numbers, keys, passwords
    # contradictions: drop        # report (default), drop or majority: same prompt, different answers
  split:
    validation: 0.1             # chooses the best checkpoint
    test: 0.2                   # frozen exam: base against tuned

# train:                        # left out: the planner decides, and says why
#   epochs: 3
#   learning_rate: 0.001

evaluate:
  gates:                        # what the tuned model must reach; exit status 0 PASS, 3 FAIL, 4 NOT ENOUGH DATA
    - metric: {metric}
      margin: 0.0               # the smallest gain over the base that counts
"""


def project_file(data: Path, root: Path) -> str:
    """The text of a commented project file in `root` for examples: a file, a folder or a glob.

    Raises ConfigError when it names no file, DataError when no column of it can serve as question and answer.
    """
    if fault := _fault(data):
        raise ConfigError(fault, "init looks at files of examples", "tunesmith init YOUR_DATA.jsonl")
    of_hub = hub.is_address(data)
    if not inputs.is_here(data):
        raise ConfigError(
            f"{inputs.shown(data)} is not on this machine",
            "init fetches nothing",
            f"write `data: {{sources: [{{path: '{inputs.shown(data)}'}}]}}` and a `name` to tunesmith.yaml, then "
            "tunesmith run --until load",
        )
    source = Source(path=data if of_hub else data.resolve())
    found = load.preview(source)
    fields = ""
    if not found["kept"]:
        source, found = _guess(source, found, data)
        fields = (
            f"\n      fields: {{prompt: {_quoted(source.fields.prompt)}, answer: {_quoted(source.fields.answer)}}}"
            "   # a guess: look at it"
        )
    answers = [row["messages"][-1]["content"] for row in found["examples"]]
    as_json = bool(answers) and all(_is_json(answer) for answer in answers)
    shapes = ", ".join(f"{count} {shape}" for shape, count in found["shapes"].items())
    return _TEMPLATE.format(
        file=_quoted(data.name),
        name=_quoted(_name(source.path)),
        seen=f"first {found['rows_in']} records: {shapes}; {found['quarantined']} cannot be read",
        path=_quoted(inputs.shown(data) if of_hub else os.path.relpath(source.path, root)),
        fields=fields,
        answer="json" if as_json else "text",
        answer_reason="the first answers are JSON objects"
        if as_json
        else "json: answers that do not parse are dropped",
        metric="field_f1" if as_json else "perplexity",
    )


def _fault(data: Path) -> str | None:
    try:
        return inputs.fault(data)
    except OSError as error:  # a name that is too long, a folder that may not be read
        return f"{data} cannot be looked up: {error.strerror}"
    except ValueError as error:  # an address of the hub that can be none
        return str(error)


def _name(data: Path) -> str:
    """The name of the file, folder or data set; of a glob, the folder that it begins in."""
    if hub.is_address(data):
        data = Path(hub.address(data).name)
    while inputs.is_glob(data):
        data = data.parent
    stem = data.name if data.is_dir() else Path(unpack.inner_name(data.name)).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "project"


def _guess(source: Source, found: dict[str, Any], data: Path) -> tuple[Source, dict[str, Any]]:
    """The first column as the question and the last as the answer, if rows come of it."""
    columns = found["columns"]
    if len(columns) >= 2:
        guess = source.model_copy(update={"fields": Fields(prompt=columns[0], answer=columns[-1])})
        seen = load.preview(guess)
        if seen["kept"]:
            return guess, seen
    reasons = "; ".join(f"{reason} ({count})" for reason, count in found["reasons"].items())
    raise DataError(
        f"{data} holds no examples that tunesmith can read",
        f"{reasons}; columns: {', '.join(columns) or 'none'}",
        'give each record a question and an answer, for example {"prompt": ..., "completion": ...}',
    )


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _quoted(text: str | None) -> str:
    """A YAML scalar: plain where that is safe, which `yes`, `null`, `2024` and `2024-01-31` are not."""
    with suppress(ValueError):  # what looks like a date and is none
        if text and re.fullmatch(r"[A-Za-z0-9_][\w./-]*", text) and yaml.safe_load(text) == text:
            return text
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)).strip()
