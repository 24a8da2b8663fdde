"""Which rows are like others that stand elsewhere: what is added to the training rows is held against the exam.

Prompts are compared as the split compares them, with the very hashes that it used, so that whatever this finds is what
the certificate will look for. Questions of benchmarks are found as cleaning finds them.
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

from tunesmith.core import store
from tunesmith.core.records import Row
from tunesmith.data import parts, similar, sketches, traits
from tunesmith.data.cleaning import benchmarks
from tunesmith.data.cleaning.benchmarks import Questions
from tunesmith.data.split import ALIKE
from tunesmith.data.traits import Places, Ruling, Traits, prompt_text


@dataclass(frozen=True)
class Exam:
    """What training must not know: the sides that are held out, by name, with what was noted of their rows, in folders
    for each; and the questions of benchmarks, if any are named, with the folder of what was noted of them."""

    sides: dict[str, list[Path]]
    threads: dict[str, tuple[str, str]]  # reason and detail for a row of that thread
    benchmarks: tuple[Path, Questions] | None
    cut: sketches.Banding
    work: Path

    def knows(self, folders: Sequence[Path]) -> dict[int, tuple[str, str]]:
        """Which of the rows noted in these folders are like one of a side that is held out, or may be: reason and
        detail, by their place."""
        noted = together([*self.sides.values(), folders], self.work / "shingles", self.cut)
        new, found = noted.of(len(self.sides)), dict[int, tuple[str, str]]()
        for number, side in enumerate(self.sides):
            across = similar.across(noted.prompts, ALIKE, noted.of(number), new)
            for place, other in across.uncompared.items():
                met = f"met too many to compare with all of them, {noted.rows.read_at(other)} among them"
                found[place - int(new[0])] = f"prompt perhaps like one in {side}", met
            for place, (other, alike) in across.alike.items():
                told = f"prompt like one in {side}", f"{alike:.2f} like {noted.rows.read_at(other)}"
                found[place - int(new[0])] = told
        return found

    def benchmarked(self, rows: Sequence[Row], folder: Path) -> dict[int, tuple[str, str]]:
        """Which of these rows, noted in a folder, ask what a benchmark asks."""
        if not self.benchmarks or not rows:
            return {}
        of_questions, questions = self.benchmarks
        noted = traits.together([folder], traits.COMPARED)
        prompts = sketches.read([folder, of_questions], self.work / "shingles", self.cut)
        shared_N = benchmarks.shared(of_questions, [prompt_text(row) for row in rows])
        rulings = benchmarks.known(noted, np.arange(len(rows)), prompts, shared_N, questions)
        told = (one for one in rulings if isinstance(one, Ruling))
        return {one.place: (str(one.reason), one.detail.format("")) for one in told}


@dataclass(frozen=True)
class Noted:
    """The traits and sketches of rows of several files, one after the other; `ends` tells where each file's end."""

    rows: Traits
    prompts: sketches.Sketches
    ends: list[int]

    def of(self, file: int) -> Places:
        return np.arange(self.ends[file - 1] if file else 0, self.ends[file])


def exam(sides: dict[str, Path], named: Sequence[Path], cut: sketches.Banding, work: Path) -> Exam:
    """Of the files of the sides, and of those of the benchmarks that are named."""
    folders = {side: note_file(path, work / f"exam-{side}", cut) for side, path in sides.items()}
    threads = {
        row["thread"]: (f"thread also in {side}", f"of one thread with {row['source']}:{row['line']}")
        for side, path in sides.items()
        for row in store.read_jsonl(path)
        if row["thread"]
    }
    asked = None
    if named:
        asked = work / "benchmarks", benchmarks.read(named)
        benchmarks.write(*asked, cut)
    return Exam(folders, threads, asked, cut, work)


def note(rows: Sequence[Row], folder: Path, cut: sketches.Banding) -> Path:
    """Notes rows in a folder of their own, in place of what it had."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    traits.write(folder, traits.of(rows, traits.compared, traits.COMPARED))
    sketches.write(folder, [prompt_text(row) for row in rows], cut)
    return folder


def note_file(path: Path, folder: Path, cut: sketches.Banding) -> list[Path]:
    """Notes the rows of a file part by part, in folders of `folder`."""
    return [one.folder for one in parts.each(path.stem, partial(_part, cut), parts.cut(path), folder)]


def together(files: Sequence[Sequence[Path]], whole: Path, cut: sketches.Banding) -> Noted:
    """What was noted of several files, each as the folders of its parts; `whole` is a file to put shingles into."""
    folders = [folder for its in files for folder in its]
    lengths = [sum(_rows(folder) for folder in its) for its in files]
    ends = np.cumsum(lengths).tolist()
    return Noted(traits.together(folders, traits.COMPARED), sketches.read(folders, whole, cut), ends)


def _part(cut: sketches.Banding, part: parts.Part, folder: Path) -> dict[str, Any]:
    rows = [Row.from_json(orjson.loads(line)) for line in part.read()]
    traits.write(folder, traits.of(rows, traits.compared, traits.COMPARED))
    sketches.write(folder, [prompt_text(row) for row in rows], cut)
    return {}


def _rows(folder: Path) -> int:
    return (folder / "traits").stat().st_size // traits.COMPARED.itemsize
