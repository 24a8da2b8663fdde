"""What became of rows, on disk and in figures: each dropped row with its reason, its detail and its stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

from tunesmith.core.records import Dropped


class Drops:
    """Writes `dropped.jsonl`, and counts by stage and reason."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self.counts: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Drops:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def add(self, dropped: Dropped, stage: str) -> None:
        self.counts[stage, dropped.reason] += 1
        told = {"reason": dropped.reason, "detail": dropped.detail, "stage": stage}
        self.file.write(orjson.dumps({**dropped.row.to_json(), **told}, option=orjson.OPT_APPEND_NEWLINE))

    def of(self, stage: str) -> int:
        return sum(count for (its, _), count in self.counts.items() if its == stage)

    @property
    def reasons(self) -> dict[str, int]:
        """Rows by reason, commonest first."""
        found: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            found[reason] += count
        return dict(found.most_common())
