"""Files that are either whole or absent, and the digests by which a step knows its inputs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core.errors import ResourceError
from tunesmith.core.records import Row

_REMEMBER_BYTES = 64 << 20  # digests of larger files are remembered
_SETTLED_SECONDS = 2.0  # a file that changed so recently may change again within one timestamp


def cache_dir() -> Path:
    """Where converted base models and their answers are kept between projects: ~/.cache/tunesmith by default."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"
    except RuntimeError:  # a container's user may have no home; what is compiled must come from nobody else
        return _private(Path(tempfile.gettempdir()) / f"tunesmith-cache-{os.getuid()}")


def _private(folder: Path) -> Path:
    """The folder, made if need be. Raises ResourceError where others could write there."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ResourceError(
                f"{folder} is not a folder of yours alone",
                "code that runs here would be kept in it",
                "remove it, or set XDG_CACHE_HOME",
            ) from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return orjson.loads(path.read_bytes())


def write_jsonl(path: Path, values: Iterable[Any]) -> int:
    """One JSON object a line; returns the number of lines."""
    count = 0
    with open(path, "wb") as file:
        for value in values:
            file.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    return write_jsonl(path, (row.to_json() for row in rows))


def read_rows(path: Path) -> list[Row]:
    return [Row.from_json(value) for value in read_jsonl(path)]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents.

    Digests of files above 64 MiB are remembered by size and modification time, unless the file was touched within two
    seconds of being read: then a second write could hide behind the same timestamp.
    """
    if path.is_dir():
        parts = [(str(p.relative_to(path)), digest(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()
    stat = path.stat()
    if stat.st_size < _REMEMBER_BYTES:
        return _sha256(path)
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    note = cache_dir() / "digests" / key
    if note.is_file():
        return note.read_text()
    value = _sha256(path)
    if time.time() - stat.st_mtime > _SETTLED_SECONDS and path.stat().st_mtime_ns == stat.st_mtime_ns:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_text(note, value)
    return value


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_is_full(error: Exception) -> bool:
    """Also where a library wraps the operating system's error in one of its own (safetensors does)."""
    wrapped = re.search(r"os error (\d+)", str(error))
    code = error.errno if isinstance(error, OSError) else int(wrapped[1]) if wrapped else None
    return code in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in str(error).lower()


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises ResourceError before work starts when the disk cannot hold its result."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        folder = next(f for f in (folder, *folder.parents) if not f.name.startswith("."))  # not a step's hidden one
        raise ResourceError(
            f"not enough disk space in {folder}",
            f"{purpose} needs {needed_bytes / 1e6:,.0f} MB and {free_bytes / 1e6:,.0f} MB are free",
            f"free {(needed_bytes - free_bytes) / 1e6:,.0f} MB or move the project, then run the same command again",
        )
