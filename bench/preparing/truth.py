"""Which earlier texts a text is like, by comparing every pair: the exact answer, for as many texts as time allows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from preparing.sides import SIZE, THRESHOLD

_AT_ONCE = 500  # texts that are compared with all others


def likes(path: Path, asked: int) -> tuple[NDArray[np.int64], dict[int, set[int]]]:
    """Places spread evenly over the texts, and of those that have earlier texts of this similarity, these."""
    texts = path.read_text(encoding="utf-8").split("\n")[:-1]
    places = np.unique(np.linspace(0, len(texts) - 1, asked).astype(np.int64))
    number: dict[str, int] = {}
    sets = [{text[i : i + SIZE] for i in range(len(text) - SIZE + 1)} or {text} for text in texts]
    grams = [number.setdefault(gram, len(number)) for one in sets for gram in one]
    sizes_N = np.array([len(one) for one in sets])
    ends = np.concatenate([[0], np.cumsum(sizes_N)])
    matrix = sparse.csr_matrix((np.ones(len(grams), np.int32), grams, ends), (len(texts), len(number)))
    found: dict[int, set[int]] = defaultdict(set)
    for start in range(0, len(places), _AT_ONCE):
        mine = places[start : start + _AT_ONCE]
        shared = (matrix[mine] @ matrix.T).tocoo()
        later = mine[shared.row]
        union = sizes_N[later] + sizes_N[shared.col] - shared.data
        alike = (shared.col < later) & (shared.data >= THRESHOLD * union)
        for place, earlier in zip(later[alike].tolist(), shared.col[alike].tolist()):
            found[place].add(earlier)
    return places, dict(found)
