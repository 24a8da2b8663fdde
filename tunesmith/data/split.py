"""Which rows train, which choose the checkpoint, which are the exam; and the certificate that none is known to another.

Rows belong together whose prompts are alike, or that have a parent, a thread or a turn in common (data/links.py): such
a group is on one side, whole. Which side follows from the hash of a prompt or thread in it, never from shuffling, so
that it is the same in every run and in any order; rows that are added move no others, unless they join two groups, or
make more than twenty conversations of those that ask one thing on their way, which no longer joins them then. A side
that a source pins counts more than the hash, and the exam counts most: what it asks is dropped from the other sides,
and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core import certificate
from tunesmith.core.data_section import Split
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import links, parts, similar, sketches, traits
from tunesmith.data.links import Links
from tunesmith.data.traits import Places, Traits, prompt_text

VERSION = 6

SIDES = ("train", "validation", "test")  # a later one has the stronger claim to a prompt
ALIKE = 0.7  # Jaccard similarity of prompts, from which on they belong together

_SMALL = 20  # rows of a group that may be on any side, however few rows there are
_TRAIN, _VALIDATION, _TEST = range(3)
_GONE = -1
_PINS = {"auto": -1, **{side: i for i, side in enumerate(SIDES)}}
_PLACED = np.dtype(
    [
        *traits.READ_AT,
        ("id", "u8"),
        ("prompt", "u8"),
        ("claim", "u8"),  # the hash by which a group's side is chosen: of a thread, or of a prompt where there is none
        ("position", "f8"),  # that of the claim
        ("pin", "i1"),  # the side that its source is pinned to, by its place in SIDES; -1: none
    ]
)


@dataclass
class Assignment:
    """Each row's side, by its place in SIDES; -1 where no side could take it, and then why."""

    side_N: NDArray[np.int8]
    gone: dict[int, tuple[str, str]] = field(default_factory=dict)  # by place: reason and detail
    group_N: Places = field(default_factory=lambda: np.zeros(0, np.int64))  # the first row of each one's group
    suspected: int = 0  # rows that were joined to a group without comparing them with all of it
    known: int = 0  # rows of a pinned exam that are like rows which were to train
    uncompared: int = 0  # rows that might be like the pinned exam, and were dropped without comparing them with all

    def of(self, side: int) -> Places:
        return np.flatnonzero(self.side_N == side)

    def drop(self, place: int, reason: str, detail: str) -> None:
        self.side_N[place] = _GONE
        self.gone[place] = reason, detail


def run(split: Split, pinned: Sequence[str], clean: Artifact, out: Path, kept: Path | None = None) -> dict[str, Any]:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl`, `dropped.jsonl` (each row with its reason),
    `certificate.json`, and for each side `SIDE.groups.npy`: a number for each row that its whole group has. A side to
    which files are `pinned` gets no other rows, even where none of theirs is left.

    Raises ConfigError for fractions that leave nothing to train on, DataError when no row is left to train on.
    """
    if split.validation + split.test >= 1:
        raise ConfigError(
            "data.split leaves no rows to train on",
            f"validation {split.validation:g} and test {split.test:g} make {split.validation + split.test:g}",
            "lower one of them, so that they make less than 1",
        )
    pieces = list(parts.cut(clean / "rows.jsonl"))
    cut = sketches.banding(ALIKE, sum(piece.lines for piece in pieces))
    with parts.workplace(kept, out) as work:
        done = parts.each("split", partial(_part, cut), pieces, work)
        folders = [one.folder for one in done]
        rows, prompts = traits.together(folders, _PLACED), sketches.read(folders, work / "shingles", cut)
        linked = links.together(folders, rows, [traits.count(folder, _PLACED) for folder in folders])
        drawn = split.model_copy(update={side: 0.0 for side in pinned if side in SIDES[1:]})
        assigned = assign(rows, linked, prompts, drawn)
        _write(pieces, assigned, out)
        certified = _certify(rows, linked, prompts, cut, assigned, out)
    for i, side in enumerate(SIDES):
        np.save(out / f"{side}.groups.npy", assigned.group_N[assigned.of(i)])
    counts = {side: len(assigned.of(i)) for i, side in enumerate(SIDES)}
    reasons = dict(Counter(reason for reason, _ in assigned.gone.values()).most_common())
    assert len(rows) == sum(counts.values()) + len(assigned.gone)
    if not counts["train"]:
        raise DataError(
            "no row is left to train on",
            ", ".join([*(f"{counts[side]:,} in {side}" for side in SIDES[1:]),
                       *(f"{n:,} dropped: {reason}" for reason, n in reasons.items())]),
            "add examples, lower data.split.test and data.split.validation, or pin fewer files to them",
        )  # fmt: skip
    warnings = list(_warnings(split, pinned, rows, counts))
    told, vouched = ", ".join(f"{count:,} {side}" for side, count in counts.items()), _vouched(certified)
    return {
        "headline": f"{told}, {len(assigned.gone):,} dropped"
        + "".join(f"; {w.rstrip('.')}" for w in [vouched, *warnings]),
        "rows_in": len(rows),
        **counts,
        "dropped": len(assigned.gone),
        "reasons": reasons,
        "groups": {side: len(np.unique(assigned.group_N[assigned.of(i)])) for i, side in enumerate(SIDES)},
        "certificate": certified,
        "vouched": vouched,
        "warnings": warnings,
    }


def assign(rows: Traits, linked: Links, prompts: sketches.Sketches, split: Split) -> Assignment:
    """Each row's side.

    Where any row is pinned to test, the fraction for test is 0: the exam is that file alone. So for validation.
    """
    pins = rows["pin"]
    shares = {_TEST: split.test, _VALIDATION: split.validation}
    shares = {side: 0.0 if side in pins else share for side, share in shares.items()}
    held_out, free = np.flatnonzero(pins > _TRAIN), np.flatnonzero(pins <= _TRAIN)
    first_N, suspected = similar.joined(prompts, ALIKE, free, _known(linked.among(pins <= _TRAIN)))
    side_N = np.where(pins >= 0, pins, _TRAIN).astype(np.int8)
    if len(free):
        _choose_sides(rows, first_N, free, shares, side_N)
    found = Assignment(side_N, {}, first_N, suspected)
    if len(held_out):
        _part_ways(rows, prompts, found, held_out)
        _part_linked(rows, linked, found)
    for side, limit in enumerate((split.max_train_rows, split.max_validation_rows, split.max_test_rows)):
        for place in _over(rows, found.of(side), limit):
            found.drop(place, f"over max_{SIDES[side]}_rows", f"the limit is {limit:,}")
    return found


def _part(cut: sketches.Banding, part: parts.Part, folder: Path) -> dict[str, Any]:
    rows = [Row.from_json(orjson.loads(line)) for line in part.read()]
    traits.write(folder, traits.of(rows, _placed, _PLACED))
    sketches.write(folder, [prompt_text(row) for row in rows], cut)
    links.write(folder, rows)
    return {}


def _placed(row: Row) -> tuple[int | float, ...]:
    prompt = int(row.group, 16)
    claim = links.thread(row) or prompt
    return int(row.id, 16), prompt, claim, _position(claim), _PINS[row.split]


def _known(mine: links.Pairs) -> sketches.Pairs:
    """Pairs of rows that belong together whatever their prompts say: parent and child, children of one parent, rows of
    one thread, and conversations with whoever asks what they asked."""
    same = np.flatnonzero(mine["key"][1:] == mine["key"][:-1])
    return mine["place"][same + 1], mine["place"][same]


def _choose_sides(
    rows: Traits, first_N: Places, free: Places, shares: dict[int, float], side_N: NDArray[np.int8]
) -> None:
    """For each group, by its least claim: a thread stays where it is when it grows. A group trains that is half a side,
    or has a row that is pinned to train."""
    order = free[np.lexsort((rows["claim"][free], first_N[free]))]
    begins = np.flatnonzero(np.diff(first_N[order], prepend=-1))
    position_G, sizes_G = rows["position"][order[begins]], np.diff(begins, append=len(order))
    side_G, before = np.full(len(begins), _TRAIN, np.int8), 0.0
    for side, share in shares.items():
        inside = (position_G >= before) & (position_G < before + share)
        side_G[inside & (sizes_G <= max(_SMALL, share * len(rows) / 2))] = side
        before += share
    side_G[np.logical_or.reduceat(rows["pin"][order] == _TRAIN, begins)] = _TRAIN
    side_N[order] = np.repeat(side_G, sizes_G)


def _position(hash: int) -> float:
    """A place in [0, 1), evenly spread: 48 bits of the SHA-256 of a hash, which a float holds exactly."""
    return int.from_bytes(hashlib.sha256(f"{hash:016x}".encode()).digest()[:6]) / 2**48


def _part_ways(rows: Traits, prompts: sketches.Sketches, found: Assignment, held_out: Places) -> None:
    """Where a pinned exam or validation row is like a row of another side, that of the weaker side is dropped."""
    for side in (_TEST, _VALIDATION):
        mine, others = found.of(side), np.flatnonzero((found.side_N >= 0) & (found.side_N < side))
        if side not in rows["pin"]:
            others = np.intersect1d(others, held_out)  # free ones have no like on another side
        elif side == _TEST:
            found.known = len(similar.across(prompts, ALIKE, others, mine).alike)
        across = similar.across(prompts, ALIKE, mine, others)
        for place, (other, similarity) in sorted(across.alike.items()):
            same = rows["prompt"][place] == rows["prompt"][other]
            reason = f"prompt also in {SIDES[side]}" if same else f"prompt like one in {SIDES[side]}"
            detail = "same prompt as" if same else f"{similarity:.2f} like"
            found.drop(place, reason, f"{detail} {rows.read_at(other)}")
        for place, other in sorted(across.uncompared.items()):
            met = f"met too many to compare with all of them, {rows.read_at(other)} among them"
            found.drop(place, f"prompt perhaps like one in {SIDES[side]}", met)
        found.uncompared += len(across.uncompared)


def _part_linked(rows: Traits, linked: Links, found: Assignment) -> None:
    """Where a row belongs to what a pinned exam or validation row belongs to, that of the weaker side is dropped."""
    for side in (_TEST, _VALIDATION):
        others_N = (found.side_N >= 0) & (found.side_N < side)
        if side not in rows["pin"]:
            others_N &= rows["pin"] > _TRAIN  # free ones have no like on another side
        theirs, of_others = linked.among(found.side_N == side), linked.among(others_N)
        if not len(theirs):
            continue
        at = np.minimum(np.searchsorted(theirs["key"], of_others["key"]), len(theirs) - 1)
        for i in np.flatnonzero(theirs["key"][at] == of_others["key"]):
            detail = f"a thread, parent or turn in common with {rows.read_at(theirs['place'][at[i]])}"
            found.drop(int(of_others["place"][i]), f"thread, parent or turn also in {SIDES[side]}", detail)


def _over(rows: Traits, places: Places, limit: int | None) -> list[int]:
    """All but the rows with the lowest hashes, as many as the limit allows."""
    if limit is None or len(places) <= limit:
        return []
    ranked = sorted(places.tolist(), key=lambda i: (_position(int(rows["prompt"][i])), rows["id"][i]))
    return sorted(ranked[limit:])


def _write(pieces: list[parts.Part], assigned: Assignment, out: Path) -> None:
    with ExitStack() as files:
        sides = [files.enter_context(open(out / f"{side}.jsonl", "wb")) for side in SIDES]
        dropped = files.enter_context(open(out / "dropped.jsonl", "wb"))
        place = 0
        for piece in pieces:
            for line in piece.read():
                if place in assigned.gone:
                    reason, detail = assigned.gone[place]
                    told = {**orjson.loads(line), "reason": reason, "detail": detail}
                    dropped.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))
                else:
                    sides[assigned.side_N[place]].write(line)
                place += 1


def _certify(
    rows: Traits, linked: Links, prompts: sketches.Sketches, cut: sketches.Banding, assigned: Assignment, out: Path
) -> dict[str, Any]:
    """What the split vouches for, in `certificate.json`: that no test or validation row is like one that trains. It is
    looked for once more, among the rows as they were assigned, and told beside what a random split would have leaked.
    """
    train, validation, test = (assigned.of(side) for side in (_TRAIN, _VALIDATION, _TEST))
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(assigned.side_N != _GONE))
    exam, rest = np.sort(drawn[: len(test)]), np.sort(drawn[len(test) :])
    has_like = _may_have_like(rows, assigned)
    found = similar.across(prompts, ALIKE, train, validation, test, whole=True)
    known = similar.across(prompts, ALIKE, rest[has_like[rest]], exam[has_like[exam]])
    leaks = len(found.alike) + _on_two_sides(linked.among(assigned.side_N != _GONE), assigned)
    assert not leaks, f"{leaks} rows have their like on another side"
    facts = {
        "alike_from": ALIKE,
        "shingle": sketches.SHINGLE,
        "missed": cut.missed(ALIKE),
        "leaks": leaks,
        "joined_on_suspicion": assigned.suspected,
        "dropped_on_suspicion": assigned.uncompared,
        "exam_of_form": int(np.isin(test, linked.of_form).sum()),
        "pinned_exam": {"test": int((rows["pin"] == _TEST).sum()), "leaks": assigned.known},
        "random_split": {"test": len(exam), "leaks": len(known.alike), "uncompared": len(known.uncompared)},
    }
    return certificate.seal(out, facts, [f"{side}.jsonl" for side in SIDES])


def _may_have_like(rows: Traits, assigned: Assignment) -> NDArray[np.bool_]:
    """Which rows may be like another: where all were grouped, those that are not alone in their group."""
    if (rows["pin"] > _TRAIN).any():
        return np.ones(len(rows), bool)
    grouped: NDArray[np.bool_] = np.bincount(assigned.group_N, minlength=len(rows))[assigned.group_N] > 1
    return grouped


def _on_two_sides(left: links.Pairs, assigned: Assignment) -> int:
    """How many neighbours in the order of keys belong together and stand on different sides."""
    side = assigned.side_N[left["place"]]
    return int(np.count_nonzero((left["key"][1:] == left["key"][:-1]) & (side[1:] != side[:-1])))


def _vouched(certified: dict[str, Any]) -> str:
    """The certificate in a sentence."""
    drawn, pinned = certified["random_split"], certified["pinned_exam"]
    if not drawn["test"]:
        return "There is no exam, so none that training could know."
    known = f"{pinned['leaks']:,} of {pinned['test']:,} were, before such rows were dropped from training"
    leaked = f"a random split would have let training know {drawn['leaks']:,} of {drawn['test']:,}"
    vouched = f"Certified: no exam prompt is like one that trains ({known if pinned['test'] else leaked})."
    if form := certified["exam_of_form"]:
        vouched += (
            f" What {form:,} of them ask, more than {links.OF_FORM} conversations ask on their way: they may train."
        )
    return vouched


def _warnings(split: Split, pinned: Sequence[str], rows: Traits, counts: dict[str, int]) -> Iterator[str]:
    for side, fraction in (("validation", split.validation), ("test", split.test)):
        if counts[side]:
            continue
        if _PINS[side] in rows["pin"]:
            yield f"{side} is empty: every prompt of the files that are pinned to it also stands in test."
        elif side in pinned:
            yield f"{side} is empty: no row of the files that are pinned to it is left (`tunesmith data` tells why)."
        elif fraction > 0 and (rows["pin"] >= 0).all():
            yield f"{side} is empty: all files are pinned elsewhere; leave `split` out of one, or pin one to {side}."
        elif fraction > 0:
            yield f"{side} is empty: none of the {len(rows):,} rows fell into its share of {fraction:g}; add examples."
