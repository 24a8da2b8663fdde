"""What this machine can do, learnt without importing torch."""

from __future__ import annotations

import os
import resource
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
    """One thread a core, less those that other processes keep busy: threads that wait for each other at every barrier
    make two on a busy core several times slower than one."""
    count = cores()
    busy = round(os.getloadavg()[0])
    free = max(1, count - busy)
    if busy and free < count:
        return Decision(free, f"{count} cores, of which other processes have kept about {busy} busy over the last minute")
    return Decision(count, f"one for each of the {count} cores")


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
