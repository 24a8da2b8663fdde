"""What rows are compared by, as a few numbers for each: a million rows' worth fits where the rows themselves would not.

Each part's rows are noted by themselves. Which of them contradict or repeat one another is then found in the traits of
all rows at once, where a row is known by its place, and told as rulings.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core import store
from tunesmith.core.records import Row, normalised, words_of
from tunesmith.data.cleaning.answers import parse_json
from tunesmith.data.reading.values import NO_DIGIT

Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]

READ_AT = [("source", "u4"), ("line", "i8")]  # which of the names of files, and where in it
COMPARED = np.dtype(
    [
        *READ_AT,
        ("context", "u8"),  # all that an answer may depend on: side, tools, and every message before it
        ("meaning", "u8"),  # what the answer says, however it is written
        ("said", "u8"),  # the answer up to whitespace, and which answers before it are not learnt
        ("kind", "u8"),  # prompts of two kinds never mean the same, however alike: all but their words, and what denies
        ("prompt", "u8"),  # the text whose shingles are compared
        ("prompt_words", "i4"),
        ("answer_words", "i4"),
        ("task", "u8"),  # what is asked of every row alike: system message and tools
        ("id", "u8"),
        ("structured", "?"),  # whether the answer is a JSON object or list, or calls tools
        ("time", "f8"),  # when the answer was given; -inf: nobody says
        ("held_out", "?"),  # whether it is pinned to a side that does not train
    ]
)

_NUMBER = re.compile(r"(?:[-+−*/×÷^<>=]\s*)?\d+(?:[.,:]\d+)*%?")  # normalised text has lost signs and decimal points
_NO_SIGN = bytes(set(range(256)) - set(b"#+<=>|~"))
_PERHAPS_SIGN = re.compile(r"[#+<=>|~]|[^\w\s\x00-\x7f]")
_ENDING = re.compile(r"n['’`´]t\b")
_DENYING = """
    no not never none nobody nothing nowhere neither nor without cannot
    aint arent cant couldnt darent didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt neednt oughtnt shant
    shouldnt wasnt werent wont wouldnt
    nicht kein keine keinem keinen keiner keines nie niemals ohne non pas jamais sans nunca sin"""
_NEGATIONS = frozenset(_DENYING.split())
_JSON_BEGINS = frozenset('{["-0123456789tfn')


class Ruling(NamedTuple):
    """What is to become of the row at a place, on account of the one at `other`: it is dropped for this reason, or kept
    with the detail as a note. In `detail`, {} stands for where the other row was read."""

    place: int
    other: int
    reason: str | None
    detail: str


class Finding(NamedTuple):
    """What is said of many rows together: an entry of the step's summary, and sentences that a user must read."""

    name: str
    facts: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class Traits:
    """Those of N rows, by name: `traits["context"]`."""

    rows_N: NDArray[Any]  # structured; begins with the fields READ_AT
    sources: list[str]

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.rows_N[name]

    def read_at(self, place: int) -> str:
        """Where the row at a place was read."""
        row = self.rows_N[place]
        return f"{self.sources[row['source']]}:{row['line']}"


def of(rows: Sequence[Row], noted: Callable[[Row], tuple[int | float, ...]], dtype: np.dtype[Any]) -> Traits:
    """`noted` gives a row's values behind those of READ_AT."""
    sources = {name: i for i, name in enumerate(dict.fromkeys(row.source for row in rows))}
    found = [(sources[row.source], row.line, *noted(row)) for row in rows]
    return Traits(np.array(found, dtype), list(sources))


def write(folder: Path, traits: Traits) -> None:
    """The traits of a part's rows, in files of its folder."""
    traits.rows_N.tofile(folder / "traits")
    store.write_json(folder / "sources.json", traits.sources)


def together(folders: Sequence[Path], dtype: np.dtype[Any]) -> Traits:
    """The traits of the rows of all parts."""
    rows, sources = [np.zeros(0, dtype)], list[str]()
    for folder in folders:
        of_part = np.fromfile(folder / "traits", dtype)
        of_part["source"] += len(sources)
        rows.append(of_part)
        sources += store.read_json(folder / "sources.json")
    return Traits(np.concatenate(rows), sources)


def count(folder: Path, dtype: np.dtype[Any]) -> int:
    """How many rows the part has."""
    return (folder / "traits").stat().st_size // dtype.itemsize


def prompt_text(row: Row) -> str:
    """The prompt without its system message, as it is compared with others."""
    return "\n".join(normalised(m["content"]) for m in row.prompt if m["role"] != "system")


def compared(row: Row) -> tuple[int | float, ...]:
    """The values of COMPARED, behind those of READ_AT."""
    last, side = row.messages[-1], row.split if row.split in ("validation", "test") else "train"
    context, system, prompt_words = [], [], 0
    figures: list[str] = []
    denied: list[str] = []
    for m in row.prompt:
        words, numbers = words_of(m["content"]), _numbers(m["content"])
        text, signs = " ".join(words) or m["content"].strip(), _signs(m["content"])
        context.append([m["role"], text, numbers, signs, m.get("tool_calls")])
        if m["role"] == "system":
            system.append(text)
        else:
            figures += [*numbers, *signs]
            denied += _negations(m["content"], words)
            prompt_words += len(m["content"].split())
    calls = [called for *_, called in context]
    words = row.answer.split()
    meaning, called, worse = _meaning(row.answer, words), last.get("tool_calls"), row.rejected and row.rejected.split()
    says = hashed([meaning, called])
    skipped = [place for place, m in enumerate(row.prompt) if m.get("learnt") is False]
    marks = [skipped] if skipped else []
    by_words = "text" in meaning and not called and worse is None and not marks  # then it means what it says
    return (
        hashed([side, row.tools, context]),
        says,
        says if by_words else hashed([words, called, worse, *marks]),
        _often([side, system, row.tools, calls, worse, sorted(figures), sorted(denied), *marks]),
        int(row.group, 16),
        prompt_words,
        len(words),
        _often([system, row.tools]),
        int(row.id, 16),
        bool(called) or isinstance(meaning.get("json"), dict | list),
        -math.inf if row.time is None else row.time,
        side != "train",
    )


def together_with(kind_N: Hashes, answer_N: Hashes) -> Hashes:
    """What rows must share whose prompts are of one kind and whose answers are equal."""
    return kind_N * np.uint64(0x9E3779B97F4A7C15) ^ answer_N


def _numbers(text: str) -> list[str]:
    if text.isascii() and not text.encode().translate(None, NO_DIGIT):
        return []
    return _NUMBER.findall(text)


def _signs(text: str) -> str:
    """Those of mathematics, and pictures: "C#" is not "C++", nor is a smile a frown. Punctuation and currencies may
    differ where nothing else does."""
    if text.isascii():
        return text.encode().translate(None, _NO_SIGN).decode()
    return "".join(c for c in _PERHAPS_SIGN.findall(text) if c == "#" or unicodedata.category(c) in ("Sm", "So"))


def _negations(text: str, words: list[str]) -> list[str]:
    """Those of a text, in every way to write them; "n't" for whatever ends so. `words` are its normalised ones."""
    ends_so = _ENDING.findall(text.casefold()) if "t" in words else []
    if not ends_so and _NEGATIONS.isdisjoint(words):
        return []  # as nearly all of them do
    return [*(word for word in words if word in _NEGATIONS), *("n't" for _ in ends_so)]


def hashed(value: Any) -> int:
    """The first eight bytes of the SHA-256 of the value's canonical JSON: the number of its `content_id`."""
    return _number(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _often(value: Any) -> int:
    """The same of a value that many rows share."""
    return _known_number(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


_known_number = lru_cache(maxsize=4096)(_number)


def _meaning(answer: str, words: list[str]) -> dict[str, Any]:
    """The same for answers that say the same: JSON by its value, all else, its words, up to whitespace."""
    text = " ".join(words)
    if text[:1] in _JSON_BEGINS:
        with suppress(ValueError):
            return {"json": _one_number(parse_json(answer))}
    return {"text": text}


def _one_number(value: Any) -> Any:
    """2 for 2.0, at any depth: JSON knows one kind of number. True stays apart from 1, as it would not by `==`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_one_number(item) for item in value]
    return {key: _one_number(item) for key, item in value.items()} if isinstance(value, dict) else value
