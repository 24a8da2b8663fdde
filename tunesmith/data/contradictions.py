"""One prompt, several answers: noise where one answer is right, and all well where many are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Literal

import numpy as np

from tunesmith.data.traits import Places, Ruling, Traits

Mode = Literal["drop", "majority", "report"]


def resolve(traits: Traits, left: Places, mode: Mode) -> Iterator[Ruling]:
    """Finds rows of one context whose answers differ, and drops them all, the outvoted ones, or none.

    JSON answers are compared by value, others up to whitespace. In a majority each row has one vote and a tie drops
    all; `report` keeps all and notes in each row one that it contradicts. Rows pinned to the exam have no part in the
    votes of the others.
    """
    contested = _contested(traits, left)
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    first: dict[tuple[int, int], int] = {}  # the first row that says this in this context
    contexts, meanings = (traits[name][contested].tolist() for name in ("context", "meaning"))
    rows = list(zip(contested.tolist(), contexts, meanings))
    for place, context, meaning in rows:
        votes[context][meaning] += 1
        first.setdefault((context, meaning), place)
    for place, context, meaning in rows:
        said = votes[context]
        other = first[context, next(other for other, _ in said.most_common() if other != meaning)]
        if mode == "report":
            yield Ruling(place, other, None, "contradicts {}")
        elif mode == "drop" or any(said[meaning] <= n for answer, n in said.items() if answer != meaning):
            yield Ruling(place, other, "contradiction", f"{len(said)} answers to one prompt; see {{}}")


def _contested(traits: Traits, left: Places) -> Places:
    """The rows, of those that are left, in whose context not all answers say the same."""
    order = left[np.lexsort((traits["meaning"][left], traits["context"][left]))]
    context, meaning = traits["context"][order], traits["meaning"][order]
    differs = (context[1:] == context[:-1]) & (meaning[1:] != meaning[:-1])
    return left[np.isin(traits["context"][left], np.unique(context[1:][differs]))]
