"""What this machine can do, learnt without importing torch."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil

from tunesmith.core import control_groups
from tunesmith.core.records import Decision

SAMPLE_SECONDS = 0.4


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
    if gpu := _gpu():
        return Machine(cores(), gpu.memory_bytes, gpu.bf16, gpu.name, gpu=True)
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = dict(reversed([line.replace("\t", "").split(":", 1) for line in info.splitlines() if ":" in line]))
    flags = (lines.get("flags") or lines.get("Features") or "").split()  # on ARM they are called features
    bf16 = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return Machine(cores(), _memory_bytes(), bf16, lines.get("model name", "CPU").strip())


def _gpu() -> _Gpu | None:
    """The first NVIDIA GPU that this process may use, as its driver's own tool tells of it; None where torch, as it is
    installed, has no CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not shutil.which("nvidia-smi") or not _torch_has_cuda():
        return None
    which = [f"--id={visible.split(',')[0]}"] if visible else []
    command = ["nvidia-smi", *which, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = [part.strip() for part in done.stdout.partition("\n")[0].split(",")]
    if done.returncode or len(told) != 3 or not told[1].isdigit():
        return None
    return _Gpu(told[0], int(told[1]) << 20, float(told[2]) >= 8.0)


class _Gpu(NamedTuple):
    name: str
    memory_bytes: int
    bf16: bool


def _torch_has_cuda() -> bool:
    """Read from torch's own file: to import torch takes seconds."""
    spec = find_spec("torch")
    told = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return told is not None and told.is_file() and not re.search(r"^cuda\b.*= None$", told.read_text(), re.MULTILINE)


def _memory_bytes() -> int:
    """Physical memory, or the limit of this process's control group where that is lower."""
    physical: int = psutil.virtual_memory().total
    return min([physical, *(limit for limit, _ in control_groups.memory())])


def free_memory_bytes() -> int:
    """What this process could still take without others giving way, within the limits of its control groups."""
    free: int = psutil.virtual_memory().available
    return max(0, min([free, *(limit - used for limit, used in control_groups.memory())]))


def give_memory_back() -> None:
    """Returns what the C library holds of freed memory to the system, where that is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_no_holes() -> None:
    """Has glibc take pieces of 1 MiB or more that find no room in its heap from the system by themselves, from now on,
    and give them back when they are freed. By default that border rises, as pieces are freed, to as much as 32 MiB
    (mallopt(3))."""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 20)


def cores() -> int:
    """As many as this process may run on, or has the time of by its control groups, where that is less."""
    return min(len(_allowed()), max(1, math.ceil(min(control_groups.cores(), 1 << 20))))


def _allowed() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


class Load(NamedTuple):
    """For how many seconds other processes have kept this one's cores busy, at a moment of the monotonic clock; None
    where the system does not tell."""

    busy_seconds: float | None
    at: float


def load() -> Load:
    """The load by now, for a later one to be compared with."""
    stat, at = Path("/proc/stat"), time.monotonic()
    if not stat.is_file():
        return Load(None, at)
    names, mine = {f"cpu{number}" for number in _allowed()}, os.times()
    lines = [line.split() for line in stat.read_text().splitlines()]
    ticks = [list(map(int, fields[1:8])) for fields in lines if fields and fields[0] in names]
    busy = sum(user + nice + system + irq + soft for user, nice, system, _, _, irq, soft in ticks)
    return Load(busy / os.sysconf("SC_CLK_TCK") - mine.user - mine.system, at)


def threads(since: Load | None = None) -> Decision:
    """One thread a core, less the cores that other processes keep busy: threads wait for each other at every barrier,
    so that two of them on one free core can be several times slower than one. They are looked at from `since` on, for
    SAMPLE_SECONDS at least."""
    count = cores()
    busy = round(_busy_cores_of_others(since or load()))
    if (free := len(_allowed()) - busy) < count and count > 1:
        return Decision(max(1, free), f"{len(_allowed())} cores, of which other processes keep about {busy} busy")
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


def keep_out_compiler() -> None:
    """Leaves torch's compiler alone in this process on a CPU, where nothing of ours needs it: bitsandbytes, which PEFT
    imports where it is installed, would load it, for a second. Only for a process that is tunesmith's own: who imports
    tunesmith may want to compile. Must be called before torch is imported."""
    if not probe().gpu:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _busy_cores_of_others(since: Load) -> float:
    if since.busy_seconds is None:
        return 0.0
    time.sleep(max(0.0, since.at + SAMPLE_SECONDS - time.monotonic()))
    now = load()
    assert now.busy_seconds is not None
    return max(0.0, (now.busy_seconds - since.busy_seconds) / (now.at - since.at))


def reset_peak_memory() -> bool:
    """Starts the peak of resident memory anew; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Resident memory of this process."""
    held: int = psutil.Process().memory_info().rss
    return held


def peak_memory_bytes() -> int:
    """Peak resident memory of this process since `reset_peak_memory`, or since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    told = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return told or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
