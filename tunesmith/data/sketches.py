"""Texts as sets of shingles, and as the signatures by which MinHash proposes who is like whom.

A text is the set of its character 4-grams (a shorter one is a single shingle), and two texts are as alike as the sets'
Jaccard similarity: what they share over all that they have. To compare all pairs is out of the question beyond some
thousands of texts, so each text gets a signature: under each of many hash functions, the least hash of its shingles.
Two texts agree there with a probability that is their similarity (Broder, 1997). Signatures are cut into bands of a few
hashes each; texts that are alike agree in a whole band almost surely, others almost never (Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3). Sorting a band brings those that agree together, and they are compared
in full: nothing is found that is not there, and `Banding.missed` tells what may be missed.

All of it is arrays over many texts at once. Of N texts with S shingles in all, cut into B bands:

    shingles_S   hashes of shingles, each text's in order and without repetition
    ends_N       where each text's shingles end
    bands_BN     a hash for each band of each text
"""

from __future__ import annotations

import math
import mmap
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]
Codes = NDArray[np.uint64]
Pairs = tuple[Ints, Ints]  # (later_P, earlier_P): places of texts

SHINGLE = 4  # characters

FACTOR, HALF, LOWER = np.uint64(0x9E3779B97F4A7C15), np.uint64(32), np.uint64(0xFFFFFFFF)

_FACTORS = np.array([FACTOR, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
_MIX = np.uint32(0x9E3779B1)
_BLOCK = 1 << 16  # shingles that are hashed at once: they stay in the processor's cache
_BATCH = 2_000  # texts that are cut into shingles at once, for the same reason
_AT_ONCE = 1 << 22  # shingles that are compared at once
_MUCH_BYTES = 1 << 28  # of shingles, which do not stay in memory beyond
_BANDS_AT_ONCE = 8
_WORDS = 4  # of 64 bits: the marks by which most pairs are told apart at a glance


@dataclass(frozen=True)
class Sets:
    """The shingles of many texts; `file`, where they are a file's and too many to stay in memory."""

    shingles_S: Hashes
    ends_N: Ints
    marks_NW: Codes  # a bit of each text's words for each of its shingles; several may share one
    file: mmap.mmap | None = None

    @cached_property
    def sizes_N(self) -> Ints:
        return np.diff(self.ends_N, prepend=0)

    @cached_property
    def starts_N(self) -> Ints:
        return self.ends_N - self.sizes_N


@dataclass(frozen=True)
class Banding:
    """How signatures are cut: so many bands of so many hashes each."""

    bands: int
    hashes: int

    def missed(self, similarity: float) -> float:
        """The probability that two texts of this similarity agree in no band."""
        return float((1 - similarity**self.hashes) ** self.bands)


@dataclass(frozen=True)
class Sketches:
    """The texts' shingles, and the bands of their signatures, one after the other."""

    sets: Sets
    bands: Callable[[], Iterator[Hashes]]


def sketched(texts: Sequence[str], cut: Banding) -> Sketches:
    """In memory."""
    sets = shingled(texts)
    bands_BN = banded(sets, cut)
    return Sketches(sets, lambda: iter(bands_BN))


def write(folder: Path, texts: Sequence[str], cut: Banding) -> None:
    """The sketches of a part of the texts, in files of its folder."""
    sets = shingled(texts)
    found: dict[str, NDArray[Any]] = {
        "shingles": sets.shingles_S,
        "sizes": sets.sizes_N,
        "marks": sets.marks_NW,
        "bands": banded(sets, cut),
    }
    for name, array in found.items():
        array.tofile(folder / name)


def read(folders: Sequence[Path], whole: Path, cut: Banding) -> Sketches:
    """The sketches of all parts. Shingles are copied to the file `whole` and stay there, bands where they are."""
    sizes = [np.fromfile(folder / "sizes", np.int64) for folder in folders]
    with open(whole, "w+b") as file:
        for folder in folders:
            with open(folder / "shingles", "rb") as part:
                shutil.copyfileobj(part, file)
        file.flush()
        size_bytes = file.tell()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_bytes else None
    shingles_S = np.frombuffer(pages or b"", np.uint32)

    def bands() -> Iterator[Hashes]:
        for first in range(0, cut.bands, _BANDS_AT_ONCE):
            some = min(_BANDS_AT_ONCE, cut.bands - first)
            parts = [
                np.fromfile(folder / "bands", np.uint32, some * len(its), offset=4 * first * len(its)).reshape(some, -1)
                for folder, its in zip(folders, sizes)
            ]
            yield from np.concatenate(parts, axis=1)

    marks = [np.fromfile(folder / "marks", np.uint64).reshape(-1, _WORDS) for folder in folders]
    ends_N = np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes]))
    marks_NW = np.concatenate([np.zeros((0, _WORDS), np.uint64), *marks])
    return Sketches(Sets(shingles_S, ends_N, marks_NW, pages if size_bytes > _MUCH_BYTES else None), bands)


def banding(threshold: float, texts: int) -> Banding:
    """Among more texts there are more strangers to be kept apart: that takes more hashes in a band, and so more bands.
    Of pairs that are just alike enough, one in a million may be missed, among many texts one in ten thousand."""
    crowd, missed = (4, 1e-6) if texts <= 20_000 else (5, 1e-5) if texts <= 100_000 else (6, 1e-4)
    inner = min(max(threshold, 0.5), 0.95)
    hashes = round(crowd * math.sqrt(math.log(0.7) / math.log(inner)))
    return Banding(math.ceil(math.log(missed) / math.log1p(-(inner**hashes))), hashes)


def shingled(texts: Sequence[str]) -> Sets:
    """The sets of texts, none of which holds NUL."""
    some = [_shingled(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    shingles_S = np.concatenate([np.zeros(0, np.uint32), *(shingles for shingles, _ in some)])
    ends_N = np.cumsum(np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in some)]))
    return Sets(shingles_S, ends_N, _marked(shingles_S, ends_N))


def _shingled(texts: Sequence[str]) -> tuple[Hashes, Ints]:
    """The shingles of a batch of texts, and how many each has."""
    padded = [text if len(text) >= SHINGLE else text.ljust(SHINGLE, "\0") for text in texts]
    lengths_N = np.fromiter(map(len, padded), np.int64, len(padded))
    letters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = max(len(letters) - SHINGLE + 1, 0)
    hashes = np.zeros(windows, np.uint64)
    for i, factor in enumerate(_FACTORS):
        hashes += letters[i : i + windows] * factor
    hashes ^= hashes >> HALF
    hashes *= _FACTORS[-1]
    hashes >>= HALF
    within = np.ones(len(letters), bool)  # no shingle begins in one text and ends in the next
    for i in range(1, SHINGLE):
        within[np.cumsum(lengths_N) - i] = False
    text_W = np.repeat(np.arange(len(padded), dtype=np.uint64), lengths_N)
    keys = ((text_W[:windows] << HALF) | hashes)[within[:windows]]
    keys.sort()
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    counts_N = np.bincount((keys >> HALF).astype(np.int64), minlength=len(padded))
    return keys.astype(np.uint32), counts_N


def _marked(shingles_S: Hashes, ends_N: Ints) -> Codes:
    marks_NW, starts_N = np.zeros((len(ends_N), _WORDS), np.uint64), np.concatenate([np.zeros(1, np.int64), ends_N])
    for texts in blocks(ends_N, _BLOCK):
        shingles = shingles_S[starts_N[texts.start] : starts_N[texts.stop]]
        bits, words = np.uint64(1) << (shingles & np.uint32(63)).astype(np.uint64), shingles >> np.uint32(6)
        for word in range(_WORDS):
            here = np.where(words % np.uint32(_WORDS) == word, bits, np.uint64(0))
            marks_NW[texts, word] = np.bitwise_or.reduceat(here, starts_N[texts] - starts_N[texts.start])
    return marks_NW


def banded(sets: Sets, cut: Banding) -> Hashes:
    """bands_BN of these texts. Each hash function is a product modulo 2^32 of the shingle's hash with bits flipped."""
    draw = np.random.default_rng(2026)
    factors, flips = draw.integers(1 << 32, size=(2, cut.bands, cut.hashes), dtype=np.uint32)
    factors |= np.uint32(1)
    bands_BN = np.zeros((cut.bands, len(sets.ends_N)), np.uint32)
    starts_N = sets.starts_N
    for texts in blocks(sets.ends_N, _BLOCK):
        shingles = sets.shingles_S[starts_N[texts.start] : sets.ends_N[texts.stop - 1]]
        starts, hashed = starts_N[texts] - starts_N[texts.start], np.empty_like(shingles)
        for band_N, its_factors, its_flips in zip(bands_BN, factors, flips):
            for factor, flip in zip(its_factors, its_flips):
                np.bitwise_xor(shingles, flip, out=hashed)
                np.multiply(hashed, factor, out=hashed)
                band_N[texts] = (band_N[texts] ^ np.minimum.reduceat(hashed, starts)) * _MIX
    return bands_BN


def similarities(sets: Sets, pairs: Pairs) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair."""
    sizes_P = sets.sizes_N[pairs[0]] + sets.sizes_N[pairs[1]]
    shared_P = np.zeros(len(sizes_P), np.int64)
    for part in blocks(np.cumsum(sizes_P), _AT_ONCE):
        keys = np.concatenate([labelled(sets, side[part]) for side in pairs])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        shared_P[part] = np.bincount((twice >> HALF).astype(np.int64), minlength=part.stop - part.start)
        if sets.file:
            sets.file.madvise(mmap.MADV_DONTNEED)
    return shared_P / (sizes_P - shared_P)


def labelled(sets: Sets, texts: Ints) -> NDArray[np.uint64]:
    """The shingles of these texts, each with the place of its text among them in its upper half."""
    sizes = sets.sizes_N[texts]
    places = np.repeat(sets.starts_N[texts] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    labels = np.repeat(np.arange(len(texts), dtype=np.uint64) << HALF, sizes)
    labels |= sets.shingles_S[places]
    return labels


def blocks(ends_N: Ints, size: int) -> Iterator[slice]:
    """Slices of neighbours that hold about so many elements together, or are a single one."""
    start = 0
    while start < len(ends_N):
        before = ends_N[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends_N, before + size, side="right")))
        yield slice(start, stop)
        start = stop
