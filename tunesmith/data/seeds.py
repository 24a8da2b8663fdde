"""The training rows as what new ones are made from: each content once, in the order of a hash, read where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from tunesmith.core.records import Row
from tunesmith.data import known, similar


class Seeds:
    """Rows of a file. In memory are where each begins and what was noted of it, not the rows."""

    def __init__(self, path: Path, cut: similar.Banding, work: Path) -> None:
        self.path, self.cut, self.work = path, cut, work
        self.folders = known.note_file(path, work / "seeds", cut)
        self.ids_N = known.together([self.folders], work / "shingles", cut).rows["id"]
        with open(path, "rb") as file:
            lengths_N = np.fromiter(map(len, file), np.int64)
        self.starts_N = np.cumsum(lengths_N) - lengths_N

    def __len__(self) -> int:
        return len(self.ids_N)

    def shuffled(self, purpose: str) -> Iterator[Row]:
        """All rows once, however often they are repeated, in an order of their own for each purpose."""
        ids, firsts = np.unique(self.ids_N, return_index=True)
        ranks = [hashlib.sha256(f"{purpose} {row_id:016x}".encode()).digest()[:8] for row_id in ids.tolist()]
        with open(self.path, "rb") as file:
            for place in firsts[np.argsort(np.array(ranks, "V8").view(">u8"), kind="stable")].tolist():
                file.seek(self.starts_N[place])
                yield Row.from_json(orjson.loads(file.readline()))
