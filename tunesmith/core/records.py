"""The types that stages exchange: rows, what became of them, decisions and verdicts.

Folders of one layer never import each other; they meet here and in the files that these types are written to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import orjson

# {"role": "system" | "user" | "assistant" | "tool", "content": str, ["tool_calls": [...]], ["learnt": False]}
Message = dict[str, Any]
Split = Literal["auto", "train", "validation", "test"]

_WORDS = re.compile(r"[^\W_]+")
_ASCII_WORDS = bytes(ord(c.lower()) if i < 128 and (c := chr(i)).isalnum() else ord(" ") for i in range(256))


@dataclass(frozen=True)
class Row:
    """One canonical conversation.

    `id` is the content's hash, so the same conversation has the same id wherever it stands; `source` and `line` say
    where it was read (line counts from 1; in JSON arrays and Parquet files it is the row's number). `rejected` holds
    the worse answer of a preference pair, `time` when the answer was given, in seconds since 1970. `changes` lists what
    earlier stages did to the text. `thread` is the hash of the conversation or user that it belongs to, where its
    source names one.
    """

    messages: list[Message]
    source: str
    line: int
    shape: str
    split: Split = "auto"
    tools: list[dict[str, Any]] = field(default_factory=list)
    rejected: str | None = None
    time: float | None = None
    parents: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    thread: str | None = None

    @cached_property
    def id(self) -> str:
        return content_id({"messages": self.messages, "tools": self.tools})

    @property
    def prompt(self) -> list[Message]:
        """All messages before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer, the one that is scored."""
        return str(self.messages[-1]["content"])

    @cached_property
    def group(self) -> str:
        """The hash of the normalised prompt: rows of one group never stand on two sides of the split."""
        words = [normalised(str(m["content"])) for m in self.prompt if m["role"] != "system"]
        return content_id(words)

    def changed(self, note: str, messages: list[Message]) -> Row:
        return replace(self, messages=messages, changes=[*self.changes, note])

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "group": self.group, **vars(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        """The row that `to_json` wrote, which knows its id and group from there. It keeps the object as its own."""
        assert len(value) == len(cls.__dataclass_fields__) + 2, f"not a row: {', '.join(value)}"
        row = cls.__new__(cls)
        object.__setattr__(row, "__dict__", value)  # a frozen dataclass sets field after field, slower than it is read
        return row


class Kept(NamedTuple):
    row: Row


class Dropped(NamedTuple):
    """A row that goes no further: `reason` is a short fixed phrase to count by, `detail` says what was seen."""

    row: Row
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A record that could not be read as a row; `record` keeps its beginning as it stood in the file."""

    source: str
    line: int
    reason: str
    fix: str
    record: str


@dataclass(frozen=True)
class Decision:
    """A value that the planner derived, or that the project file pinned, and the reason for it."""

    value: Any
    reason: str


Outcome = Literal["PASS", "FAIL", "NOT ENOUGH DATA"]
EXIT_STATUS: dict[Outcome, int] = {"PASS": 0, "FAIL": 3, "NOT ENOUGH DATA": 4}


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its confidence interval, all in the metric's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GateResult:
    """What one gate decided: the gain of tuned over base, the test behind it, and the rows that would be enough."""

    metric: str
    margin: float
    alpha: float
    outcome: Outcome
    gain: Interval
    test: str
    p_value: float | None
    rows: int
    rows_needed: int | None
    sentence: str


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The verdict over several gates: one FAIL fails, and what was not measured is never a pass."""
    if not outcomes:
        return "NOT ENOUGH DATA"
    return max(outcomes, key=["PASS", "NOT ENOUGH DATA", "FAIL"].index)


def words_of(text: str) -> list[str]:
    """Runs of word characters in lower case."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return _WORDS.findall(text.casefold())


def normalised(text: str) -> str:
    """The text's words with one space between them: what makes prompts equal. Text without words stays."""
    return " ".join(words_of(text)) or text.strip()


def content_id(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
