"""Which rows are like others that stand elsewhere: what is added to the training rows is held against the exam.

Prompts are compared as the split compares them, with the very hashes that it used, so that whatever this finds is what
the certificate will look for.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tunesmith.core.records import Row
from tunesmith.data import parts, similar, traits
from tunesmith.data.split import ALIKE
from tunesmith.data.traits import Places, Traits, prompt_text

NOTED = np.dtype([*traits.COMPARED.descr, ("id", "u8")])


@dataclass(frozen=True)
class Exam:
    """The sides that training must not know: their names, and what was noted of their rows, in folders for each."""

    sides: list[str]
    folders: list[list[Path]]
    cut: similar.Banding
    work: Path

    def knows(self, folders: Sequence[Path]) -> dict[int, tuple[str, str]]:
        """Which of the rows noted in these folders are like one of the exam: reason and detail, by their place."""
        noted = together([*self.folders, folders], self.work / "shingles", self.cut)
        new, found = noted.of(len(self.sides)), dict[int, tuple[str, str]]()
        for number, side in enumerate(self.sides):
            theirs = noted.of(number)
            for place, (other, alike) in similar.across(noted.prompts, ALIKE, theirs, new).items():
                told = f"prompt like one in {side}", f"{alike:.2f} like {noted.rows.read_at(other)}"
                found[place - int(new[0])] = told
        return found


@dataclass(frozen=True)
class Noted:
    """The traits and sketches of rows of several files, one after the other; `ends` tells where each file's end."""

    rows: Traits
    prompts: similar.Sketches
    ends: list[int]

    def of(self, file: int) -> Places:
        return np.arange(self.ends[file - 1] if file else 0, self.ends[file])


def exam(sides: dict[str, Path], cut: similar.Banding, work: Path) -> Exam:
    """Of these files."""
    folders = [note_file(path, work / f"exam-{side}", cut) for side, path in sides.items()]
    return Exam(list(sides), folders, cut, work)


def note(rows: Sequence[Row], folder: Path, cut: similar.Banding) -> Path:
    """Notes rows in a folder of their own, in place of what it had."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    traits.write(folder, traits.of(rows, _noted, NOTED))
    similar.write(folder, [prompt_text(row) for row in rows], cut)
    return folder


def note_file(path: Path, folder: Path, cut: similar.Banding) -> list[Path]:
    """Notes the rows of a file part by part, in folders of `folder`."""
    return [one.folder for one in parts.each(path.stem, partial(_part, cut), parts.cut(path), folder)]


def together(files: Sequence[Sequence[Path]], whole: Path, cut: similar.Banding) -> Noted:
    """What was noted of several files, each as the folders of its parts; `whole` is a file to put shingles into."""
    folders = [folder for its in files for folder in its]
    lengths = [sum(_rows(folder) for folder in its) for its in files]
    ends = np.cumsum(lengths).tolist()
    return Noted(traits.together(folders, NOTED), similar.read(folders, whole, cut), ends)


def _part(cut: similar.Banding, part: parts.Part, folder: Path) -> dict[str, Any]:
    rows = [Row.from_json(orjson.loads(line)) for line in part.read()]
    traits.write(folder, traits.of(rows, _noted, NOTED))
    similar.write(folder, [prompt_text(row) for row in rows], cut)
    return {}


def _noted(row: Row) -> tuple[int, ...]:
    return (*traits.compared(row), int(row.id, 16))


def _rows(folder: Path) -> int:
    return (folder / "traits").stat().st_size // NOTED.itemsize
