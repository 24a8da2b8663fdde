"""Not a test: rows, and the steps before growing, which tests of growing begin with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Grow, Split
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import grow, split
from tunesmith.models.base import Base

SIDES = ("train", "validation", "test")


def row(prompt: str, answer: str = "ok", line: int = 1, pin: str = "auto", **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, f"{pin}.jsonl", line, "messages", split=pin, **more)


def splits(folder: Path, rows: list[Row], **settings: Any) -> Artifact:
    """These rows as the split leaves them."""
    clean = folder / "clean"
    clean.mkdir(parents=True)
    store.write_rows(clean / "rows.jsonl", rows)
    settings = {"validation": 0.0, "test": 0.0, **settings}
    before = Artifact("clean", "0", clean, "done")
    return Steps(folder)("split", split.run, Split.model_validate(settings), [], before)


def grown(
    before: Artifact,
    settings: dict[str, Any],
    clean: Clean | None = None,
    base: Base | None = None,
    system: str | None = None,
    max_quarantined: float = 0.05,
) -> Artifact:
    """What growing makes of a split."""
    steps = Steps(before.folder.parents[2])
    steps.artifacts["split"] = before
    arguments = Grow.model_validate(settings), clean or Clean(), system, max_quarantined, base, before
    return steps("grow", grow.run, *arguments)


def rows_of(artifact: Artifact, side: str = "train") -> list[Row]:
    return store.read_rows(artifact / f"{side}.jsonl")


def reasons_of(artifact: Artifact) -> dict[str, int]:
    """The dropped rows by reason, as they stand on disk."""
    return dict(Counter(item["reason"] for item in store.read_jsonl(artifact / "dropped.jsonl")))


def lines(path: Path, prompts: list[str], answer: str = "Certainly.") -> Path:
    """A file of examples."""
    store.write_jsonl(path, ({"prompt": prompt, "answer": f"{answer} {prompt[-40:]}"} for prompt in prompts))
    return path
