"""Questions to a language model and its replies: what they are, how they are kept, and JSON out of their text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import store
from tunesmith.core.errors import ResourceError
from tunesmith.core.records import Message


@dataclass(frozen=True)
class Asked:
    """One question. Another `seed` is another question; `json` asks for a JSON object, where the server knows how."""

    messages: list[Message]
    seed: int = 0
    json: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(len(orjson.dumps(message)) for message in self.messages)


@dataclass(frozen=True)
class Reply:
    """What came back. Without a text, `fault` is a short phrase to count by, and `passing` tells whether the same
    question, asked again, may be answered."""

    text: str | None
    fault: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached: bool = False
    passing: bool = False


@dataclass
class Usage:
    """What was asked, and what of it had to be paid: tokens and cost are of this client's own requests; those of
    replies that were kept before are not in them. `failed` counts replies without a text."""

    asked: int = 0
    cached: int = 0
    answered: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0

    def count(self, reply: Reply) -> None:
        self.asked += 1
        self.cached += reply.cached
        self.answered += reply.text is not None
        self.failed += reply.text is None


class Kept:
    """Replies on disk, each in a file of its own that is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Reply | None:
        """None too for a file that is not what we wrote: it is asked for anew, and replaced."""
        try:
            found = store.read_json(self._path(name))
            reply = Reply(found["text"], found["fault"], found["prompt_tokens"], found["answer_tokens"], cached=True)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        counts = isinstance(reply.prompt_tokens, int) and isinstance(reply.answer_tokens, int)
        whole = isinstance(reply.text, str) if reply.text is not None else bool(reply.fault)
        return reply if counts and whole and isinstance(reply.fault, str) else None

    def keep(self, name: str, reply: Reply) -> None:
        told = {"text": reply.text, "fault": reply.fault}
        counts = {"prompt_tokens": reply.prompt_tokens, "answer_tokens": reply.answer_tokens}
        try:
            store.write_json(self._path(name), {**told, **counts})
        except OSError as error:
            raise ResourceError(
                f"a reply cannot be kept in {self.folder}",
                f"{error.strerror}: what is answered now would be asked and paid again",
                "free some space there, or set XDG_CACHE_HOME to another folder, then run the same command again",
            ) from None

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"


def json_of(text: str) -> Any:
    """The JSON value in a model's answer: the answer itself, or what stands in a code fence, or an object or list that
    is found in it or mended, so that it can be written again. Raises ValueError where there is none."""
    import json_repair  # most answers need no mending

    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.S)  # thoughts may hold drafts of the answer
    fenced = re.findall(r"```(?:json)?\s*\n?(.*?)```", text, re.S)
    for candidate in (text, *fenced):
        try:
            return orjson.loads(candidate)
        except orjson.JSONDecodeError:
            continue
    try:
        found = json_repair.loads(fenced[0] if fenced else text)
        # Half an emoji, or a number beyond 64 bits: it reads what neither UTF-8 nor a row file can hold.
        writable = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:  # a model that repeats one bracket
        found = None
    if not isinstance(found, dict | list) or not found:
        raise ValueError("there is no JSON in the answer")
    return orjson.loads(writable)
