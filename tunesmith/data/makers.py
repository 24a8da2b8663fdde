"""How new rows are made, one function for each kind: what is tried, in which order, and what comes of a reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunesmith.core.data_section import Noise
from tunesmith.core.records import Message, Row
from tunesmith.data.noise import noisy
from tunesmith.data.seeds import Seeds


@dataclass(frozen=True)
class Attempt:
    """A row that was made from `parent`."""

    parent: str
    row: Row


def synthetic(kind: str, source: str, line: int, messages: list[Message], parents: list[str]) -> Row:
    """A new row; it trains, whatever the files of its parents are pinned to."""
    return Row(messages, source, line, f"synthetic:{kind}", split="train", parents=parents)


def noise(settings: Noise, seeds: Seeds) -> Iterator[Attempt]:
    """Each training row with faults in its last question: one noisy copy of all rows, then the next."""
    for copy in range(settings.per_row):
        for seed in seeds.shuffled(f"noise {copy}"):
            at = max(i for i, message in enumerate(seed.messages) if message["role"] == "user")
            asked = noisy(str(seed.messages[at]["content"]), settings, seed=int(seed.id, 16) + copy)
            messages = [
                {**message, "content": asked} if i == at else message for i, message in enumerate(seed.messages)
            ]
            made = synthetic("noise", seed.source, seed.line, messages, [seed.id])
            yield Attempt(seed.id, replace(made, tools=seed.tools, rejected=seed.rejected))
