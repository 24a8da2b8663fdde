"""Finished steps as they lie on disk: which ones made what, told from their records, whatever the settings are now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.errors import ResourceError


@dataclass(frozen=True)
class Finished:
    """One execution of a step, with its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> str:
        return str(self.record["step"])

    @property
    def identity(self) -> str:
        return str(self.record["identity"])

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self.record["summary"]
        return summary

    def stands_on(self, other: Finished) -> bool:
        return any(other.record["made"] == read["made"] for read in self.record["inputs"].values())

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def of(output: Path, names: Sequence[str]) -> Iterator[Finished]:
    """All finished steps of these names, which stand in their order of running; the one that was last used comes first.
    (A run notes each step that it uses, the unchanged ones too; within one tick of the clock, the order decides.)"""
    found = [
        (path.stat().st_mtime_ns, place, path)
        for place, name in enumerate(names)
        for path in (output / "steps" / name).glob("[!.]*/record.json")
    ]
    for _, _, path in sorted(found, reverse=True):
        yield Finished(path.parent, store.read_json(path))


def lineage(output: Path, last: Finished, names: Sequence[str]) -> list[Finished]:
    """This step and those of these names that it stands on, in their order.

    Raises ResourceError where one of them is gone, or was made again since.
    """
    found = {last.step: last}
    todo = [last]
    while todo:
        one = todo.pop()
        for read in one.record["inputs"].values():
            if read["step"] in found or read["step"] not in names:
                continue
            path = output / "steps" / read["step"] / read["identity"] / "record.json"
            record = store.read_json(path) if path.is_file() else {}
            if record.get("made") != read["made"]:
                raise ResourceError(
                    f"the result of step {read['step']} that step {one.step} was made from is gone",
                    f"{path.parent} was removed, or made again",
                    "tunesmith run --until " + one.step,
                )
            found[read["step"]] = Finished(path.parent, record)
            todo.append(found[read["step"]])
    return [found[name] for name in names if name in found]


def made_from(output: Path, name: str, inputs: Sequence[Finished]) -> Finished | None:
    """The finished step of this name that was last used, of those that were made from all of these."""
    return next((one for one in of(output, [name]) if all(one.stands_on(other) for other in inputs)), None)
