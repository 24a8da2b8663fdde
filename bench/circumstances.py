"""Where and with what a figure was measured."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.core import hardware

_PACKAGE = Path(__file__).resolve().parents[1] / "tunesmith"


def found_in(packages: Iterable[str], engine: Iterable[str]) -> dict[str, Any]:
    """The time, the machine, the versions of these packages, and a fingerprint of our code in these folders."""
    machine = hardware.probe()
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "name": machine.name,
            "cores": machine.cores,
            "memory_gb": round(machine.memory_bytes / 1e9, 1),
            "bf16": machine.bf16,
            "system": platform.platform(),
            "load_average": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "engine": fingerprint(engine),
    }


def kind_of_machine() -> str:
    """Figures are kept by kind: what is fastest on the one, for us and for others, is slow on the other."""
    machine = hardware.probe()
    return f"{'gpu' if machine.gpu else 'cpu'}-{'bf16' if machine.bf16 else 'fp32'}"


def fingerprint(folders: Iterable[str]) -> str:
    """Changes with the code that computes: figures of one engine are not those of another."""
    paths = sorted(path for folder in folders for path in (_PACKAGE / folder).rglob("*.*"))
    texts = [path.read_bytes() for path in paths if path.suffix in (".py", ".cpp", ".h")]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]
