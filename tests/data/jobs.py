"""Not a test: what test_parts.py has processes do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data import parts


def counted(part: parts.Part, folder: Path) -> dict[str, Any]:
    (folder / "lines").write_bytes(b"".join(part.read()))
    return {"lines": part.lines, "process": os.getpid()}


def refused(part: parts.Part, folder: Path) -> dict[str, Any]:
    raise DataError("this part is refused", f"it begins at {part.start}", "nothing")


def killed(part: parts.Part, folder: Path) -> dict[str, Any]:
    """As the system does it where memory is short, if it is another process than the test's own."""
    if os.getpid() != int(os.environ["TESTS"]):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    return {}
