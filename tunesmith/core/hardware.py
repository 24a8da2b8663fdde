"""What this machine can do, learnt without importing torch."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.records import Decision


@dataclass(frozen=True)
class Machine:
    """Where training will run: cores that this process may use; memory in bytes and bf16 arithmetic of the GPU if there
    is one, else of this machine."""

    cores: int
    memory_bytes: int
    bf16: bool
    name: str
    gpu: bool = False


def probe() -> Machine:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    flags = next((line.split(":", 1)[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    name = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    gpu = _gpu()
    if gpu:
        return Machine(cores(), gpu[1], True, gpu[0], gpu=True)
    return Machine(cores(), _memory_bytes(), "avx512_bf16" in flags or "amx_bf16" in flags, name)


def _gpu() -> tuple[str, int] | None:
    """Name and memory of the first NVIDIA GPU, as its driver's own tool tells them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    name, _, mebibytes = done.stdout.partition("\n")[0].rpartition(",")
    return (name.strip(), int(mebibytes) << 20) if done.returncode == 0 and mebibytes.strip().isdigit() else None


def _memory_bytes() -> int:
    """Physical memory, or the limit of this process's control group where that is lower."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(physical, int(text)) if text.isdigit() else physical


def free_memory_bytes() -> int:
    """What this process could still take without others giving way, within its control group's limit; half of what
    there is where the system does not tell."""
    if not Path("/proc/meminfo").is_file():
        return _memory_bytes() // 2
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])  # files are let go of at need
        free = min(free, int(text) - used)
    return max(0, free)


def give_memory_back() -> None:
    """Returns what the C library holds of freed memory to the system, where that is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
    return len(_allowed())


def _allowed() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def threads() -> Decision:
    """One thread a core, less the cores that other processes keep busy: threads wait for each other at every barrier,
    so that two of them on one free core can be several times slower than one."""
    count = cores()
    busy = round(_busy_cores_of_others())
    if busy and count > 1:
        return Decision(max(1, count - busy), f"{count} cores, of which other processes keep about {busy} busy")
    return Decision(count, f"one for each of the {count} cores")


def binding() -> Decision:
    """Whether OpenMP keeps threads on their cores: only if the user says so. A bound thread waits for its core where
    another program holds it, and all others wait for that thread (docs/log.md)."""
    for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY"):
        if name in os.environ:
            return Decision(os.environ[name], f"{name} is set")
    return Decision("none", "a thread may leave a core that another program wants")


def calm_threads() -> None:
    """Lets OpenMP threads that wait for each other spin only briefly. Must be called before torch is imported.

    libgomp's default spins for milliseconds: on a machine with other work, waiting threads then hold the very core that
    the last one needs. A short spin was no slower on a quiet machine, and several times faster on a busy one.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _busy_cores_of_others(sample_seconds: float = 0.4) -> float:
    names = {f"cpu{number}" for number in _allowed()}

    def busy_seconds() -> float:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ticks = [list(map(int, fields[1:8])) for fields in lines if fields and fields[0] in names]
        busy = sum(user + nice + system + irq + soft for user, nice, system, _, _, irq, soft in ticks)
        mine = os.times()
        return busy / os.sysconf("SC_CLK_TCK") - mine.user - mine.system

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


def resident_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present."""
    return _status_bytes("VmRSS") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process since `reset_peak_memory`, or since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))
