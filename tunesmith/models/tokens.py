"""The tokenised rows of a dataset, as they lie on disk. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 8  # tokens that rows begin with; fewer are not worth a document of their own


class Tokens:
    """The tokenised rows of one side of the split: three arrays on disk, read as they are needed."""

    def __init__(self, folder: Path, side: str) -> None:
        self.ids = np.load(folder / f"{side}.ids.npy", mmap_mode="r")
        self.learnt = np.load(folder / f"{side}.learnt.npy", mmap_mode="r")
        self.ends: NDArray[np.int64] = np.load(folder / f"{side}.ends.npy")

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> list[int]:
        lengths: list[int] = np.diff(self.ends, prepend=0).tolist()
        return lengths

    @cached_property
    def beginning(self) -> int:
        """How many tokens all rows begin with, none of them learnt: a pass over several of them has these once."""
        if len(self) < 2:
            return 0
        starts, least = self.ends - np.diff(self.ends, prepend=0), min(self.lengths) - 1  # each row keeps one
        for at in range(least):
            ids = self.ids[starts + at]
            if (ids != ids[0]).any() or self.learnt[starts + at].any():
                least = at
                break
        return least if least >= LEAST_SHARED else 0

    @cached_property
    def own(self) -> list[int]:
        """Of each row, the tokens past that beginning."""
        return [length - self.beginning for length in self.lengths]

    def row(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start = self.ends[i - 1] if i else 0
        return self.ids[start : self.ends[i]], self.learnt[start : self.ends[i]]

    def learnt_tokens(self, rows: Iterable[int]) -> int:
        """Targets of these rows: learnt tokens that are not a row's first."""
        return sum(int(self.row(i)[1][1:].sum()) for i in rows)
