"""Lines of a file in any order: in memory is where each begins, not what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson


class Lines:
    """JSON values, one a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            lengths_N = np.fromiter(map(len, file), np.int64)
        self.starts_N = np.cumsum(lengths_N) - lengths_N

    def __len__(self) -> int:
        return len(self.starts_N)

    def at(self, places: Sequence[int]) -> Iterator[Any]:
        with open(self.path, "rb") as file:
            for place in places:
                file.seek(self.starts_N[place])
                yield orjson.loads(file.readline())


def ranks(purpose: str, ids: Sequence[object]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A number for each id, from the hash of both: an order that is nobody's choice, and another for each purpose."""
    digests = (hashlib.sha256(f"{purpose} {one}".encode()).digest()[:8] for one in ids)
    return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(ids))
