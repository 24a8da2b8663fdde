"""Which rows train, which choose the checkpoint, which are the exam: told from each row alone, never by shuffling.

A row's side follows from the hash of its normalised prompt, so the same prompt is on the same side in every run, in any
order and however many rows are added. A side that a source pins counts more than the hash, and the exam counts most:
where two sides claim a prompt it stays in test, else in validation, and its rows elsewhere are dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.project import Split
from tunesmith.core.records import Dropped, Row
from tunesmith.core.step import Artifact

VERSION = 1

SIDES = ("train", "validation", "test")  # a later one has the stronger claim to a prompt


def run(split: Split, clean: Artifact, out: Path) -> dict[str, Any]:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and `dropped.jsonl` (each row with its reason).

    Raises ConfigError for fractions that leave nothing to train on, DataError when no row is left to train on.
    """
    held_out = split.validation + split.test
    if held_out >= 1:
        raise ConfigError(
            "data.split leaves no rows to train on",
            f"validation {split.validation:g} and test {split.test:g} make {held_out:g}",
            "lower one of them, so that they make less than 1",
        )
    rows = store.read_rows(clean / "rows.jsonl")
    sides, dropped = assign(rows, split)
    for side in SIDES:
        store.write_rows(out / f"{side}.jsonl", sides[side])
    store.write_jsonl(
        out / "dropped.jsonl", ({**d.row.to_json(), "reason": d.reason, "detail": d.detail} for d in dropped)
    )
    reasons = dict(Counter(d.reason for d in dropped).most_common())
    assert len(rows) == sum(map(len, sides.values())) + len(dropped)
    if not sides["train"]:
        raise DataError(
            "no row is left to train on",
            _where(sides, reasons),
            "add examples, lower data.split.test and data.split.validation, or pin fewer files to them",
        )
    warnings = list(_warnings(split, rows, sides))
    counts = ", ".join(f"{len(sides[side]):,} {side}" for side in SIDES)
    return {
        "headline": f"{counts}, {len(dropped):,} dropped" + "".join(f"; {warning.rstrip('.')}" for warning in warnings),
        "rows_in": len(rows),
        **{side: len(sides[side]) for side in SIDES},
        "dropped": len(dropped),
        "reasons": reasons,
        "groups": {side: len({row.group for row in sides[side]}) for side in SIDES},
        "warnings": warnings,
    }


def assign(rows: Sequence[Row], split: Split) -> tuple[dict[str, list[Row]], list[Dropped]]:
    """The rows of each side, in their order, and those that no side could take.

    Where any row is pinned to test, the fraction for test is 0: the exam is that file alone. So for validation.
    """
    pinned = {row.split for row in rows}
    test = 0.0 if "test" in pinned else split.test
    validation = 0.0 if "validation" in pinned else split.validation
    groups = [row.group for row in rows]
    wanted = [_side(group, test, validation) if row.split == "auto" else row.split for row, group in zip(rows, groups)]
    owner: dict[str, tuple[str, Row]] = {}  # each prompt's side, and the first row that claims it
    for row, group, side in zip(rows, groups, wanted):
        if group not in owner or SIDES.index(side) > SIDES.index(owner[group][0]):
            owner[group] = side, row
    sides: dict[str, list[Row]] = {side: [] for side in SIDES}
    dropped = []
    for row, group, side in zip(rows, groups, wanted):
        winner, other = owner[group]
        if side == winner:
            sides[side].append(row)
        else:
            dropped.append(Dropped(row, f"prompt also in {winner}", f"same prompt as {other.source}:{other.line}"))
    for side, limit in zip(SIDES, (split.max_train_rows, split.max_validation_rows, split.max_test_rows)):
        sides[side], over = _capped(sides[side], limit)
        dropped += [Dropped(row, f"over max_{side}_rows", f"the limit is {limit:,}") for row in over]
    return sides, dropped


def _position(group: str) -> float:
    """A prompt's place in [0, 1), evenly spread: 48 bits of its SHA-256, which a float holds exactly."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6]) / 2**48


def _side(group: str, test: float, validation: float) -> str:
    position = _position(group)
    return "test" if position < test else "validation" if position < test + validation else "train"


def _capped(rows: list[Row], limit: int | None) -> tuple[list[Row], list[Row]]:
    """The rows with the lowest hashes, as many as the limit allows, and the others."""
    if limit is None:
        return rows, []
    ranked = sorted(range(len(rows)), key=lambda i: (_position(rows[i].group), rows[i].id))
    within = set(ranked[:limit])
    return [row for i, row in enumerate(rows) if i in within], [row for i, row in enumerate(rows) if i not in within]


def _warnings(split: Split, rows: Sequence[Row], sides: dict[str, list[Row]]) -> Iterator[str]:
    for side, fraction in (("validation", split.validation), ("test", split.test)):
        if sides[side]:
            continue
        if any(row.split == side for row in rows):
            yield f"{side} is empty: every prompt of the files that are pinned to it also stands in test."
        elif fraction > 0:
            yield f"{side} is empty: none of the {len(rows):,} rows fell into its share of {fraction:g}; add examples."


def _where(sides: dict[str, list[Row]], reasons: dict[str, int]) -> str:
    held_out = [f"{len(sides[side]):,} in {side}" for side in SIDES[1:]]
    return ", ".join([*held_out, *(f"{n:,} dropped: {reason}" for reason, n in reasons.items())])
