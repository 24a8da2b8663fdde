"""Collecting: the files that a path of the project file names, each as a plain file that can be read.

A path is one file, a folder, a glob, or a compressed form of these. Among several files, those of a kind that is not
read are passed over, and so are empty ones; each is told with the reason. A file that is named by itself, or by a glob
that ends in a suffix, is always read: if it cannot be, that is an error.
"""

from __future__ import annotations

import glob
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core import inputs
from tunesmith.core.errors import DataError
from tunesmith.data.reading import unpack
from tunesmith.data.reading.values import named, repaired

WhyNot = Callable[[str], str | None]  # why a file of this name is not read among others; None where it is

_FOLDER = ".unpacked"
_HEAD_BYTES = 1 << 16
_PREVIEW_BYTES = 16 << 20
_DIVISIBLE = {".jsonl", ".ndjson", ".json", ".csv", ".tsv"}  # of these, a beginning can be read


@dataclass(frozen=True)
class Item:
    """A file to read: where it stands unpacked, and the name under which rows and documents tell of it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, and why."""

    name: str
    why: str


@contextmanager
def workplace(kept: Path | None, out: Path) -> Iterator[Path]:
    """Where files are unpacked: in a folder that outlives a kill, if there is one, else in a passing one."""
    if kept:
        yield kept / _FOLDER
        return
    with tempfile.TemporaryDirectory(dir=out, prefix=_FOLDER) as folder:
        yield Path(folder)


def collected(path: Path, why_not: WhyNot, folder: Path, head: bool = False) -> Iterator[Item | Skipped]:
    """What `path` names, in the order of the names, unpacked to `folder`; with `head`, of compressed tables and records
    only the beginning.

    Raises DataError for what cannot be unpacked."""
    for number, (name, file) in enumerate(inputs.files(path).items()):
        name = repaired(name)
        try:
            packing = unpack.packing(file)
        except OSError as error:
            raise DataError(f"{name} cannot be opened", error.strerror or str(error), f"check {file}") from None
        place = folder / f"{number:06d}"
        if packing == "zip":
            yield from _members(name, file, why_not, place, head)
        else:
            item = _one(name, file, packing, _never if _names_its_kind(path) else why_not, place, head)
            yield item if inputs.is_one_file(path) else _unless_blank(item)


def told(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """The names of files that are not read, by the reason."""
    names = defaultdict(list)
    for one in skipped:
        names[one.why].append(one.name)
    return dict(names)


def sentence(skipped: dict[str, list[str]]) -> str:
    return "; ".join(f"{len(names):,} skipped, {why}: {named(names)}" for why, names in skipped.items())


def nothing_to_read(path: Path, skipped: dict[str, list[str]], kinds: str) -> DataError:
    return DataError(
        f"there is no file to read in {inputs.shown(path)}",
        sentence(skipped) or "it names no file",
        f"name a file, folder or glob with {kinds} in it",
    )


def _never(name: str) -> None:
    return None


def _names_its_kind(path: Path) -> bool:
    if inputs.is_glob(path):
        return bool(path.suffix) and not glob.has_magic(path.suffix)
    return inputs.is_one_file(path)


def _one(
    name: str, file: Path, packing: unpack.Packing | None, why_not: WhyNot, folder: Path, head: bool
) -> Item | Skipped:
    inner = unpack.inner_name(name) if packing else name
    if why := why_not(inner):
        return Skipped(name, why)
    return Item(unpack.unpacked(file, packing, folder, _at_most_bytes(inner, head)) if packing else file, name)


def _unless_blank(one: Item | Skipped) -> Item | Skipped:
    """A file of which nothing is expected by itself may be empty."""
    return Skipped(one.name, "empty") if isinstance(one, Item) and _is_blank(one.path) else one


def _members(name: str, file: Path, why_not: WhyNot, folder: Path, head: bool) -> Iterator[Item | Skipped]:
    """The files of an archive, which are read as those of a folder are."""

    def no_member(member: str) -> str | None:
        if ".." in Path(member).parts:
            return "a name that leads out of the archive"
        return "an archive in an archive" if member.lower().endswith(".zip") else why_not(unpack.inner_name(member))

    def at_most_bytes(member: str) -> int | None:
        return _at_most_bytes(member, head)

    for number, (member, whole) in enumerate(unpack.members(file, no_member, folder, at_most_bytes)):
        member = repaired(member)
        if whole is None:
            yield Skipped(f"{name}/{member}", no_member(member) or "")
        else:
            place = folder / f"inner-{number:06d}"
            yield _unless_blank(_one(f"{name}/{member}", whole, unpack.packing(whole), why_not, place, head))


def _at_most_bytes(inner: str, head: bool) -> int | None:
    return _PREVIEW_BYTES if head and Path(inner).suffix.lower() in _DIVISIBLE else None


def _is_blank(file: Path) -> bool:
    with open(file, "rb") as opened:
        start = opened.read(_HEAD_BYTES)
    return len(start) < _HEAD_BYTES and not start.strip(b"\xef\xbb\xbf \t\r\n")
