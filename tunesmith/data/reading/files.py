"""Files as records: JSON Lines, JSON, CSV, TSV, Parquet and plain text, told apart by name and by content.

A file that cannot be read at all is a DataError. JSON Lines, CSV and text are streamed; a JSON array is read as a
whole, Parquet by batches of rows. The formats themselves are read in readers.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tunesmith.core.errors import DataError
from tunesmith.data.parts import Part, cut
from tunesmith.data.reading import readers
from tunesmith.data.reading.readers import Record
from tunesmith.data.reading.values import Unusable, decode

Format = Literal["lines", "json", "csv", "tsv", "parquet", "text"]

_HEAD_BYTES = 1 << 16  # what is looked at to tell formats apart
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
EXAMPLES = "JSONL, JSON, CSV, TSV or Parquet files"
DOCUMENTS = (".html", ".htm", ".pdf", ".docx", ".srt", ".vtt")  # documents.py reads them

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"PK\x03\x04": ("ZIP or Excel", "unzip, or save the sheet as CSV"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


def pieces(path: Path) -> Iterator[Part]:
    """The parts of which a file's records can be read by themselves: of lines, or the whole; raises DataError where
    there is nothing to read."""
    if format_of(path, _head(path)) in ("lines", "text"):
        yield from cut(path)
    else:
        yield Part(path, 0, path.stat().st_size, 0, 0)


def records(path: Path) -> Iterator[Record]:
    """The records of a file in their order; raises DataError where there is nothing to read."""
    for part in pieces(path):
        yield from records_of(part)


def records_of(part: Part) -> Iterator[Record]:
    """The records of one of a file's pieces."""
    path = part.path
    head = _head(path)
    format = format_of(path, head)
    if format == "parquet":
        yield from readers.of_parquet(path)
    elif format == "json":
        yield from readers.of_json(path)
    elif format in ("csv", "tsv"):
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from readers.of_csv(path, file, "\t" if format == "tsv" else readers.delimiter(head))
    else:
        yield from readers.of_lines(_texts(part), part.before + 1, as_json=format == "lines")


def _texts(part: Part) -> Iterator[str]:
    """The lines of a part as `open` would give them: a lone carriage return ends one, too."""
    encoding = "utf-8" if part.start else "utf-8-sig"
    for line in part.read():
        text = line.decode(encoding, "surrogateescape")
        yield from io.StringIO(text, newline="") if "\r" in text else (text,)
        encoding = "utf-8"


def holds_records(name: str) -> bool:
    """Whether a file of this name is a table or a list of records."""
    return _SUFFIXES.get(Path(name).suffix.lower(), "text") != "text"


def why_not(name: str, texts: bool) -> str | None:
    """Why a file of this name is not read for examples where it stands among others; None where it is. `texts`: whether
    plain text can become examples."""
    suffix = Path(name).suffix.lower()
    format = _SUFFIXES.get(suffix)
    if format is None:
        return "documents, not examples" if suffix in DOCUMENTS else "of a kind that holds no examples"
    return "text has no answers" if format == "text" and not texts else None


def format_of(path: Path, head: bytes) -> Format:
    """How a file is to be read; `head` is its beginning. The content overrules a name that it cannot have."""
    format = _SUFFIXES.get(path.suffix.lower())
    first, _, more = head.decode("utf-8-sig", "replace").lstrip().partition("\n")
    first = first.strip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if format is None and first[:1] in ("{", "["):
        format = "json"
    if format is None and any(mark in first for mark in ",;\t"):
        return "csv"
    if format is None:
        raise DataError(
            f"{path.name} is of a kind that tunesmith does not read",
            f"its name ends in `{path.suffix}`, and it begins neither like JSON nor like a table",
            "name it .jsonl, .json, .csv, .tsv, .parquet or .txt, whichever it is",
        )
    if format == "lines" and (first in ("{", "[") or _begins_array(first, more)):
        return "json"
    if format == "json" and first.startswith("{") and more.strip() and _is_json(first):
        return "lines"
    return format


def _begins_array(first: str, more: str) -> bool:
    """Whether the first line begins an array of objects that goes on behind it, or is the whole file."""
    return bool(re.match(r"\[\s*\{", first)) and not (more.strip() and _is_json(first))


def _is_json(text: str) -> bool:
    try:
        decode(text)
    except Unusable:
        return False
    return True


def _head(path: Path) -> bytes:
    """The beginning of the file; raises DataError for what cannot be examples as text or Parquet."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path.name} cannot be opened", error.strerror or str(error), f"check {path}") from None
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(
            f"{path.name} holds no records",
            f"its first {len(head):,} bytes are blank" if head else "the file is empty",
            "write the file again, or take it out of data.sources",
        )
    if path.suffix.lower() in DOCUMENTS:
        raise DataError(
            f"{path.name} is a document, and holds no conversations",
            "data.sources names files of examples, each with a prompt and its answer",
            "name it under `pretrain.texts`, or under `data.grow.synthesise.questions.documents`",
        )
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path.name} is compressed ({name})",
                "a compressed file is unpacked once, and a ZIP file only where its name ends in .zip",
                f"unpack it ({command}) and name the result in data.sources",
            )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (not head.startswith(b"PAR1") and head.count(0) > len(head) // 4):
        raise DataError(
            f"{path.name} is not UTF-8 text",
            "it looks like UTF-16, as Windows programs write it",
            f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}, and name that file in data.sources",
        )
    if re.match(rb"\s*<(!doctype html|html)\b", head, re.IGNORECASE) and path.suffix.lower() != ".txt":
        raise DataError(
            f"{path.name} is a web page",
            "it begins with an HTML tag: often a login or error page was saved instead of the file",
            "download the raw file again",
        )
    return head
