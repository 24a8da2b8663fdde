"""Not a test: rows as a judgement over all of them leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.traits import COMPARED, Finding, Places, Ruling, Traits, compared, of

Judge = Callable[[Traits, Places], Iterable[Ruling | Finding]]


def judged(rows: Sequence[Row], judge: Judge) -> list[Kept | Dropped]:
    traits, results = of(rows, compared, COMPARED), [Kept(row) for row in rows]
    for said in judge(traits, np.arange(len(rows))):
        if isinstance(said, Finding):
            continue
        place, other, reason, detail = said
        told, row = detail.format(traits.read_at(other)), rows[place]
        results[place] = Dropped(row, reason, told) if reason else Kept(row.changed(told, row.messages))
    return results


def finding(rows: Sequence[Row], judge: Judge) -> Finding:
    """What it says of all rows together."""
    (found,) = (said for said in judge(of(rows, compared, COMPARED), np.arange(len(rows))) if isinstance(said, Finding))
    return found
