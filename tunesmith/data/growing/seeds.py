"""The training rows as what new ones are made from: each content once, in the order of a hash, read where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tunesmith.core.records import Row
from tunesmith.data import sketches
from tunesmith.data.growing import known
from tunesmith.data.growing.lines import Lines, ranks


class Seeds:
    """Rows of a file, and what was noted of them."""

    def __init__(self, path: Path, cut: sketches.Banding, work: Path) -> None:
        self.folders = known.note_file(path, work / "seeds", cut)
        self.ids_N = known.together([self.folders], work / "shingles", cut).rows["id"]
        self.lines = Lines(path)

    def __len__(self) -> int:
        return len(self.ids_N)

    def shuffled(self, purpose: str) -> Iterator[Row]:
        """All rows once, however often they are repeated, in an order of their own for each purpose."""
        ids, firsts = np.unique(self.ids_N, return_index=True)
        order = firsts[np.argsort(ranks(purpose, ids.tolist()), kind="stable")]
        return map(Row.from_json, self.lines.at(order.tolist()))
