"""Which new rows may train: those that keep the rules of cleaning, repeat no other row, and are not like the exam."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from tunesmith.core.clean_section import Clean
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data import pipeline
from tunesmith.data.cleaning import dedup
from tunesmith.data.growing import known
from tunesmith.data.growing.drops import Drops
from tunesmith.data.growing.seeds import Seeds

STAGE = "growing"


@dataclass
class Admission:
    """Writes the rows that pass every test to `file`, and all others to the drops."""

    clean: Clean
    seeds: Seeds
    exam: known.Exam
    max_per_parent: int
    file: BinaryIO
    drops: Drops
    ids: set[int] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)  # what was noted of the new rows, round by round
    of_parent: Counter[str] = field(default_factory=Counter)

    def drop(self, row: Row, reason: str, detail: str) -> None:
        self.drops.add(Dropped(row, reason, detail), STAGE)

    def is_open(self, parent: str) -> bool:
        """Whether it may have more rows."""
        return self.of_parent[parent] < self.max_per_parent

    def cleaned(self, rows: list[Row]) -> list[Row]:
        for _, stage in pipeline.stages(self.clean):
            results = list(stage(rows))
            rows = [result.row for result in results if isinstance(result, Kept)]
            for result in results:
                if isinstance(result, Dropped):
                    self.drops.add(result, STAGE)
        return [replace(row, changes=list(dict.fromkeys(row.changes))) for row in rows]  # parents may have noted it

    def unique(self, rows: list[Row], nearly: bool) -> list[Row]:
        """Those that no training row and no other new row repeats word for word; `nearly`: nor in a prompt that is
        nearly the same, with the same answer."""
        left, seen = [], set[int]()
        known_M = np.isin(np.array([int(row.id, 16) for row in rows], np.uint64), self.seeds.ids_N)
        for row, is_known in zip(rows, known_M.tolist()):
            row_id = int(row.id, 16)
            if is_known:
                self.drop(row, "repeats a training row", "word for word")
            elif row_id in self.ids or row_id in seen:
                self.drop(row, "repeats a new row", "word for word")
            else:
                seen.add(row_id)
                left.append(row)
        threshold = self.clean.near_duplicates
        return self._not_nearly(left, threshold) if nearly and threshold is not None and left else left

    def _not_nearly(self, rows: list[Row], threshold: float) -> list[Row]:
        work, cut = self.exam.work, self.exam.cut
        files = [self.seeds.folders, self.folders, [known.note(rows, work / "round", cut)]]
        noted = known.together(files, work / "shingles", cut)
        first = int(noted.of(2)[0])
        repeated = {}
        for ruling in dedup.near(noted.rows, np.arange(len(noted.rows)), noted.prompts, threshold, keep_equal=False):
            repeated[ruling.place - first] = ruling
        left = []
        for place, row in enumerate(rows):
            if place not in repeated:
                left.append(row)
                continue
            other = repeated[place].other
            what = "a training row" if other < len(self.seeds) else "a new row"
            self.drop(row, f"repeats {what}", repeated[place].detail.format(noted.rows.read_at(other)))
        return left

    def unknown(self, rows: list[Row]) -> list[Row]:
        """Those that are not like a row of the exam, nor a question of a benchmark."""
        if not rows:
            return rows
        folder = known.note(rows, self.exam.work / "round", self.exam.cut)
        like = {**self.exam.benchmarked(rows, folder), **self.exam.knows([folder])}
        for place, why in like.items():
            self.drop(rows[place], *why)
        return [row for place, row in enumerate(rows) if place not in like]

    def admit(self, rows: list[Row], nearly: bool, missing: int | None) -> int:
        """Writes rows, as many as are missing and as their parents may have; returns how many. Those that later rows
        may not nearly repeat are noted for that."""
        kept = list[Row]()
        for row in rows:
            if missing is not None and len(kept) == missing:
                self.drop(row, "more than are wanted", f"{missing:,} of them were missing")
            elif self.is_open(row.parents[0]):
                self.of_parent[row.parents[0]] += 1
                self.ids.add(int(row.id, 16))
                self.file.write(orjson.dumps(row.to_json(), option=orjson.OPT_APPEND_NEWLINE))
                kept.append(row)
            else:
                self.drop(row, "over max_per_parent", f"at most {self.max_per_parent:,}")
        if nearly and kept:
            folder = self.exam.work / f"new-{len(self.folders)}"
            self.folders.append(known.note(kept, folder, self.exam.cut))
        return len(kept)
