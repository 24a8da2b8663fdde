"""What this machine can do, learnt without importing torch."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.records import Decision


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, memory in bytes, and whether the CPU multiplies bf16 in hardware."""

    cores: int
    memory_bytes: int
    bf16: bool
    name: str


def probe() -> Machine:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    flags = next((line.split(":", 1)[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    name = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(cores(), pages, "avx512_bf16" in flags or "amx_bf16" in flags, name)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def threads() -> Decision:
    """One thread a core, less the cores that other processes keep busy: threads wait for each other at every barrier,
    so that two of them on one free core can be several times slower than one."""
    count = cores()
    busy = round(_busy_cores_of_others())
    if busy and count > 1:
        return Decision(max(1, count - busy), f"{count} cores, of which other processes keep about {busy} busy")
    return Decision(count, f"one for each of the {count} cores")


def calm_threads() -> None:
    """Lets OpenMP threads that wait for each other spin only briefly. Must be called before torch is imported.

    libgomp's default spins for milliseconds: on a machine with other work, waiting threads then hold the very core that
    the last one needs. A short spin was no slower on a quiet machine, and several times faster on a busy one.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _busy_cores_of_others(sample_seconds: float = 0.4) -> float:
    def busy_seconds() -> float:
        user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
        mine = os.times()
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - mine.user - mine.system

    if not Path("/proc/stat").is_file():
        return 0.0
    before, started = busy_seconds(), time.monotonic()
    time.sleep(sample_seconds)
    return max(0.0, (busy_seconds() - before) / (time.monotonic() - started))


def reset_peak_memory() -> bool:
    """Starts the peak of resident memory anew; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Peak resident memory of this process since `reset_peak_memory`, or since its start."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
