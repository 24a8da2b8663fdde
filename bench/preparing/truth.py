"""Which earlier texts a text is like, by comparing every pair: the exact answer, for as many texts as time allows."""

from __future__ import annotations

from array import array
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from preparing.sides import SIZE, THRESHOLD

_PAIRS = 50_000_000  # that are compared at once


def likes(path: Path, asked: int) -> tuple[NDArray[np.int64], dict[int, set[int]]]:
    """Places spread evenly over the texts, and of those that have earlier texts of this similarity, these."""
    texts = path.read_text(encoding="utf-8").split("\n")[:-1]
    places = np.unique(np.linspace(0, len(texts) - 1, asked).astype(np.int64))
    number: dict[str, int] = {}
    grams, ends = array("i"), array("q", [0])
    for text in texts:
        own = {text[i : i + SIZE] for i in range(len(text) - SIZE + 1)} or {text}
        grams.extend(number.setdefault(gram, len(number)) for gram in own)
        ends.append(len(grams))
    sizes_N = np.diff(ends)
    matrix = sparse.csr_matrix((np.ones(len(grams), np.int32), grams, ends), (len(texts), len(number)))
    turned, at_once = matrix.T.tocsr(), max(1, _PAIRS // len(texts))
    found: dict[int, set[int]] = defaultdict(set)
    for start in range(0, len(places), at_once):
        mine = places[start : start + at_once]
        shared = (matrix[mine] @ turned).tocoo()
        later = mine[shared.row]
        union = sizes_N[later] + sizes_N[shared.col] - shared.data
        alike = (shared.col < later) & (shared.data >= THRESHOLD * union)
        for place, earlier in zip(later[alike].tolist(), shared.col[alike].tolist()):
            found[place].add(earlier)
    return places, dict(found)
