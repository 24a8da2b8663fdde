"""New training rows, and an honest ledger of what became of every attempt to make one.

An attempt is a row that was made, or something that a model is asked for. What comes of it has to pass, in this order:
it can be read as a row, it stands on its source, it keeps the rules of cleaning, it repeats no training row and no
other new one, and it is not like a row of the exam. Attempts are made in rounds, each as long as all before it, and
growing ends when there are rows enough, when nothing is left to try, or when a round brought little but repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from tunesmith.core.data_section import Clean, Synthesise
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data import known, makers, pipeline
from tunesmith.data.drops import Drops
from tunesmith.data.makers import Attempt
from tunesmith.data.seeds import Seeds

STAGE = "growing"

_FIRST_ROUND = 64  # attempts
_LONGEST_ROUND = 20_000
_REPEATS = ("repeats a training row", "repeats a new row")


@dataclass
class Yield:
    """What came of one kind: attempts, of which one may bring several rows or none, then the rows that passed."""

    asked: int = 0
    answered: int = 0
    parsed: int = 0
    grounded: int = 0
    clean: int = 0
    unique: int = 0
    decontaminated: int = 0
    kept: int = 0
    without_row: int = 0  # attempts that brought none
    stopped: str = "nothing was left to try"


@dataclass
class Grown:
    """The new rows of all kinds so far: their file, what was noted of them, and how many each parent has."""

    file: BinaryIO
    ids: set[int] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)
    of_parent: Counter[str] = field(default_factory=Counter)


def run(settings: Synthesise, clean: Clean, seeds: Seeds, exam: known.Exam, new: Path, drops: Drops) -> dict[str, Any]:
    """Writes the new rows; every attempt and every row that came to nothing goes to the drops."""
    share = settings.max_share
    room = None if share is None else int(share / (1 - share) * len(seeds) + 1e-9)
    found: dict[str, Yield] = {}
    with open(new, "wb") as file:
        grown = Grown(file)
        for kind, attempts, limit in _kinds(settings, seeds):
            left = None if room is None else room - sum(its.kept for its in found.values())
            most = min((n for n in (left, limit) if n is not None), default=None)
            growth = _Growth(kind, settings, clean, seeds, exam, grown, drops)
            found[kind] = growth.grow(attempts, most)
    made = sum(its.parsed + its.without_row for its in found.values())
    kept = sum(its.kept for its in found.values())
    assert made == kept + drops.of(STAGE), f"{made} made, {kept} kept, {drops.of(STAGE)} dropped"
    return {"made": made, "kept": kept, "kinds": {kind: asdict(its) for kind, its in found.items()}}


def _kinds(settings: Synthesise, seeds: Seeds) -> Iterator[tuple[str, Iterator[Attempt], int | None]]:
    """Each kind that is wanted: its name, what is tried, and how many rows of it are enough; a new one is a line."""
    if settings.noise:
        yield "noise", makers.noise(settings.noise, seeds), settings.noise.rows


@dataclass
class _Growth:
    """Where the rows of one kind grow."""

    kind: str
    settings: Synthesise
    clean: Clean
    seeds: Seeds
    exam: known.Exam
    grown: Grown
    drops: Drops
    found: Yield = field(default_factory=Yield)

    def grow(self, attempts: Iterator[Attempt], most: int | None) -> Yield:
        found = self.found
        while most is None or found.kept < most:
            wanted = min(max(_FIRST_ROUND, found.asked), _LONGEST_ROUND)
            round = list(islice(self._open(attempts), wanted if most is None else min(wanted, most - found.kept)))
            if not round:
                return found
            before = found.clean, found.unique
            self._round(round)
            clean, unique = found.clean - before[0], found.unique - before[1]
            if len(round) >= _FIRST_ROUND and clean and 1 - unique / clean >= self.settings.stop_at_repeats:
                found.stopped = f"{clean - unique:,} of the last {clean:,} rows repeated others"
                return found
        found.stopped = "there were enough"
        return found

    def _open(self, attempts: Iterator[Attempt]) -> Iterator[Attempt]:
        """Attempts for parents that may have more rows."""
        return (one for one in attempts if self.grown.of_parent[one.parent] < self.settings.max_per_parent)

    def _round(self, round: list[Attempt]) -> None:
        found = self.found
        found.asked += len(round)
        found.answered += len(round)
        rows = [attempt.row for attempt in round]
        found.parsed += len(rows)
        found.grounded += len(rows)
        rows = self._cleaned(rows)
        found.clean += len(rows)
        rows = self._unique(rows)
        found.unique += len(rows)
        rows = self._unknown(rows)
        found.decontaminated += len(rows)
        for row in rows:
            self._keep(row)

    def _cleaned(self, rows: list[Row]) -> list[Row]:
        for _, stage in pipeline.stages(self.clean):
            results = list(stage(rows))
            rows = [result.row for result in results if isinstance(result, Kept)]
            for result in results:
                if isinstance(result, Dropped):
                    self.drops.add(result, STAGE)
        return rows

    def _unique(self, rows: list[Row]) -> list[Row]:
        """Rows that no training row and no other new row repeats, word for word; those of a model not nearly either."""
        kept, seen = [], set[int]()
        known_M = np.isin(np.array([int(row.id, 16) for row in rows], np.uint64), self.seeds.ids_N)
        for row, is_known in zip(rows, known_M.tolist()):
            row_id = int(row.id, 16)
            if is_known:
                self.drops.add(Dropped(row, "repeats a training row", "word for word"), STAGE)
            elif row_id in self.grown.ids or row_id in seen:
                self.drops.add(Dropped(row, "repeats a new row", "word for word"), STAGE)
            else:
                seen.add(row_id)
                kept.append(row)
        return kept

    def _unknown(self, rows: list[Row]) -> list[Row]:
        """Rows that are not like one of the exam."""
        if not rows:
            return rows
        like = self.exam.knows([known.note(rows, self.exam.work / "round", self.exam.cut)])
        for place, why in like.items():
            self.drops.add(Dropped(rows[place], *why), STAGE)
        return [row for place, row in enumerate(rows) if place not in like]

    def _keep(self, row: Row) -> None:
        parent = row.parents[0]
        if self.grown.of_parent[parent] >= self.settings.max_per_parent:
            limit = f"at most {self.settings.max_per_parent:,}"
            self.drops.add(Dropped(row, "over max_per_parent", limit), STAGE)
            return
        self.grown.of_parent[parent] += 1
        self.grown.ids.add(int(row.id, 16))
        self.grown.file.write(orjson.dumps(row.to_json(), option=orjson.OPT_APPEND_NEWLINE))
        self.found.kept += 1
