"""Not a test: rows as a judgement over all of them leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data.traits import COMPARED, Places, Ruling, Traits, compared, of


def judged(rows: Sequence[Row], judge: Callable[[Traits, Places], Iterable[Ruling]]) -> list[Kept | Dropped]:
    traits, results = of(rows, compared, COMPARED), [Kept(row) for row in rows]
    for place, other, reason, detail in judge(traits, np.arange(len(rows))):
        told, row = detail.format(traits.read_at(other)), rows[place]
        results[place] = Dropped(row, reason, told) if reason else Kept(row.changed(told, row.messages))
    return results
