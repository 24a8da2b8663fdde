"""Which texts are alike, among a hundred or ten million: sketches propose pairs, exact sets of shingles decide.

Those that agree in a band of their signatures (data/sketches.py) meet in a bucket. Pairs that meet are told apart by
their marks at a glance, and what is left is compared in full: nothing is found that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tunesmith.data.sketches import (
    FACTOR,
    HALF,
    LOWER,
    Codes,
    Hashes,
    Ints,
    Pairs,
    Sets,
    Sketches,
    blocks,
    labelled,
    similarities,
)

_PAIRS = 1 << 20  # pairs that are looked at together
_MANY = 20_000  # texts whose sorting is worth a thread
_NEIGHBOURS = 32  # texts of a bucket that each of its texts is compared with, and as many first ones
_ALL_PAIRS = 2_000  # texts of a bucket whose pairs are all compared where need be
_CROWD = _ALL_PAIRS**2  # pairs of a side of a bucket and of all earlier ones that are compared where need be
_SIDE = 1_000  # texts of a side of a bucket that are compared with the other at once


@dataclass(frozen=True)
class Across:
    """Of texts that are held against others: those that are like one, the first one found, and how alike they are; and
    those that met too many to be compared with all, though like none of the first ones: one of them."""

    alike: dict[int, tuple[int, float]]
    uncompared: dict[int, int]


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
    if not len(texts):
        return {}
    kinds = (kinds_N[texts] * FACTOR >> HALF).astype(np.uint32)
    compared, found = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    for places_M, firsts_M in _by_band((kinds ^ band_N[texts] for band_N in of.bands()), len(texts)):
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
    for places_M, firsts_M in _by_band((band_N[texts] for band_N in of.bands()), len(texts)):
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


def across(of: Sketches, threshold: float, *sides: Ints, whole: bool = False) -> Across:
    """Which texts of a side are like one of an earlier side. `whole`: crowds are compared however large they are."""
    place, side = np.concatenate(sides), np.repeat(np.arange(len(sides)), [len(texts) for texts in sides])
    found, uncompared = Across({}, {}), dict[int, int]()
    answered_N = np.zeros(len(of.sets.ends_N), bool)

    def note(pairs: Pairs) -> None:
        for other, this, similarity in zip(*(side.tolist() for side in (*pairs, similarities(of.sets, pairs)))):
            found.alike.setdefault(other, (this, similarity))
        answered_N[pairs[0]] = True

    if sum(len(texts) > 0 for texts in sides) < 2:
        return found
    for places_M, firsts_M in _by_band((band_N[place] for band_N in of.bands()), len(place)):
        held_M = _of_earlier_sides(side[places_M], firsts_M)
        texts_M = place[places_M]
        asking = np.flatnonzero((held_M > 0) & ~answered_N[texts_M])
        few = np.minimum(held_M[asking], _NEIGHBOURS)
        for some in blocks(np.cumsum(few), _PAIRS):
            it = np.repeat(asking[some], few[some])
            nth = np.arange(len(it)) - np.repeat(np.cumsum(few[some]) - few[some], few[some])
            pairs = _possible(of.sets, (texts_M[it], texts_M[firsts_M[it] + nth]), threshold)
            note(_alike(of.sets, pairs, threshold))
        asking = asking[(held_M[asking] > _NEIGHBOURS) & ~answered_N[texts_M[asking]]]
        for its in np.split(asking, np.flatnonzero(np.diff((firsts_M + held_M)[asking])) + 1) if len(asking) else ():
            met = texts_M[firsts_M[its[0]] :][: held_M[its[0]]]
            if len(met) * len(its) > _CROWD and not whole:
                uncompared.update(dict.fromkeys(texts_M[its].tolist(), int(met[0])))
            else:
                note(_alike_of(of.sets, texts_M[its], met[_NEIGHBOURS:], threshold))
    found.uncompared.update({text: one for text, one in uncompared.items() if text not in found.alike})
    return found


def _of_earlier_sides(side_M: Ints, firsts_M: Ints) -> Ints:
    """For each text, how many before it in its bucket are of earlier sides; a bucket has its sides in their order."""
    begins_M = np.ones(len(side_M), bool)
    begins_M[1:] = (side_M[1:] != side_M[:-1]) | (firsts_M[1:] != firsts_M[:-1])
    held: Ints = np.maximum.accumulate(np.where(begins_M, np.arange(len(side_M)), 0)) - firsts_M
    return held


def _by_band(keys: Iterator[Hashes], texts: int) -> Iterator[Pairs]:
    """The buckets of each band. Where there are many texts, a thread sorts those of the next one meanwhile."""
    buckets = map(_buckets, keys)
    if texts < _MANY:
        yield from buckets
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, buckets, None)
        while (these := coming.result()) is not None:
            coming = thread.submit(next, buckets, None)
            yield these


def _buckets(keys_N: Hashes) -> Pairs:
    """The texts that share their key with another, key by key (M of them), and where among these each key begins."""
    ordered = (keys_N.astype(np.uint64) << HALF) | np.arange(len(keys_N), dtype=np.uint64)
    ordered.sort()  # faster than to sort places by their keys
    begins = np.ones(len(ordered) + 1, bool)
    begins[1:-1] = ordered[1:] >> HALF != ordered[:-1] >> HALF
    shared = ~(begins[:-1] & begins[1:])
    begins_M = begins[:-1][shared]
    places_M = (ordered[shared] & LOWER).astype(np.int64)
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
    shingles = labelled(sets, whole)
    _, column = np.unique(shingles & LOWER, return_inverse=True)
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
    codes = (later_P.astype(np.uint64) << HALF) | earlier_P.astype(np.uint64)
    codes.sort()
    found: Codes = codes[np.diff(codes, prepend=~codes[:1]) != 0]
    return found


def _merged(codes: Codes, others: Codes) -> Codes:
    merged = np.concatenate([codes, others])
    merged.sort()
    return merged


def _pairs(codes_P: Codes) -> Pairs:
    return (codes_P >> HALF).astype(np.int64), (codes_P & LOWER).astype(np.int64)


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
