"""Near-duplicates as each side finds them: from texts to the places of those that repeat an earlier one.

Every side gets the same normalised texts in a file and the same question: whose set of character 4-grams has a Jaccard
similarity of THRESHOLD or more to that of an earlier text that is left? Reading the file and cutting texts into grams
is part of the work, since nobody is given grams. What a rival proposes is counted as found; nothing verifies it.
Started in a process of its own by `processes.measure`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preparing.processes import answer, asked
from tunesmith.core import hardware
from tunesmith.data import parts, similar, sketches

THRESHOLD = 0.8
SIZE = 4  # characters of a gram


def ours(path: Path, out: Path) -> list[int]:
    """As the clean step does it: sketches by parts, on every core; candidates and their verification in one place.
    The processes stand ready (`ready`), as they do there: the step before began with starting them."""
    pieces = list(parts.cut(path, path.stat().st_size // (4 * hardware.cores())))
    count = sum(piece.lines for piece in pieces)
    cut = sketches.banding(THRESHOLD, count)
    done = parts.each("sketch", partial(_sketch, cut), pieces, out / "parts")
    found = sketches.read([one.folder for one in done], out / "shingles", cut)
    return sorted(similar.repeats(found, THRESHOLD, np.arange(count), np.zeros(count, np.uint64)))


def ready(out: Path) -> None:
    """Starts the processes that the parts are given to, and lets each import what it needs."""
    warming = out / "warming"
    warming.write_text(f"{'a text to begin with ' * 100}\n" * 2_000 * hardware.cores(), encoding="utf-8")
    pieces = list(parts.cut(warming, 1))
    parts.each("sketch", partial(_sketch, sketches.banding(THRESHOLD, 10)), pieces, out / "warm")


def _sketch(cut: sketches.Banding, part: parts.Part, folder: Path) -> dict[str, Any]:
    sketches.write(folder, [line.decode().rstrip("\n") for line in part.read()], cut)
    return {}


def rensa_flags(hashes: int, bands: int, path: Path, out: Path) -> list[int]:
    """Its batch interface, which is its fastest: whoever shares a band with an earlier text."""
    from rensa import RMinHash, RMinHashLSH

    matrix = RMinHash.digest_matrix_from_token_sets([_grams(text) for text in _texts(path)], hashes, 42)
    flags = RMinHashLSH(THRESHOLD, hashes, bands).insert_matrix_and_query_duplicate_flags(matrix)
    return [place for place, flag in enumerate(flags) if flag]


def rensa_deduplicator(hashes: int, bands: int, path: Path, out: Path) -> list[int]:
    """The interface of its documentation, which holds candidates against the similarity that signatures estimate."""
    from rensa import RMinHashDeduplicator

    index = RMinHashDeduplicator(THRESHOLD, hashes, True, bands)
    new = index.add_pairs((str(place), _grams(text)) for place, text in enumerate(_texts(path)))
    return [place for place, is_new in enumerate(new) if not is_new]


def datasketch(hashes: int, path: Path, out: Path) -> list[int]:
    """As its documentation does it, with the estimate that it gives for each candidate."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=hashes)
    repeated, kept = [], {}
    for place, text in enumerate(_texts(path)):
        signature = MinHash(num_perm=hashes)
        signature.update_batch([gram.encode() for gram in _grams(text)])
        if any(signature.jaccard(kept[other]) >= THRESHOLD for other in index.query(signature)):
            repeated.append(place)
        else:
            index.insert(place, signature)
            kept[place] = signature
    return repeated


SIDES: dict[str, Callable[[Path, Path], list[int]]] = {
    "ours": ours,
    "rensa, flags, 128 in 16": partial(rensa_flags, 128, 16),
    "rensa, flags, 128 in 32": partial(rensa_flags, 128, 32),
    "rensa, deduplicator, 128 in 32": partial(rensa_deduplicator, 128, 32),
    "rensa, deduplicator, 512 in 128": partial(rensa_deduplicator, 512, 128),
    "datasketch, 128": partial(datasketch, 128),
}


def _texts(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _grams(text: str) -> list[str]:
    return [text[i : i + SIZE] for i in range(len(text) - SIZE + 1)] or [text]


def main() -> None:
    request = asked()
    side, out = SIDES[request["side"]], Path(request["out"])
    if side is ours:
        ready(out)
    started = time.perf_counter()
    found = side(Path(request["texts"]), out)
    seconds = time.perf_counter() - started
    np.save(out / "found.npy", np.array(found, np.int64))
    answer({"seconds": seconds, "found": len(found)})


if __name__ == "__main__":
    sys.exit(main())
