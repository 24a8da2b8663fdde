"""Which rows train, which choose the checkpoint, which are the exam; and the certificate that none is known to another.

Rows belong together whose prompts are alike, or that have one parent: such a group is on one side, whole.
Which side follows from the hash of a prompt in it, never from shuffling, so that it is the same in every run and in any
order; rows that are added move no others, unless they join two groups. A side that a source pins counts more than the
hash, and the exam counts most: what it asks is dropped from the other sides, and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
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
from tunesmith.data import parts, similar, traits
from tunesmith.data.traits import Places, Traits, prompt_text

VERSION = 3

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
        ("parent", "u8"),  # the first of its parents; 0: none
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


def run(split: Split, clean: Artifact, out: Path, kept: Path | None = None) -> dict[str, Any]:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl`, `dropped.jsonl` (each row with its reason) and
    `certificate.json`.

    Raises ConfigError for fractions that leave nothing to train on, DataError when no row is left to train on.
    """
    if split.validation + split.test >= 1:
        raise ConfigError(
            "data.split leaves no rows to train on",
            f"validation {split.validation:g} and test {split.test:g} make {split.validation + split.test:g}",
            "lower one of them, so that they make less than 1",
        )
    pieces = list(parts.cut(clean / "rows.jsonl"))
    cut = similar.banding(ALIKE, sum(piece.lines for piece in pieces))
    with parts.workplace(kept, out) as work:
        done = parts.each("split", partial(_part, cut), pieces, work)
        folders = [one.folder for one in done]
        rows, prompts = traits.together(folders, _PLACED), similar.read(folders, work / "shingles", cut)
        assigned = assign(rows, prompts, split)
        _write(pieces, assigned, out)
        certified = _certify(rows, prompts, cut, assigned, out)
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
    warnings = list(_warnings(split, rows, counts))
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


def assign(rows: Traits, prompts: similar.Sketches, split: Split) -> Assignment:
    """Each row's side.

    Where any row is pinned to test, the fraction for test is 0: the exam is that file alone. So for validation.
    """
    pins = rows["pin"]
    shares = {_TEST: split.test, _VALIDATION: split.validation}
    shares = {side: 0.0 if side in pins else share for side, share in shares.items()}
    held_out, free = np.flatnonzero(pins > _TRAIN), np.flatnonzero(pins <= _TRAIN)
    first_N, suspected = similar.joined(prompts, ALIKE, free, _known(rows, free))
    side_N = np.where(pins >= 0, pins, _TRAIN).astype(np.int8)
    for group in _groups(first_N, free):
        side_N[group] = _side_of(rows, group, shares)
    found = Assignment(side_N, {}, first_N, suspected)
    if len(held_out):
        _part_ways(rows, prompts, found, held_out)
    for side, limit in enumerate((split.max_train_rows, split.max_validation_rows, split.max_test_rows)):
        for place in _over(rows, found.of(side), limit):
            found.drop(place, f"over max_{SIDES[side]}_rows", f"the limit is {limit:,}")
    return found


def _part(cut: similar.Banding, part: parts.Part, folder: Path) -> dict[str, Any]:
    rows = [Row.from_json(orjson.loads(line)) for line in part.read()]
    traits.write(folder, traits.of(rows, _placed, _PLACED))
    similar.write(folder, [prompt_text(row) for row in rows], cut)
    return {}


def _placed(row: Row) -> tuple[int, ...]:
    return int(row.id, 16), int(row.group, 16), int(row.parents[0], 16) if row.parents else 0, _PINS[row.split]


def _known(rows: Traits, free: Places) -> similar.Pairs:
    """Pairs of rows that belong together whatever their prompts say: parent and child, and children of one parent."""
    key_N = np.where(rows["parent"] > 0, rows["parent"], rows["id"])[free]
    order = np.argsort(key_N, kind="stable")
    same = np.flatnonzero(key_N[order[1:]] == key_N[order[:-1]])
    return free[order[same + 1]], free[order[same]]


def _groups(first_N: Places, free: Places) -> Iterator[Places]:
    order = free[np.argsort(first_N[free], kind="stable")]
    begins = np.flatnonzero(np.diff(first_N[order], prepend=-1))
    yield from np.split(order, begins[1:]) if len(order) else ()


def _side_of(rows: Traits, group: Places, shares: dict[int, float]) -> int:
    """By the hash of the least prompt. A group with a row that is pinned to train, or that is half a side, trains."""
    if (rows["pin"][group] == _TRAIN).any():
        return _TRAIN
    position, before = _position(int(rows["prompt"][group].min())), 0.0
    for side, share in shares.items():
        before += share
        if position < before:
            return side if len(group) <= max(_SMALL, share * len(rows) / 2) else _TRAIN
    return _TRAIN


def _position(prompt: int) -> float:
    """A prompt's place in [0, 1), evenly spread: 48 bits of its SHA-256, which a float holds exactly."""
    return int.from_bytes(hashlib.sha256(f"{prompt:016x}".encode()).digest()[:6]) / 2**48


def _part_ways(rows: Traits, prompts: similar.Sketches, found: Assignment, held_out: Places) -> None:
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
    rows: Traits, prompts: similar.Sketches, cut: similar.Banding, assigned: Assignment, out: Path
) -> dict[str, Any]:
    """What the split vouches for, in `certificate.json`: that no test or validation row is like one that trains. It is
    looked for once more, among the rows as they were assigned, and told beside what a random split would have leaked.
    """
    train, validation, test = (assigned.of(side) for side in (_TRAIN, _VALIDATION, _TEST))
    pairs = ((train, test), (train, validation), (test, validation))
    found = [similar.across(prompts, ALIKE, these, others) for these, others in pairs]
    leaks, uncompared = sum(len(one.alike) for one in found), sum(len(one.uncompared) for one in found)
    assert not leaks, f"{leaks} rows have their like on another side"
    assert not uncompared, f"{uncompared} rows may have their like on another side"
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(assigned.side_N != _GONE))
    exam, rest = np.sort(drawn[: len(test)]), np.sort(drawn[len(test) :])
    known = similar.across(prompts, ALIKE, rest, exam)
    facts = {
        "alike_from": ALIKE,
        "shingle": similar.SHINGLE,
        "missed": cut.missed(ALIKE),
        "leaks": leaks,
        "joined_on_suspicion": assigned.suspected,
        "dropped_on_suspicion": assigned.uncompared,
        "pinned_exam": {"test": int((rows["pin"] == _TEST).sum()), "leaks": assigned.known},
        "random_split": {"test": len(exam), "leaks": len(known.alike), "uncompared": len(known.uncompared)},
    }
    return certificate.seal(out, facts, [f"{side}.jsonl" for side in SIDES])


def _vouched(certified: dict[str, Any]) -> str:
    """The certificate in a sentence."""
    drawn, pinned = certified["random_split"], certified["pinned_exam"]
    if not drawn["test"]:
        return "There is no exam, so none that training could know."
    known = f"{pinned['leaks']:,} of {pinned['test']:,} were, before such rows were dropped from training"
    leaked = f"a random split would have let training know {drawn['leaks']:,} of {drawn['test']:,}"
    return f"Certified: no exam prompt is like one that trains ({known if pinned['test'] else leaked})."


def _warnings(split: Split, rows: Traits, counts: dict[str, int]) -> Iterator[str]:
    for side, fraction in (("validation", split.validation), ("test", split.test)):
        if counts[side]:
            continue
        if _PINS[side] in rows["pin"]:
            yield f"{side} is empty: every prompt of the files that are pinned to it also stands in test."
        elif fraction > 0:
            yield f"{side} is empty: none of the {len(rows):,} rows fell into its share of {fraction:g}; add examples."
