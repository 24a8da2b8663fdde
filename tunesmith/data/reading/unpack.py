"""Compressed files, unpacked once to the disk: gzip, bzip2, xz and Zstandard are one file each, ZIP is like a folder.

They are told by their first bytes, not by their names. What is unpacked is streamed and bounded: a small file that
unpacks to a huge one was made to fill a disk. What cannot be unpacked to its end is a DataError; half of a file is
never taken for the whole.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from tunesmith.core.errors import ConfigError, DataError

Packing = Literal["gzip", "bzip2", "xz", "zstd", "zip"]
Readable = BinaryIO | IO[bytes] | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")

_MAGIC: dict[bytes, Packing] = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # without a file in it
}
_BLOCK_BYTES = 1 << 20
_BOMB_RATIO = 250  # logs come to a tenth or a thirtieth of their size, never to so little
_BOMB_BYTES = 256 << 20  # below this, no ratio does harm
_TAR_AT, _TAR = 257, b"ustar"  # where a tar archive says what it is
_BROKEN = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


def packing(path: Path) -> Packing | None:
    """How a file is compressed; None for one that is not, and for office documents, which are ZIP files inside."""
    with open(path, "rb") as file:
        head = file.read(8)
    found = next((packing for magic, packing in _MAGIC.items() if head.startswith(magic)), None)
    return None if found == "zip" and path.suffix.lower() != ".zip" else found


def inner_name(name: str) -> str:
    """What a compressed file is called once it is unpacked."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def unpacked(path: Path, packing: Packing, folder: Path, at_most_bytes: int | None = None) -> Path:
    """The one file in a compressed one, written to `folder`, where an earlier run may have left it whole already;
    `at_most_bytes` of its beginning, up to the end of a line."""
    whole = folder / inner_name(path.name)
    if not whole.is_file():
        with _stream(path, packing) as packed:
            _write(path, path.stat().st_size, packed, whole, at_most_bytes)
    with open(whole, "rb") as file:
        file.seek(_TAR_AT)
        if file.read(len(_TAR)) == _TAR:
            raise DataError(
                f"{path.name} is a tar archive",
                "tunesmith unpacks single files and ZIP archives",
                f"unpack it (tar xf {path.name}), and name the folder that comes of it",
            )
    return whole


def members(
    path: Path, why_not: Callable[[str], str | None], folder: Path, at_most_bytes: Callable[[str], int | None]
) -> Iterator[tuple[str, Path | None]]:
    """The files of a ZIP archive in the order of their names, without hidden ones. Where there is no reason why not,
    one comes with a file in `folder` that holds it, as `unpacked` writes it."""
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise _unreadable(path, error) from None
    with archive:
        infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        for number, info in enumerate(infos):
            parts = Path(info.filename).parts
            if any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts):
                continue
            if why_not(info.filename):
                yield info.filename, None
                continue
            whole = folder / f"{number:06d}" / parts[-1]
            if not whole.is_file():
                with _of_archive(path, archive, info) as packed:
                    _write(path, info.compress_size, packed, whole, at_most_bytes(info.filename))
            yield info.filename, whole


def _of_archive(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Readable:
    if info.flag_bits & 1:
        raise DataError(
            f"{path.name} is encrypted",
            f"{info.filename} cannot be read without its password",
            f"unzip {path.name} yourself, and name the folder that comes of it",
        )
    try:
        return archive.open(info)
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _stream(path: Path, packing: Packing) -> Readable:
    if packing == "gzip":
        return gzip.open(path)
    if packing == "bzip2":
        return bz2.open(path)
    if packing == "xz":
        return lzma.open(path)
    stream: Readable = _zstd(path.name).open(path)
    return stream


def _zstd(name: str) -> Any:
    """Python's own module from 3.14 on, else its backport."""
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise ConfigError(
                f"{name} is compressed with Zstandard",
                "Python reads that from version 3.14 on; here it needs the package backports.zstd",
                "pip install 'tunesmith[zst]'",
            ) from None
    return zstd


def _write(path: Path, packed_bytes: int, packed: Readable, whole: Path, at_most_bytes: int | None) -> None:
    """`whole` appears under its name only when all is there."""
    whole.parent.mkdir(parents=True, exist_ok=True)
    unfinished = whole.with_name(f".{whole.name}.unfinished")
    broken = (*_BROKEN, _zstd(path.name).ZstdError) if packing(path) == "zstd" else _BROKEN
    size_bytes = 0
    with open(unfinished, "wb") as file:
        while at_most_bytes is None or size_bytes < at_most_bytes:
            try:
                block = packed.read(_BLOCK_BYTES)
            except broken as error:
                raise _unreadable(path, error, size_bytes) from None
            if not block:
                break
            size_bytes += len(block)
            if size_bytes > max(_BOMB_BYTES, _BOMB_RATIO * packed_bytes):
                raise DataError(
                    f"{path.name} unpacks to more than {_BOMB_RATIO} times its size",
                    f"{packed_bytes / 1e6:,.1f} MB had become {size_bytes / 1e6:,.0f} MB when unpacking was stopped: "
                    "such a file was made to fill a disk",
                    "where it is meant so, unpack it yourself and name the file that comes of it",
                )
            file.write(block)
        else:
            _cut_behind_line(file)
    os.replace(unfinished, whole)


def _cut_behind_line(file: IO[bytes]) -> None:
    """Takes away what stands behind the last line break, if there is one near the end."""
    file.flush()
    with open(file.name, "rb") as written:
        written.seek(-min(_BLOCK_BYTES, file.tell()), os.SEEK_END)
        tail = written.read()
    if (at := tail.rfind(b"\n")) >= 0:
        file.truncate(file.tell() - len(tail) + at + 1)


def _unreadable(path: Path, error: Exception, size_bytes: int = 0) -> DataError:
    cut_off = isinstance(error, EOFError)
    return DataError(
        f"{path.name} cannot be unpacked",
        ("it is cut off: it ends in the middle of its data" if cut_off else f"it is damaged: {error}")
        + (f" ({size_bytes:,} bytes of it can be read)" if size_bytes else ""),
        "copy or download it again, whole",
    )
