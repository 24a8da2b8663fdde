"""Which texts are alike, among a hundred or ten million: MinHash proposes pairs, exact sets of shingles decide.

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

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]
Codes = NDArray[np.uint64]
Pairs = tuple[Ints, Ints]  # (later_P, earlier_P): places of texts

SHINGLE = 4  # characters

_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
_HALF, _LOWER, _MIX = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint32(0x9E3779B1)
_BLOCK = 1 << 17  # shingles that are hashed at once: they stay in the processor's cache
_AT_ONCE = 1 << 22  # shingles that are compared at once
_WORDS = 4  # of 64 bits: the marks by which most pairs are told apart at a glance
_PAIRS = 1 << 20  # pairs that are looked at together
_NEIGHBOURS = 32  # texts of a bucket that each of its texts is compared with, and as many first ones
_ALL_PAIRS = 2_000  # texts of a bucket whose pairs are all compared where need be
_CROWD = _ALL_PAIRS**2  # pairs of texts on two sides of a bucket that are all compared where need be
_SIDE = 1_000  # texts of a side of a bucket that are compared with the other at once


@dataclass(frozen=True)
class Sets:
    """The shingles of many texts; `file`, where they are a file's."""

    shingles_S: Hashes
    ends_N: Ints
    file: mmap.mmap | None = None

    @cached_property
    def sizes_N(self) -> Ints:
        return np.diff(self.ends_N, prepend=0)

    @cached_property
    def starts_N(self) -> Ints:
        return self.ends_N - self.sizes_N

    @cached_property
    def marks_NW(self) -> NDArray[np.uint64]:
        """A bit of each text's words for each of its shingles; several may share one."""
        marks_NW = np.zeros((len(self.ends_N), _WORDS), np.uint64)
        for texts in _blocks(self.ends_N, _BLOCK):
            first = self.starts_N[texts.start]
            shingles = self.shingles_S[first : self.ends_N[texts.stop - 1]]
            bits, words = np.uint64(1) << (shingles & np.uint32(63)).astype(np.uint64), shingles >> np.uint32(6)
            for word in range(_WORDS):
                here = np.where(words % np.uint32(_WORDS) == word, bits, np.uint64(0))
                marks_NW[texts, word] = np.bitwise_or.reduceat(here, self.starts_N[texts] - first)
        return marks_NW


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


@dataclass(frozen=True)
class Across:
    """Of texts that are held against others: those that are like one, the first one found, and how alike they are; and
    those that met too many to be compared with all, though like none of the first ones: one of them."""

    alike: dict[int, tuple[int, float]]
    uncompared: dict[int, int]


def sketched(texts: Sequence[str], cut: Banding) -> Sketches:
    """In memory."""
    sets = shingled(texts)
    bands_BN = banded(sets, cut)
    return Sketches(sets, lambda: iter(bands_BN))


def write(folder: Path, texts: Sequence[str], cut: Banding) -> None:
    """The sketches of a part of the texts, in files of its folder."""
    sets = shingled(texts)
    for name, array in (("shingles", sets.shingles_S), ("sizes", sets.sizes_N), ("bands", banded(sets, cut))):
        array.tofile(folder / name)


def read(folders: Sequence[Path], whole: Path, cut: Banding) -> Sketches:
    """The sketches of all parts. Shingles are copied to the file `whole` and stay there, bands where they are."""
    sizes = [np.fromfile(folder / "sizes", np.int64) for folder in folders]
    with open(whole, "w+b") as file:
        for folder in folders:
            with open(folder / "shingles", "rb") as part:
                shutil.copyfileobj(part, file)
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else None
    shingles_S = np.frombuffer(pages or b"", np.uint32)

    def bands() -> Iterator[Hashes]:
        for band in range(cut.bands):
            parts = [
                np.fromfile(folder / "bands", np.uint32, len(its), offset=4 * band * len(its))
                for folder, its in zip(folders, sizes)
            ]
            yield np.concatenate(parts)

    return Sketches(Sets(shingles_S, np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes])), pages), bands)


def banding(threshold: float, texts: int) -> Banding:
    """Among more texts there are more strangers to be kept apart: that takes more hashes in a band, and so more bands.
    Of pairs that are just alike enough, one in a million may be missed, among many texts one in ten thousand."""
    crowd, missed = (4, 1e-6) if texts <= 20_000 else (5, 1e-5) if texts <= 100_000 else (6, 1e-4)
    inner = min(max(threshold, 0.5), 0.95)
    hashes = round(crowd * math.sqrt(math.log(0.7) / math.log(inner)))
    return Banding(math.ceil(math.log(missed) / math.log1p(-(inner**hashes))), hashes)


def shingled(texts: Sequence[str]) -> Sets:
    """The sets of a batch of texts, none of which holds NUL."""
    padded = [text if len(text) >= SHINGLE else text.ljust(SHINGLE, "\0") for text in texts]
    lengths_N = np.fromiter(map(len, padded), np.int64, len(padded))
    letters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = max(len(letters) - SHINGLE + 1, 0)
    hashes = np.zeros(windows, np.uint64)
    for i, factor in enumerate(_FACTORS):
        hashes += letters[i : i + windows] * factor
    hashes ^= hashes >> _HALF
    hashes *= _FACTORS[-1]
    hashes >>= _HALF
    within = np.ones(len(letters), bool)  # no shingle begins in one text and ends in the next
    for i in range(1, SHINGLE):
        within[np.cumsum(lengths_N) - i] = False
    text_W = np.repeat(np.arange(len(padded), dtype=np.uint64), lengths_N)
    keys = ((text_W[:windows] << _HALF) | hashes)[within[:windows]]
    keys.sort()
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    counts_N = np.bincount((keys >> _HALF).astype(np.int64), minlength=len(padded))
    return Sets(keys.astype(np.uint32), np.cumsum(counts_N))


def banded(sets: Sets, cut: Banding) -> Hashes:
    """bands_BN of these texts. Each hash function is a product modulo 2^32 of the shingle's hash with bits flipped."""
    draw = np.random.default_rng(2026)
    factors, flips = draw.integers(1 << 32, size=(2, cut.bands, cut.hashes), dtype=np.uint32)
    factors |= np.uint32(1)
    bands_BN = np.zeros((cut.bands, len(sets.ends_N)), np.uint32)
    starts_N = sets.starts_N
    for texts in _blocks(sets.ends_N, _BLOCK):
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
    for part in _blocks(np.cumsum(sizes_P), _AT_ONCE):
        keys = np.concatenate([_labelled(sets, side[part]) for side in pairs])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        shared_P[part] = np.bincount((twice >> _HALF).astype(np.int64), minlength=part.stop - part.start)
        if sets.file:
            sets.file.madvise(mmap.MADV_DONTNEED)  # or the whole file would come to stay in memory
    return shared_P / (sizes_P - shared_P)


def repeats(
    of: Sketches, threshold: float, texts: Ints, kinds_N: Codes, spared_N: Codes | None = None
) -> dict[int, tuple[int, float]]:
    """Which of these texts are like an earlier one of their kind that is like none itself: that one (the first of
    them), and how alike they are. Two that agree in `spared_N` are not held to be alike.

    Time grows with the texts, even where most are alike: in a bucket of more than a hundred, each is compared with
    those next to it and with the first ones.
    """
    _, kind_of, times = np.unique(kinds_N[texts], return_inverse=True, return_counts=True)
    texts = texts[times[kind_of] > 1]
    kinds = (kinds_N[texts] * _FACTORS[0] >> _HALF).astype(np.uint32)
    compared, found = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    for band_N in of.bands() if len(texts) else ():
        places_M, firsts_M = _buckets(kinds ^ band_N[texts])
        for pairs in _many(_meetings(texts[places_M], firsts_M)):
            codes = np.setdiff1d(_codes(*_possible(of.sets, pairs, threshold)), compared, assume_unique=True)
            later_P, earlier_P = _pairs(codes)
            wanted = kinds_N[later_P] == kinds_N[earlier_P]
            if spared_N is not None:
                wanted &= spared_N[later_P] != spared_N[earlier_P]
            alike = _codes(*_alike(of.sets, (later_P[wanted], earlier_P[wanted]), threshold))
            compared, found = _merged(compared, codes), _merged(found, alike)
    later_P, earlier_P = _pairs(found)
    repeated: dict[int, tuple[int, float]] = {}
    alike_P = similarities(of.sets, (later_P, earlier_P))
    for later, earlier, similarity in zip(later_P.tolist(), earlier_P.tolist(), alike_P.tolist()):
        if later not in repeated and earlier not in repeated:
            repeated[later] = earlier, similarity
    return repeated


def joined(of: Sketches, threshold: float, texts: Ints, known: Pairs) -> tuple[Ints, int]:
    """Groups of these texts between which no two are alike, nor a pair of those known to belong together: for every
    text the first of its group; and how many were joined on suspicion, since too many met to compare them all."""
    first_N, suspected, compared = np.arange(len(of.sets.ends_N)), 0, np.zeros(0, np.uint64)
    _join(first_N, *known)
    for band_N in of.bands():
        places_M, firsts_M = _buckets(band_N[texts])
        for pairs in _many(_meetings(texts[places_M], firsts_M)):
            possible = _possible(of.sets, _apart(first_N, pairs), threshold)
            codes = np.setdiff1d(_codes(*possible), compared, assume_unique=True)
            _join(first_N, *_alike(of.sets, _pairs(codes), threshold))
            compared = _merged(compared, codes)
        for bucket in _large(texts[places_M], firsts_M):
            if len(np.unique(_first(first_N, bucket))) == 1:
                continue
            if len(bucket) <= _ALL_PAIRS:
                later, earlier = np.tril_indices(len(bucket), -1)
                pairs = _possible(of.sets, _apart(first_N, (bucket[later], bucket[earlier])), threshold)
                _join(first_N, *_alike(of.sets, pairs, threshold))
            else:
                _join(first_N, bucket[1:], bucket[:-1])
                suspected += len(bucket)
        first_N[:] = _first(first_N, np.arange(len(first_N)))
    return first_N, suspected


def across(of: Sketches, threshold: float, these: Ints, others: Ints) -> Across:
    """Which of the others are like one of these."""
    place, which = np.concatenate([these, others]), np.repeat([0, 1], [len(these), len(others)])
    found, uncompared = Across({}, {}), dict[int, int]()
    answered_N = np.zeros(len(of.sets.ends_N), bool)

    def note(pairs: Pairs) -> None:
        for other, this, similarity in zip(*(side.tolist() for side in (*pairs, similarities(of.sets, pairs)))):
            found.alike.setdefault(other, (this, similarity))
        answered_N[pairs[0]] = True

    for band_N in of.bands() if len(these) and len(others) else ():
        places_M, firsts_M = _buckets(band_N[place])  # in each bucket these come first
        mine = which[places_M] == 0
        bucket_M = np.cumsum(firsts_M == np.arange(len(firsts_M))) - 1
        held, asked = np.bincount(bucket_M[mine], minlength=len(mine)), np.bincount(bucket_M[~mine])
        texts_M = place[places_M]
        asking = np.flatnonzero(~mine & (held[bucket_M] > 0) & ~answered_N[texts_M])
        few = np.minimum(held[bucket_M[asking]], _NEIGHBOURS)
        for some in _blocks(np.cumsum(few), _PAIRS):
            it = np.repeat(asking[some], few[some])
            nth = np.arange(len(it)) - np.repeat(np.cumsum(few[some]) - few[some], few[some])
            pairs = _possible(of.sets, (texts_M[it], texts_M[firsts_M[it] + nth]), threshold)
            note(_alike(of.sets, pairs, threshold))
        asking = asking[(held[bucket_M[asking]] > _NEIGHBOURS) & ~answered_N[texts_M[asking]]]
        for its in np.split(asking, np.flatnonzero(np.diff(bucket_M[asking])) + 1) if len(asking) else ():
            bucket, begin = bucket_M[its[0]], firsts_M[its[0]]
            met = texts_M[begin : begin + held[bucket]]
            if len(met) * asked[bucket] > _CROWD:
                uncompared.update(dict.fromkeys(texts_M[its].tolist(), int(met[0])))
            else:
                note(_alike_of(of.sets, texts_M[its], met[_NEIGHBOURS:], threshold))
    found.uncompared.update({text: one for text, one in uncompared.items() if text not in found.alike})
    return found


def _buckets(keys_N: Hashes) -> Pairs:
    """The texts that share their key with another, key by key (M of them), and where among these each key begins."""
    ordered = (keys_N.astype(np.uint64) << _HALF) | np.arange(len(keys_N), dtype=np.uint64)
    ordered.sort()  # faster than to sort places by their keys
    begins = np.ones(len(ordered) + 1, bool)
    begins[1:-1] = ordered[1:] >> _HALF != ordered[:-1] >> _HALF
    shared = ~(begins[:-1] & begins[1:])
    begins_M = begins[:-1][shared]
    places_M = (ordered[shared] & _LOWER).astype(np.int64)
    return places_M, np.maximum.accumulate(np.where(begins_M, np.arange(len(begins_M)), 0))


def _meetings(texts_M: Ints, firsts_M: Ints) -> Iterator[Pairs]:
    """Pairs within the buckets: each text with those next before it, and with the first ones besides."""
    later_M = np.arange(len(texts_M))
    for back in range(1, _NEIGHBOURS + 1):
        later_M = later_M[later_M - back >= firsts_M[later_M]]
        if not len(later_M):
            return
        yield texts_M[later_M], texts_M[later_M - back]
    for ahead in range(_NEIGHBOURS):
        later_M = later_M[later_M - _NEIGHBOURS > firsts_M[later_M] + ahead]
        if not len(later_M):
            return
        yield texts_M[later_M], texts_M[firsts_M[later_M] + ahead]


def _many(meetings: Iterator[Pairs]) -> Iterator[Pairs]:
    """The same pairs, more of them at once: what is done with few costs more in calls than in work."""
    held: list[Pairs] = []
    for pairs in meetings:
        held.append(pairs)
        if sum(len(later_P) for later_P, _ in held) >= _PAIRS:
            yield _concatenated(held)
            held = []
    if held:
        yield _concatenated(held)


def _concatenated(held: list[Pairs]) -> Pairs:
    return np.concatenate([later_P for later_P, _ in held]), np.concatenate([earlier_P for _, earlier_P in held])


def _large(texts_M: Ints, firsts_M: Ints) -> Iterator[Ints]:
    """The buckets in which not all pairs have met."""
    starts, sizes = np.unique(firsts_M, return_counts=True)
    for start, size in zip(starts.tolist(), sizes.tolist()):
        if size > 2 * _NEIGHBOURS + 1:
            yield texts_M[start : start + size]


def _alike(sets: Sets, pairs: Pairs, threshold: float) -> Pairs:
    """Those of the pairs that are."""
    alike = similarities(sets, pairs) >= threshold
    return pairs[0][alike], pairs[1][alike]


def _possible(sets: Sets, pairs: Pairs, threshold: float) -> Pairs:
    """Those of the pairs that may be alike: as many as differ in a mark differ in a shingle, at least."""
    later_P, earlier_P = pairs
    one_PW, other_PW = sets.marks_NW[later_P], sets.marks_NW[earlier_P]
    one_P, other_P = sets.sizes_N[later_P], sets.sizes_N[earlier_P]
    shared_P = np.minimum(
        one_P - np.bitwise_count(one_PW & ~other_PW).sum(1, np.int64),
        other_P - np.bitwise_count(other_PW & ~one_PW).sum(1, np.int64),
    )
    possible = shared_P >= threshold * (one_P + other_P - shared_P) - 1e-6  # 0.55 * 20 is more than 11
    return later_P[possible], earlier_P[possible]


def _alike_of(sets: Sets, texts: Ints, others: Ints, threshold: float) -> Pairs:
    """Of all pairs of a text and one of the others, those that are alike. What all of them share is counted at once, as
    a product of two matrices that say which text has which shingle: where all meet all, that is soonest done."""
    from scipy.sparse import csr_array  # a fifth of a second, for the few data sets that have crowds

    whole = np.concatenate([texts, others])
    labelled = _labelled(sets, whole)
    _, column = np.unique(labelled & _LOWER, return_inverse=True)
    row_ends = np.concatenate([[0], np.cumsum(sets.sizes_N[whole])])
    has = csr_array((np.ones(len(column), np.int32), column, row_ends), shape=(len(whole), column.max() + 1))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for start in range(0, len(texts), _SIDE):
        shared = (has[start : min(start + _SIDE, len(texts))] @ has[len(texts) :].T).tocoo()
        pairs = texts[start + shared.row], others[shared.col]
        alike = shared.data / (sets.sizes_N[pairs[0]] + sets.sizes_N[pairs[1]] - shared.data) >= threshold
        found.append((pairs[0][alike], pairs[1][alike]))
    later, earlier = (np.concatenate(side) for side in zip(*found))
    return later, earlier


def _codes(later_P: Ints, earlier_P: Ints) -> Codes:
    """Pairs as numbers, in whose order the later text comes first; a pair that stands twice is one."""
    codes = (later_P.astype(np.uint64) << _HALF) | earlier_P.astype(np.uint64)
    codes.sort()
    found: Codes = codes[np.diff(codes, prepend=~codes[:1]) != 0]
    return found


def _merged(codes: Codes, others: Codes) -> Codes:
    merged = np.concatenate([codes, others])
    merged.sort()
    return merged


def _pairs(codes_P: Codes) -> Pairs:
    return (codes_P >> _HALF).astype(np.int64), (codes_P & _LOWER).astype(np.int64)


def _apart(first_N: Ints, pairs: Pairs) -> Pairs:
    """Those of the pairs that are not yet in one group."""
    apart = _first(first_N, pairs[0]) != _first(first_N, pairs[1])
    return pairs[0][apart], pairs[1][apart]


def _first(first_N: Ints, texts: Ints) -> Ints:
    """The first text of each one's group. On the way there each text leads to an earlier one of its group."""
    while True:
        earlier = first_N[texts]
        if np.array_equal(earlier, texts):
            return texts
        texts = earlier


def _join(first_N: Ints, one: Ints, other: Ints) -> None:
    """Makes one group of the two of each pair."""
    while True:
        ends = np.stack([_first(first_N, one), _first(first_N, other)])
        apart = ends[0] != ends[1]
        if not apart.any():
            return
        np.minimum.at(first_N, ends.max(0)[apart], ends.min(0)[apart])


def _labelled(sets: Sets, texts: Ints) -> NDArray[np.uint64]:
    """The shingles of these texts, each with the place of its text among them in its upper half."""
    sizes = sets.sizes_N[texts]
    places = np.repeat(sets.starts_N[texts] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    labels = np.repeat(np.arange(len(texts), dtype=np.uint64) << _HALF, sizes)
    labels |= sets.shingles_S[places]
    return labels


def _blocks(ends_N: Ints, size: int) -> Iterator[slice]:
    """Slices of neighbours that hold about so many elements together, or are a single one."""
    start = 0
    while start < len(ends_N):
        before = ends_N[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends_N, before + size, side="right")))
        yield slice(start, stop)
        start = stop
