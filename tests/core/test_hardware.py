"""How many threads a run takes and where they may be, on a quiet machine and on one with other work."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tunesmith.core import hardware


def test_a_core_that_another_process_keeps_busy_is_left_to_it() -> None:
    if hardware.cores() < 2:
        pytest.skip("there is one core")
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        found = hardware.threads()
    finally:
        other.kill()
        other.wait()
    assert 1 <= found.value < hardware.cores()
    assert "other processes keep about" in found.reason


def test_threads_are_bound_only_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    assert hardware.binding().value == "none"
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0-1")
    assert hardware.binding().value == "0-1"
    assert "GOMP_CPU_AFFINITY is set" in hardware.binding().reason
