"""Ctrl-C, and the SIGTERM that schedulers send before they kill.

Between steps of work a signal ends the program at once. Work that can be saved runs under `deferred`: the first signal
only asks, so that the work can come to a good end; the second one ends at once after all. If the work was at its end
already, the step that it belongs to is finished first (`late`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Asked = Callable[[], int | None]  # the signal that asked for an end, if one did

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_late: list[int] = []  # a signal that asked for an end when there was nothing more to save


class Interrupted(BaseException):
    """The program was told to end. `saved` says what was saved before, if anything was.

    An exception of our own, because the command-line library turns KeyboardInterrupt into `Aborted`.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(saved)
        self.number, self.saved = number, saved

    @property
    def exit_status(self) -> int:
        """As a shell tells it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def install() -> None:
    """Makes Ctrl-C and SIGTERM raise Interrupted."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def deferred(told: str) -> Iterator[Asked]:
    """Within it, the first signal prints `told` and is then returned by `asked()`; the second raises Interrupted."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise Interrupted(number)
        asked.append(number)
        os.write(2, f"\n{told}\n".encode())  # not through a buffer, which the signal may have found half written

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals reach the main thread only
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: asked[0] if asked else None
        _late[:] = asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def late() -> Iterator[None]:
    """A signal that `deferred` work within it could not heed any more ends the program when the block is done."""
    _late.clear()
    yield
    if _late:
        raise Interrupted(_late[0])
