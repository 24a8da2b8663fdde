"""Rows that contradict one another, as a person decides about them: a file to fill in, and the file filled in."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import store
from tunesmith.core.errors import ConfigError
from tunesmith.data.cleaning.contradictions import WAITS

FILE = "review.jsonl"


def write(folder: Path) -> None:
    """Of the folder's `dropped.jsonl`, what waits for a review, answers to one prompt below each other."""
    waiting = [row for row in store.read_jsonl(folder / "dropped.jsonl") if row["reason"] == WAITS]
    first = {row["group"]: place for place, row in reversed(list(enumerate(waiting)))}
    waiting.sort(key=lambda row: first[row["group"]])
    store.write_jsonl(folder / FILE, map(_asked, waiting))


def decisions(path: Path) -> dict[int, bool]:
    """What is kept and what is not, by content id. Raises ConfigError for a line that says neither."""
    decided: dict[int, bool] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            said_here = line.removeprefix(codecs.BOM_UTF8).strip()
            if not said_here:
                continue
            try:
                said = orjson.loads(said_here)
                key, keep = int(said["id"], 16), said["keep"]
            except (ValueError, TypeError, KeyError):
                raise _unreadable(path, number, "it is no JSON object with `id` and `keep`") from None
            if not isinstance(keep, bool | None):
                raise _unreadable(path, number, f"`keep` is {orjson.dumps(keep).decode()}")
            if keep is not None:
                decided[key] = keep
    return decided


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    *prompt, answer = row["messages"]
    read_at = {"source": row["source"], "line": row["line"]}
    return {"keep": None, "id": row["id"], "prompt": prompt, "answer": answer, "tools": row["tools"], **read_at}


def _unreadable(path: Path, number: int, why: str) -> ConfigError:
    return ConfigError(
        f"data.clean.reviewed: {path.name}:{number} is no decision",
        why,
        f"take a line of `{FILE}` and set `keep` to true or false; null leaves it undecided",
    )
