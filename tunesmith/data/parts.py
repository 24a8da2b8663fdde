"""Files of any length, a part at a time: each part is work by itself, done on every core, and what is done stays done.

A part is a stretch of a file that holds whole lines. A job reads one and writes what it makes of it into a folder of
its own, which appears under its name only when the job has come to its end. So memory does not grow with the file, a
run that was killed finds the finished parts again, and whoever reads the folders in their order sees what one long run
would have written. What many rows decide together (which of them repeat one another) is no job's business: jobs leave
a few numbers for each row, and these are looked at in one place.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tunesmith.core import hardware, store
from tunesmith.core.console import progress
from tunesmith.core.errors import ConfigError, ResourceError, UserError

PART_BYTES = 1 << 20

_WORTH_BYTES = 6 << 20  # of rows; fewer are done before another process has started
_IDLE_SECONDS = 10  # after which a process ends that nobody gives work to: who started it may have been killed
_BLOCK_BYTES = 1 << 18
_FOUND = "found.json"
_ON_RAY = ContextVar("_ON_RAY", default=False)


@dataclass(frozen=True)
class Part:
    """The lines of a file from byte `start` to byte `stop`: how many, and how many stand before them. `source` and
    `name` tell one file from another where several are worked on together."""

    path: Path
    start: int
    stop: int
    lines: int
    before: int
    source: int = 0
    name: str = ""

    def read(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left > 0:
                line = file.readline()
                left -= len(line)
                yield line


@dataclass(frozen=True)
class Done:
    """What a job left: files in a folder, and what it returned."""

    folder: Path
    found: dict[str, Any]


Job = Callable[[Part, Path], dict[str, Any]]  # a function of a module, which other processes can import


def cut(path: Path, size_bytes: int = PART_BYTES) -> Iterator[Part]:
    """The parts of a file, in their order. What ends a line is what Python's `open` takes for an end of line."""
    start = before = lines = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            block += b"" if block.endswith(b"\n") else file.readline()
            ends = block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            lines += ends + (not block.endswith((b"\n", b"\r")))
            if file.tell() - start >= size_bytes:
                yield Part(path, start, file.tell(), lines, before)
                start, before, lines = file.tell(), before + lines, 0
        if lines:
            yield Part(path, start, file.tell(), lines, before)


@contextmanager
def workplace(kept: Path | None, out: Path) -> Iterator[Path]:
    """Where parts are worked on: in a folder that outlives a kill, if there is one, else in a passing one beside the
    results."""
    folder = (kept or out) / ".parts"
    try:
        yield folder
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def each(label: str, job: Job, parts: Iterable[Part], kept: Path) -> list[Done]:
    """What the job makes of each part, in their order. What `kept` has from an earlier run is not made again.

    Raises what the job raises, and ResourceError where a process is killed."""
    work = [(part, kept / f"{number:06d}") for number, part in enumerate(parts)]
    missing = [part for part, folder in work if not (folder / _FOUND).is_file()]
    kept.mkdir(parents=True, exist_ok=True)
    alone = sum(part.stop - part.start for part in missing) < _WORTH_BYTES
    outcomes = _outcomes(job, work, 1 if alone else min(hardware.cores(), len(missing)))
    with progress(label, sum(part.stop - part.start for part, _ in work), "bytes") as bar:
        done = []
        for outcome, (part, _) in zip(outcomes, work):  # in this order, so that the outcomes come to their end
            bar.advance(part.stop - part.start, part.path.name)
            done.append(outcome)
    return done


def concatenate(files: Iterable[Path], whole: Path) -> None:
    """One file of many."""
    with open(whole, "wb") as into:
        for path in files:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, into)


@contextmanager
def on_ray(address: str) -> Iterator[None]:
    """Within it, parts are worked on by a Ray cluster, whose machines see the files under the same paths: `local` for
    one that is started here, `auto` for the one that runs, or its address.

    Raises ConfigError where Ray is not installed, ResourceError where there is no such cluster."""
    try:
        import ray.data
    except ImportError:
        raise ConfigError(
            "Ray is not installed", "`--ray` has a cluster do the work", "pip install 'tunesmith[ray]'"
        ) from None
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ResourceError(
            f"there is no Ray cluster at {address}", first, "ray start --head, or --ray local"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    before = _ON_RAY.set(True)
    try:
        yield
    finally:
        _ON_RAY.reset(before)
        ray.shutdown()


def _outcomes(job: Job, work: list[tuple[Part, Path]], processes: int) -> Iterator[Done]:
    if _ON_RAY.get() and work:
        return _by_ray(job, work)
    if processes > 1:
        return _in_processes(job, work, processes)
    return (_do(job, *one, os.getpid()) for one in work)


def _by_ray(job: Job, work: list[tuple[Part, Path]]) -> Iterator[Done]:
    """By Ray Data, a task for each part. What is found goes by the disk, where whoever reads the parts looks anyway."""
    import ray

    def done(row: dict[str, int]) -> dict[str, Any]:
        try:
            _do(job, *work[row["number"]], None)
        except UserError as error:
            return {**row, "error": pickle.dumps(error)}
        return {**row, "error": b""}

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    numbers = [{"number": number} for number in range(len(work))]
    for row in ray.data.from_items(numbers, override_num_blocks=len(numbers)).map(done).iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        folder = work[row["number"]][1]
        yield Done(folder, store.read_json(folder / _FOUND))


def _in_processes(job: Job, work: list[tuple[Part, Path]], processes: int) -> Iterator[Done]:
    """A thread for each process takes the next part. One of them works on it here, where it can begin before another
    process has started."""
    helpers, threads = _helpers(processes - 1), ThreadPoolExecutor(processes)
    here, asking = threading.Lock(), threading.Lock()

    def done(part: Part, folder: Path) -> Done:
        if here.acquire(blocking=False):
            try:
                return _do(job, part, folder, os.getpid())
            finally:
                here.release()
        with asking, _deaf():
            asked: Future[Done] = helpers.submit(_do, job, part, folder, os.getpid())
        return asked.result()

    def end() -> None:
        with asking:  # what is asked in the midst of it would be left running
            helpers.shutdown(wait=True, kill_workers=True)

    is_done = False
    try:
        for outcome in [threads.submit(done, *one) for one in work]:
            yield outcome.result()
        is_done = True
    except BrokenProcessPool:
        raise ResourceError(
            "a process that read rows was killed",
            "most often because memory is short: then the system ends the process that needs the most",
            "free some memory, then run the same command again: what was read stays read",
        ) from None
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        if not is_done:
            _helpers.cache_clear()
            ending = threading.Thread(target=end)  # which a second Ctrl-C does not reach
            ending.start()
            ending.join()
        threads.shutdown(wait=True)


@lru_cache(maxsize=1)
def _helpers(processes: int) -> Any:
    """Processes that one step after the other gives work to, since each takes a second to start."""
    from joblib.externals.loky import ProcessPoolExecutor  # a fifth of a second, which short files need not wait

    return ProcessPoolExecutor(processes, timeout=_IDLE_SECONDS)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started within it never hear Ctrl-C, which a terminal sends to all: it is this one that ends
    them. In a thread that is not the main one, which goes on hearing it."""
    resource_tracker.ensure_running()  # up to Python 3.13 it lets Ctrl-C through again when it has started
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _do(job: Job, part: Part, folder: Path, asker: int | None) -> Done:
    """The folder appears whole or not at all. Whoever was asked by a process that is gone since publishes nothing: it
    may have been killed, and another run may be at work in its place. (Ray ends the tasks of a run that is gone.)"""
    if (folder / _FOUND).is_file():
        return Done(folder, store.read_json(folder / _FOUND))
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    gc.disable()  # rows hold no cycles, and to look for some among a part's many objects takes a tenth of the time
    try:
        found = job(part, unfinished)
    finally:
        gc.enable()
    store.write_json(unfinished / _FOUND, found)
    if asker in (None, os.getpid(), os.getppid()):
        os.rename(unfinished, folder)
    return Done(folder, found)
