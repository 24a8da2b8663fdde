"""What a step vouches for, beside the files that it vouches for: whoever reads them can see that they are still those.

`certificate.json` holds facts, `leaks` among them (how many rows of the exam are known to training), and the SHA-256 of
each file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.errors import DataError

_NAME = "certificate.json"


def seal(folder: Path, facts: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Writes the certificate of these files, which are finished."""
    certificate = {**facts, "files": {name: store.digest(folder / name) for name in names}}
    store.write_json(folder / _NAME, certificate)
    return certificate


def require(folder: Path) -> dict[str, Any]:
    """The certificate of the files in a folder. Raises DataError where there is none, where a file is no longer the one
    that it is about, or where it tells of leaks."""
    again = "tunesmith run --force split, to split the rows anew"
    if not (folder / _NAME).is_file():
        raise DataError(f"{folder} has no certificate", "nothing says that training does not know the exam", again)
    try:
        certificate: dict[str, Any] = store.read_json(folder / _NAME)
        files, leaks = certificate["files"].items(), int(certificate["leaks"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{folder / _NAME} is damaged", "it is not as it was written", again) from None
    for name, digest in files:
        if not (folder / name).is_file() or store.digest(folder / name) != digest:
            raise DataError(
                f"{folder / name} is not the file that was certified",
                "it was changed or removed since, so nothing says that training does not know the exam",
                again,
            )
    if leaks:
        raise DataError(f"{leaks:,} rows of the exam are known to training", f"so {_NAME} says", again)
    return certificate
