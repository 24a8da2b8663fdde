"""Signals: at once between steps of work, after the work that can be saved, and at once when asked twice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tunesmith.core import interrupt
from tunesmith.core.interrupt import Interrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts this process's own handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_at_once(number: int, status: int) -> None:
    interrupt.install()
    with pytest.raises(Interrupted) as stop:
        os.kill(os.getpid(), number)
    assert stop.value.exit_status == status
    assert stop.value.saved == ""


def test_the_first_signal_only_asks_and_the_second_ends(capfd: pytest.CaptureFixture[str]) -> None:
    interrupt.install()
    with interrupt.deferred("saving") as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == signal.SIGTERM
        assert "saving" in capfd.readouterr().err
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.value.number == signal.SIGINT


def test_a_signal_that_comes_too_late_ends_the_program_after_the_step() -> None:
    interrupt.install()
    done = []
    with pytest.raises(Interrupted) as stop:
        work(done)
    assert done == ["trained", "published"]
    assert stop.value.number == signal.SIGINT
    with interrupt.late():
        done.append("the next step")


def work(done: list[str]) -> None:
    with interrupt.late():
        with interrupt.deferred("saving"):
            done.append("trained")
            os.kill(os.getpid(), signal.SIGINT)
        done.append("published")


def test_afterwards_signals_are_as_they_were() -> None:
    interrupt.install()
    before = signal.getsignal(signal.SIGINT)
    with interrupt.deferred("saving"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_asked() -> None:
    """A notebook or a server may train in one; signals reach the main thread only."""
    found: list[int | None] = []

    def work() -> None:
        with interrupt.deferred("saving") as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
