"""How many threads a run takes and where they may be, on a quiet machine and on one with other work."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.core import control_groups, hardware


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


def test_work_of_this_process_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that began before it takes no time of its own."""
    monkeypatch.setattr(hardware, "SAMPLE_SECONDS", 0.5)
    since, own = hardware.load(), time.process_time()
    while time.monotonic() < since.at + 0.6:
        pass
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    found = hardware.load()
    hardware.threads(since)
    assert slept == [0.0]
    if since.busy_seconds is not None:
        assert found.busy_seconds is not None
        others = (found.at - since.at) * hardware.cores() - (time.process_time() - own)
        assert found.busy_seconds - since.busy_seconds < 0.2 + others


def test_torchs_compiler_is_kept_out_on_a_cpu_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    hardware.keep_out_compiler()
    assert os.environ["TORCHDYNAMO_DISABLE"] == "0"
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    hardware.keep_out_compiler()
    assert os.environ.pop("TORCHDYNAMO_DISABLE", None) == (None if hardware.probe().gpu else "1")


def test_threads_are_bound_only_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    assert hardware.binding().value == "none"
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0-1")
    assert hardware.binding().value == "0-1"
    assert "GOMP_CPU_AFFINITY is set" in hardware.binding().reason


@pytest.mark.parametrize(
    ("told", "files"),
    [
        ("0::/jobs/one\n", {
            "jobs/memory.max": "900", "jobs/memory.current": "700",
            "jobs/memory.stat": "anon 1\ninactive_file 100\nactive_file 200",
            "jobs/one/memory.max": "max", "jobs/one/memory.current": "5", "jobs/one/memory.stat": "inactive_file 0"}),
        ("3:cpu:/x\n4:memory:/jobs/one\n0::/\n", {
            "memory/jobs/memory.limit_in_bytes": "900", "memory/jobs/memory.usage_in_bytes": "700",
            "memory/jobs/memory.stat": "active_file 9\ntotal_inactive_file 100\ntotal_active_file 200",
            "memory/memory.limit_in_bytes": str((1 << 63) - 4096)}),
    ],
)  # fmt: skip
def test_limits_of_control_groups_are_seen_wherever_they_are_set(
    tmp_path: Path, told: str, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "told").write_text(told)
    assert control_groups.memory(tmp_path / "told", tmp_path) == [(900, 400)]


@pytest.mark.parametrize(
    ("told", "files", "cores"),
    [
        ("0::/jobs/one\n", {"jobs/cpu.max": "150000 100000", "jobs/one/cpu.max": "max 100000"}, 1.5),
        ("0::/jobs/one\n", {"jobs/one/cpu.max": "max 100000"}, float("inf")),
        ("4:cpu,cpuacct:/one\n", {
            "cpu/one/cpu.cfs_quota_us": "200000", "cpu/one/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ("", {}, float("inf")),
    ],
)  # fmt: skip
def test_a_container_has_the_cores_that_its_quota_pays_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, files: dict[str, str], cores: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "told").write_text(told)
    assert control_groups.cores(tmp_path / "told", tmp_path) == cores
    monkeypatch.setattr(control_groups, "cores", lambda: 1.2)
    monkeypatch.setattr(hardware, "_allowed", lambda: set(range(64)))
    assert hardware.cores() == 2
    monkeypatch.setattr(hardware, "_busy_cores_of_others", lambda since: 40.0)
    assert hardware.threads().value == 2  # of the 24 that are free
    monkeypatch.setattr(hardware, "_busy_cores_of_others", lambda since: 63.0)
    assert hardware.threads().value == 1


def test_memory_that_is_free_is_no_more_than_there_is() -> None:
    assert 0 < hardware.free_memory_bytes() < hardware.probe().memory_bytes
    assert 0 < hardware.resident_bytes() <= 1.01 * hardware.peak_memory_bytes()


@pytest.fixture
def old_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's tool of a machine with a GPU that has no bf16 arithmetic."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_planned_for_only_where_training_can_use_it(old_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert hardware.probe().gpu == (torch.version.cuda is not None)
    monkeypatch.setattr(hardware, "_torch_has_cuda", lambda: True)
    found = hardware.probe()
    assert (found.name, found.memory_bytes, found.bf16, found.gpu) == ("Tesla T4", 15360 << 20, False, True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not hardware.probe().gpu


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back in ways of their own")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_pieces_leave_no_holes(kept: bool) -> None:
    """Of a hundred pieces of 2 MiB every other one is freed, after a larger one raised glibc's border."""
    work = f"""
import numpy as np
from tunesmith.core import hardware
large = np.ones(30 << 20, np.uint8)
del large
if not {kept}:
    hardware.keep_no_holes()
pieces = [np.ones(2 << 20, np.uint8) for _ in range(100)]
full = hardware.resident_bytes()
del pieces[::2]
print(full - hardware.resident_bytes() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert int(done.stdout) in (range(-5, 20) if kept else range(95, 102))
