"""What a path of the project file names: one file, all the files of a folder, or those that a glob matches.

Files come by name, which is their path below the folder, or below the part of the glob that has no wildcard; so two
files of one name stay apart, and moving the project changes no name. Hidden files and folders are passed over, and so
is a project's own output.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core import store

_LOOKED_AT = 10_000  # files among which a name is looked for that was meant


def files(path: Path) -> dict[str, Path]:
    """The files that a path names, in the order of their names; it must name some kind of thing that exists."""
    if is_glob(path):
        root, pattern = _fixed(path)
        names = glob.glob(pattern, root_dir=root, recursive=True)
        found = [(name, root / name) for name in names if not _in_output(root, name)]
    elif path.is_dir():
        found = [(str(one.relative_to(path)), one) for one in _below(path, {os.path.realpath(path)})]
    else:
        return {path.name: path}
    return {name: one for name, one in sorted(found, key=_by_folders) if not one.is_dir()}


def is_glob(path: Path) -> bool:
    """Whether a path has wildcards. One that exists as it is written is no glob, whatever its name."""
    return glob.has_magic(str(path)) and not path.exists()


def is_one_file(path: Path) -> bool:
    return not is_glob(path) and not path.is_dir()


def identity(path: Path) -> Any:
    """The names and digests of the files, so that one that is added, taken away or changed is noticed."""
    if is_one_file(path):
        return {"file": path.name, "sha256": store.digest(path)}
    return {name: {"file": name, "sha256": store.digest(one)} for name, one in files(path).items()}


def fault(path: Path) -> str | None:
    """Why a path names no file, and what is there instead; None where it names some."""
    if is_glob(path):
        root, pattern = _fixed(path)
        if not root.is_dir():
            return f"no such folder: {root}{_meant(root.name, _names(root.parent))}"
        if files(path):
            return None
        below = [str(one.relative_to(root)) for one in itertools.islice(_below(root, set()), _LOOKED_AT)]
        return f"nothing matches {path}{_meant(pattern, below, 0.3) or (f'; {root} is empty' if not below else '')}"
    if path.is_dir():
        if files(path):
            return None
        others = [name for name in _names(path.parent) if (path.parent / name) != path]
        return f"{path} holds no file{_meant(path.name, others)}"
    if not path.exists():
        return f"no such file: {path}{_meant(path.name, _names(path.parent))}"
    return None


def _meant(name: str, names: list[str], cutoff: float = 0.5) -> str:
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _by_folders(found: tuple[str, Path]) -> tuple[str, ...]:
    return Path(found[0]).parts


def _fixed(path: Path) -> tuple[Path, str]:
    """A glob's beginning without wildcards, and the rest. A folder that exists by its name is no wildcard."""
    parts = path.parts
    length = next(i for i, part in enumerate(parts) if glob.has_magic(part) and not Path(*parts[: i + 1]).exists())
    return Path(*parts[:length]), str(Path(*parts[length:]))


def _below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """All files below a folder. Links are followed, each folder once; one that leads nowhere is told as a file is."""
    for entry in os.scandir(folder):
        one = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            real = os.path.realpath(one)
            if real not in seen and not _is_output(one):
                yield from _below(one, seen | {real})
        elif entry.is_file() or entry.is_symlink():
            yield one


def _in_output(root: Path, name: str) -> bool:
    return any(_is_output(root / folder) for folder in Path(name).parents if folder != Path())


def _is_output(folder: Path) -> bool:
    """Whether it is where runs of tunesmith write: it would be read and changed by the same run."""
    return folder.name.split("-")[0] == "output" and (folder / ".lock").is_file()
