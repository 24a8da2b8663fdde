"""The data steps of the main job, one after the other in a process of their own: what each takes."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from preparing.processes import answer, asked
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Source, Split
from tunesmith.core.step import Artifact
from tunesmith.data import load, pipeline, split


def main() -> None:
    """With everything that is on by default, and personal data replaced."""
    request = asked()
    out = Path(request["out"])
    steps = {
        "load": partial(load.run, [Source(path=Path(request["rows"]))], None, 0.05),
        "clean": partial(pipeline.run, Clean(personal_data="replace"), _artifact("load", out)),
        "split": partial(split.run, Split(), [], _artifact("clean", out)),
    }
    found: dict[str, Any] = {"seconds": {}, "headlines": {}}
    for name, step in steps.items():
        (out / name).mkdir()
        started = time.perf_counter()
        found["headlines"][name] = step(out / name)["headline"]
        found["seconds"][name] = time.perf_counter() - started
    answer(found)


def _artifact(step: str, out: Path) -> Artifact:
    return Artifact(step, "0", out / step, "done")


if __name__ == "__main__":
    sys.exit(main())
