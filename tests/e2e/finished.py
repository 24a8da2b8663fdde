"""What the steps of a finished run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.core import store


def folder_of(shown: tunesmith.Show, step: str) -> Path:
    return next(Path(s.folder) for s in shown.steps if s.step == step)


def summary_of(shown: tunesmith.Show, step: str) -> dict[str, Any]:
    summary: dict[str, Any] = store.read_json(folder_of(shown, step) / "record.json")["summary"]
    return summary
