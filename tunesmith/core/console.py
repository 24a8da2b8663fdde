"""What a person sees while work goes on: bars on a terminal, plain lines in a pipe. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_SECONDS = 15.0  # between two lines in a pipe

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def say(line: str) -> None:
    err.print(line, markup=False)


def counted(count: int, what: str) -> str:
    """1 row, 1,200 rows."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class Bar(Protocol):
    def advance(self, amount: float, note: str = "") -> None:
        """Moves on by `amount` units; `note` replaces the text behind the bar."""


class _Rich:
    def __init__(self, bars: Progress, task: TaskID, unit: str) -> None:
        self.bars, self.task, self.unit, self.started, self.done = bars, task, unit, time.monotonic(), 0.0

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        rate = self.done / max(time.monotonic() - self.started, 1e-6)
        self.bars.update(self.task, advance=amount, note=f"{rate:,.0f} {self.unit}/s {note}")


class _Plain:
    def __init__(self, label: str, total: float, unit: str, before: float) -> None:
        self.label, self.total, self.unit, self.before = label, total, unit, before
        self.started = self.printed = time.monotonic()
        self.done = before

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= _PLAIN_SECONDS:
            self.printed = now
            rate = (self.done - self.before) / (now - self.started)
            left_seconds = (self.total - self.done) / max(rate, 1e-9)
            say(
                f"{self.label}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.{0 if rate > 9 else 1}f}/s, "
                f"{left_seconds:,.0f} s left {note}".rstrip()
            )


@contextmanager
def progress(label: str, total: float, unit: str, before: float = 0.0) -> Iterator[Bar]:
    """A bar over `total` units with its rate and the time left; in a pipe, a line every fifteen seconds. `before` units
    were done by an earlier run, and count for neither."""
    if not err.is_terminal:
        yield _Plain(label, total, unit, before)
        return
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield _Rich(bars, bars.add_task(label, total=total, completed=int(before), note=""), unit)
