"""What control groups leave to this process: in a container or a batch job that is less than the machine has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

TOLD = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")

_MEMORY = {  # limit and use of memory, and what the use counts files under; by controller
    "": ("memory.max", "memory.current", ""),  # in the second version there is one for all
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
_NO_LIMIT = 1 << 60  # the first version writes a number near 2^63 where there is none


def memory(told: Path = TOLD, root: Path = ROOT) -> list[tuple[int, int]]:
    """Limit and use in bytes of each group, of either version, that limits memory. What holds files does not count as
    used, whether they were read once or often, since it is let go of at need."""
    found = []
    for controller, folder in _groups(told, root, *_MEMORY):
        limit, used, kind = _MEMORY[controller]
        text = _text(folder / limit)
        if text.isdigit() and int(text) < _NO_LIMIT:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = sum(int(stat.get(f"{kind}{files}_file", 0)) for files in ("active", "inactive"))
            found.append((int(text), int((folder / used).read_text()) - files))
    return found


def cores(told: Path = TOLD, root: Path = ROOT) -> float:
    """Cores whose time the process may use, by the tightest quota; infinite where there is none."""
    least = math.inf
    for controller, folder in _groups(told, root, "", "cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controller else ("cpu.max",)
        numbers = " ".join(_text(folder / name) for name in names).split()
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):  # without a quota: `max`, or -1
            least = min(least, int(numbers[0]) / int(numbers[1]))
    return least


def _groups(told: Path, root: Path, *controllers: str) -> Iterator[tuple[str, Path]]:
    """The process's own groups of these controllers, and all that hold them."""
    for line in told.read_text().splitlines() if told.is_file() else []:
        _, names, path = line.split(":", 2)
        for controller in controllers:
            if controller not in names.split(","):
                continue
            group = root / controller / path.lstrip("/")
            for folder in (group, *group.parents):
                yield controller, folder
                if folder == root / controller:
                    break


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
