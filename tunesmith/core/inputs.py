"""What a path of the project file names: one file, all the files of a folder, those that a glob matches, or a data set
of the hub.

Files come by name, which is their path below the folder, or below the part of the glob that has no wildcard; so two
files of one name stay apart, and moving the project changes no name. Hidden files and folders are passed over, and so
is a project's own output.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core import hub, store
from tunesmith.core.errors import DataError

_LOOKED_AT = 10_000  # files among which a name is looked for that was meant


def files(path: Path) -> dict[str, Path]:
    """The files that a path names, in the order of their names; it must name some kind of thing that exists."""
    if hub.is_address(path):
        return dict(hub.fetch(hub.address(path)).files)
    if is_glob(path):
        root, pattern = _fixed(path)
        found = [(name, root / name) for name in _matching(root, pattern) if not _in_output(root, name)]
    elif path.is_dir():
        found = [(str(one.relative_to(path)), one) for one in _below(path)]
    else:
        return {path.name: path}
    return {name: one for name, one in sorted(found, key=_by_folders) if one.is_file() or _is_dead_link(one)}


def is_glob(path: Path) -> bool:
    """Whether a path has wildcards. One that exists as it is written is no glob, whatever its name."""
    return glob.has_magic(str(path)) and not path.exists() and not hub.is_address(path)


def is_one_file(path: Path) -> bool:
    return not is_glob(path) and not path.is_dir() and not hub.is_address(path)


def shown(path: Path) -> str:
    """The path as one writes it."""
    return str(hub.address(path)) if hub.is_address(path) else str(path)


def is_here(path: Path) -> bool:
    """Whether the files are on this machine: a data set of the hub may have to be fetched first."""
    return not hub.is_address(path) or hub.cached(hub.address(path)) is not None


def identity(path: Path) -> Any:
    """The names and digests of the files, so that one that is added, taken away or changed is noticed; of a data set of
    the hub, its commit, once it is fetched."""
    if hub.is_address(path):
        found = hub.cached(address := hub.address(path))
        return {"hub": str(address), "commit": found.commit if found else None}
    if is_one_file(path):
        return _identity(path.name, path)
    return {name: _identity(name, one) for name, one in files(path).items()}


def _identity(name: str, file: Path) -> dict[str, str]:
    try:
        return {"file": name, "sha256": store.digest(file)}
    except OSError as error:
        raise DataError(f"{name} cannot be opened", error.strerror or str(error), f"check {file}") from None


def fault(path: Path) -> str | None:
    """Why a path names no file, and what is there instead; None where it names some. Raises ValueError for an address
    that can be none."""
    if hub.is_address(path):
        hub.address(path)
        return None
    if is_glob(path):
        root, pattern = _fixed(path)
        if not root.is_dir():
            return f"no such folder: {root}{_meant(root.name, _names(root.parent))}"
        if found := files(path):
            return _misnamed(found)
        below = [str(one.relative_to(root)) for one in itertools.islice(_below(root), _LOOKED_AT)]
        return f"nothing matches {path}{_meant(pattern, below, 0.3) or (f'; {root} is empty' if not below else '')}"
    if path.is_dir():
        if found := files(path):
            return _misnamed(found)
        others = [name for name in _names(path.parent) if (path.parent / name) != path]
        return f"{path} holds no file{_meant(path.name, others)}"
    if _is_dead_link(path):
        return f"{path} is a link, and {path.readlink()} is not there"
    if not path.exists():
        return f"no such file: {path}{_meant(path.name, _names(path.parent))}"
    if not path.is_file():
        return f"{path} is neither a file nor a folder: write what it gives to a file"
    return _misnamed([str(path)])


def _misnamed(names: Iterable[str]) -> str | None:
    for name in names:
        told = name.encode(errors="replace").decode()
        if told != name:
            return f"the name of {told} is not UTF-8: rename it"
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


def _matching(root: Path, pattern: str) -> Iterator[str]:
    """The names that a glob matches. (Where links go round, `glob` itself follows `**` without end.)"""
    parts = Path(pattern).parts
    if "**" not in parts or not root.is_dir():
        yield from glob.iglob(pattern, root_dir=root)
        return
    for one in _below(root, hidden=any(map(_is_hidden, parts))):
        name = one.relative_to(root)
        if _matches(name.parts, parts):
            yield str(name)


def _matches(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether the folders and the file of a name are what a glob's parts say, where `**` is any number of folders. What
    is hidden is matched by a part that begins with a dot alone."""
    if not names or not parts:
        return names == parts
    if parts[0] == "**":
        ends = len(names) == len(parts) == 1
        goes_on = not _is_hidden(names[0]) and (ends or _matches(names[1:], parts))
        return goes_on or _matches(names, parts[1:])
    shown = _is_hidden(parts[0]) or not _is_hidden(names[0])
    return shown and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _below(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """All files below a folder. Links are followed when all else is read, each folder once; one that leads nowhere is
    told as a file is."""
    folders, links, seen = [folder], list[Path](), set[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            one = folder / entry.name
            if _is_hidden(entry.name) and not hidden:
                continue
            if not entry.is_dir():
                yield one
            elif not _is_output(one):
                (links if entry.is_symlink() else folders).append(one)


def _is_dead_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _in_output(root: Path, name: str) -> bool:
    return any(_is_output(root / folder) for folder in Path(name).parents if folder != Path())


def _is_output(folder: Path) -> bool:
    """Whether it is where runs of tunesmith write: it would be read and changed by the same run."""
    return folder.name.split("-")[0] == "output" and (folder / ".lock").is_file()
