"""Which rows belong together whatever their prompts say: parents and children, rows of one thread, and conversations
with the rows that ask what one of them asked on its way to its last answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Row, content_id, normalised
from tunesmith.data import traits
from tunesmith.data.traits import Places, Traits

OF_FORM = 20  # conversations: what more of them ask on their way is how conversations go there, a greeting say

_LINK = np.dtype([("place", "i8"), ("key", "u8")])  # a row, and what it belongs to: an id, a thread or a prompt

Pairs = NDArray[Any]  # structured, of the type _LINK


@dataclass(frozen=True)
class Links:
    """Of N rows. In the order of keys, neighbours of one key belong together."""

    by_key_L: Pairs
    of_form: Places  # rows whose whole prompt stands in more than OF_FORM conversations: they are not linked for that

    def among(self, chosen_N: NDArray[np.bool_]) -> Pairs:
        """Those of the chosen rows, in the order of keys."""
        chosen: Pairs = self.by_key_L[chosen_N[self.by_key_L["place"]]]
        return chosen


def thread(row: Row) -> int:
    """Its thread as a key; 0: it has none."""
    return traits.hashed({"thread": row.thread}) if row.thread else 0


def write(folder: Path, rows: Sequence[Row]) -> None:
    """What a part's rows belong to, in files of its folder."""
    for name, found in zip(("links", "turns"), _noted(rows)):
        found.tofile(folder / name)


def together(folders: Sequence[Path], rows: Traits, counts: Sequence[int]) -> Links:
    """Those of all parts, whose rows' traits have an `id` and a `prompt`; `counts` has the rows of each part."""
    links, turns = (_of_parts([folder / name for folder in folders], counts) for name in ("links", "turns"))
    return _joined(links, turns, rows)


def _of_parts(files: Sequence[Path], counts: Sequence[int]) -> Pairs:
    found, before = [np.zeros(0, _LINK)], 0
    for file, count in zip(files, counts):
        of_part = np.fromfile(file, _LINK)
        of_part["place"] += before
        found.append(of_part)
        before += count
    return np.concatenate(found)


def _noted(rows: Sequence[Row]) -> tuple[Pairs, Pairs]:
    """Each row's parents and thread; and the prompts of its earlier answers, as `Row.group` has them."""
    found = [(place, int(parent, 16)) for place, row in enumerate(rows) for parent in row.parents]
    found += [(place, thread(row)) for place, row in enumerate(rows) if row.thread]
    turns = [(place, key) for place, row in enumerate(rows) for key in _asked_before(row)]
    return np.array(found, _LINK), np.array(turns, _LINK)


def _asked_before(row: Row) -> Iterator[int]:
    turns = [message for message in row.prompt if message["role"] != "system"]
    if all(turn["role"] != "assistant" for turn in turns):
        return
    words = [normalised(str(turn["content"])) for turn in turns]
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant" and i:
            yield int(content_id(words[:i]), 16)


def _joined(links: Pairs, turns: Pairs, rows: Traits) -> Links:
    """A row's own id is what its children have as a parent; its prompt, what conversations asked on their way."""
    asked, times = np.unique(turns["key"], return_counts=True)
    often = asked[times > OF_FORM]
    told = turns[np.isin(turns["key"], rows["prompt"]) & ~np.isin(turns["key"], often)]
    asking = np.flatnonzero(np.isin(rows["prompt"], told["key"]))
    every = np.arange(len(rows))
    both = np.concatenate([_pairs(every, rows["id"]), links, told, _pairs(asking, rows["prompt"][asking])])
    ordered = both[np.lexsort((both["place"], both["key"]))]
    return Links(ordered, np.flatnonzero(np.isin(rows["prompt"], often)))


def _pairs(places: Places, keys: NDArray[np.uint64]) -> Pairs:
    found: Pairs = np.zeros(len(places), _LINK)
    found["place"], found["key"] = places, keys
    return found
