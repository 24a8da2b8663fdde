"""How much memory a run will take, measured before its first step, or before it goes on where less is free by then.

A formula knows shapes; it does not know the library, the kernels and the allocator. So the micro-batch that takes most
of all the run's, which is known because the order of the rows is, goes forward and backward once; before it the longest
row, where it is not plain that memory suffices. To what that takes come the optimizer's moments, which the
first step allocates, and what matrix products of every further size leave behind: on a CPU, oneDNN keeps the machine
code that it makes for a shape (docs/log.md). If the sum is more than there is, micro-batches become smaller: sums over
an optimizer step, and with them the result, stay the same.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from tunesmith.core import hardware
from tunesmith.core.errors import ResourceError
from tunesmith.models.packed import beginnings, pack, rounded
from tunesmith.models.tokens import Tokens
from tunesmith.train.batches import passes

SHARE = 0.85  # of the memory that is free: the rest is for the disk cache and other programs
MARGIN = 1.05  # of the forecast over what was measured: holes in the heap, the optimizer's step, runs that differ
NEAR = 0.98  # of the forecast: what would come past it gives free memory back to the system first
LITTLE = 0.005  # of the peak: what all further sizes leave behind is not looked at more closely if it is less
LOOK_SECONDS = 0.002  # between two looks at what the process holds, where the system does not tell its peak
LOOKED_AT = 512  # micro-batches whose sizes are counted
KEPT = 2  # times what all matrices of a model take in and give for a token: our layers keep less (docs/log.md)
NOT_ENOUGH = sys.maxsize

Rows = list[int]
T = TypeVar("T")


class Exhausted(Exception):
    """A pass needed more memory than there is, in this process or in one of those that train with it."""


@dataclass(frozen=True)
class Rehearsal:
    """What a forward and backward pass took: the process's bytes before it, at its peak and when all was done."""

    before: int
    peak: int
    after: int


@dataclass(frozen=True)
class Room:
    """Bytes that the process may come to hold, and those that it holds now; those of summed gradients, those that the
    optimizer will yet allocate, and more than a pass takes for each of its tokens, where anybody can say."""

    limit: int
    held: int
    gradients: int
    pending: int
    token: int | None

    def plainly_holds(self, tokens: int) -> bool:
        """Whether a pass of so many tokens need not be tried on a shorter one first."""
        known = self.held + self.gradients + self.pending
        return self.token is not None and known + self.token * tokens <= self.limit


@dataclass(frozen=True)
class Forecast:
    """Tokens of a micro-batch at most, the peak bytes of the process in a run with such micro-batches, and the bytes
    that a pass takes for each of its tokens."""

    micro_batch_tokens: int
    peak_bytes: int
    token_bytes: float
    reason: str = ""


class Heap:
    """A place for each pass, so that the process stays below its forecast, on a CPU.

    A pass of a new size leaves machine code behind. Made amid the pass, that code would lie scattered where the pass's
    tensors lay, and cut the heap into pieces into which later tensors do not fit. The C library gives every thread a
    part of the heap of its own: so a pass of a new size runs in another thread. What holes there still are go back to
    the system before a pass that would else come too near to the forecast. (To give all free memory back after every
    pass would cost a tenth of the speed.)
    """

    def __init__(self, held_bytes: Callable[[], int]) -> None:
        """`held_bytes` tells how much of what steps made is still there, and takes room that passes had: gradients,
        between the passes of a step, and what the optimizer keeps."""
        self._held_bytes = held_bytes
        self._sizes = set[tuple[int, bool]]()
        self._room = 0  # bytes that what passes make has had at most, since free memory was given back

    @contextmanager
    def place(self, size: tuple[int, bool], forecast: Forecast | None) -> Iterator[Callable[[Callable[[], T]], T]]:
        """What runs a pass, and what may follow it before free memory is given back. `size` is the pass's tokens, and
        whether it goes backward."""
        held, new = self._held_bytes(), size not in self._sizes
        needs = held + int(size[0] * forecast.token_bytes) if forecast else held
        more = max(0, needs - self._room)
        if new or (forecast and hardware.resident_bytes() + more > NEAR * forecast.peak_bytes):
            self._give_back()
        if not new:
            self._room = max(self._room, needs)
            yield here
            return
        self._sizes.add(size)
        try:
            yield _aside
        finally:
            self._give_back()

    def _give_back(self) -> None:
        hardware.give_memory_back()
        self._room = self._held_bytes()


def here(one_pass: Callable[[], T]) -> T:
    return one_pass()


def _aside(one_pass: Callable[[], T]) -> T:
    """In a thread that ends with the pass: OpenMP's threads wait in shorter spins while there are more than cores."""
    with ThreadPoolExecutor(1, "pass", torch.set_num_threads, (torch.get_num_threads(),)) as thread:
        found = thread.submit(one_pass).result()
    hardware.give_memory_back()  # what the pass had is of no use to the sums of gradients, which come next
    return found


def rehearse(one_pass: Callable[[], None], forget: Callable[[], None]) -> Rehearsal:
    """Measures a pass; `forget` throws away what it leaves. Raises what the pass raises, out of memory too."""
    hardware.give_memory_back()
    before = resident_bytes()
    try:
        with _watched() as peak_since:
            one_pass()
            peak = peak_since()
    finally:
        forget()
    hardware.give_memory_back()
    return Rehearsal(before, peak, resident_bytes())


@contextmanager
def _watched() -> Iterator[Callable[[], int]]:
    """What tells the peak since the block began. Where the system does not let it begin anew, a thread looks every few
    milliseconds what the process holds."""
    if reset_peak():
        yield peak_bytes
        return
    highest, over = [resident_bytes()], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            highest[0] = max(highest[0], resident_bytes())

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield lambda: max(highest[0], resident_bytes())
    finally:
        over.set()
        watcher.join()


def forecast(
    rehearsal: Callable[[Rows, bool], Rehearsal],
    tokens: Tokens,
    steps: list[Rows],
    wanted: int,
    room: Room,
    *,
    read: list[tuple[Tokens, Rows]],
) -> Forecast:
    """Micro-batches of the wanted size if a run with them stays below the limit, else of the largest size that does.

    `rehearsal` measures a pass over these rows as one micro-batch, to whose gradients, if the second argument says so,
    those of an earlier one are there to be added; its peak is NOT_ENOUGH where memory was. The rows to `read` only go
    forward. Raises ResourceError where the longest row alone, or the smallest micro-batch, is too much.
    """
    longest = max(range(len(tokens)), key=lambda i: tokens.lengths[i])
    length = tokens.lengths[longest]

    def cut(size: int) -> tuple[list[Rows], Rows, int]:
        each = [passes(step, tokens, size) for step in steps]
        batches, summed = [rows for of_step in each for rows in of_step], any(len(of_step) > 1 for of_step in each)
        return batches, _heaviest(tokens, batches), room.gradients if summed else 0

    def measured(size: int, batches: list[Rows], heaviest: Rows, sums: int, known: set[int]) -> tuple[float, float]:
        forward = {count for of, rows in read for count in _sizes(of, rows, size)}
        peak, each = _peak(rehearsal, tokens, batches, heaviest, known, forward, sums)
        return MARGIN * (peak + room.pending), each

    if room.plainly_holds(rounded(max(wanted, length))):
        peak, each = measured(wanted, *cut(wanted), set())
        if peak <= room.limit:
            return Forecast(wanted, int(peak), each, f"measured: the run will take {_of(peak, room)}")
    one, alone = packed_tokens(tokens, [longest]), rehearsal([longest], False)
    least = MARGIN * (alone.peak + room.pending)
    if least > room.limit:
        raise _does_not_fit(f"the longest row ({length:,} tokens)", least, room)
    size, token_bytes = wanted, (alone.peak - alone.before) / one
    while True:
        batches, heaviest, sums = cut(size)
        smallest, count = size <= length, packed_tokens(tokens, heaviest)
        if smallest or alone.before + token_bytes * count + room.pending <= room.limit:
            peak, each = measured(size, batches, heaviest, sums, {one})
            if peak <= room.limit:
                break
            if smallest:
                raise _does_not_fit(f"a pass over {count:,} tokens", peak, room)
        size = max(length, int(0.8 * size))
    told = f"measured: the longest row takes {_gb(int(least))}, the run will take {_of(peak, room)}"
    return Forecast(size, int(peak), each, told if size == wanted else f"{wanted:,} would not fit; {told}")


def _peak(
    rehearsal: Callable[[Rows, bool], Rehearsal],
    tokens: Tokens,
    batches: list[Rows],
    heaviest: Rows,
    known: set[int],
    forward: set[int],
    gradient_bytes: int,
) -> tuple[float, float]:
    """The peak over all passes, less what the optimizer adds, and the bytes of a pass for each token.

    A pass takes what the heaviest takes for each token, on top of what every new size before it has left behind. The
    heaviest, if its size is new, leaves that and other things too: where it is little, it is taken for all; else the
    smallest tells. Sizes that only go `forward` leave half of it. Gradients of earlier passes, if any, are there
    besides.
    """
    summed = gradient_bytes > 0
    heavy, largest = rehearsal(heaviest, summed), packed_tokens(tokens, heaviest)
    sizes = [packed_tokens(tokens, rows) for rows in batches[:LOOKED_AT]]
    new = {size: rows for size, rows in zip(sizes, batches) if size not in {*known, largest}}
    left = max(0, heavy.after - heavy.before)
    if new and (largest in known or left * len(new) > LITTLE * heavy.peak):
        small = rehearsal(new[min(new)], summed)
        left = max(0, small.after - small.before)
    token_bytes = (heavy.peak - heavy.before - gradient_bytes) / largest
    seen, peak = set[int](), 0.0
    rest = max(heavy.before, heavy.after) + gradient_bytes + left / 2 * len(forward - {*known, *sizes})
    for size in [*sizes, largest] if len(batches) > LOOKED_AT else sizes:
        seen |= {size} & new.keys()
        peak = max(peak, token_bytes * size + left * len(seen))
    return rest + peak, token_bytes


def _sizes(tokens: Tokens, rows: Rows, micro_batch_tokens: int) -> set[int]:
    """Of the passes over these rows."""
    batches = passes(rows, tokens, micro_batch_tokens)
    return {packed_tokens(tokens, rows) for rows in batches[:LOOKED_AT]}


def token_bytes_at_most(model: nn.Module) -> int:
    """More than a pass through our own layers takes for each of its tokens, whatever is trained."""
    shapes = [weight.shape for weight in model.parameters() if weight.dim() > 1]
    width = sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in shapes)
    return int(KEPT * width * max(weight.itemsize for weight in model.parameters()))


def _does_not_fit(what: str, peak: float, room: Room) -> ResourceError:
    needs = f"takes {_gb(int(peak))}" if peak < NOT_ENOUGH else "needs more than there is"
    return ResourceError(
        "training does not fit into this machine's memory",
        f"{what} {needs}; this process may hold {_gb(room.limit)}",
        "lower data.format.max_tokens, choose a smaller model (`tunesmith models`) or a method that trains less "
        "(`train.method: lora`), or close other programs",
    )


def too_much_for_a_part() -> ResourceError:
    """Of a pass in a divided model: the other processes wait inside it, so that it cannot be taken again smaller."""
    return ResourceError(
        "a pass needed more memory than there is",
        "where the model is divided among processes, passes do not become smaller by themselves",
        "lower train.micro_batch_tokens or data.format.max_tokens, and begin anew with `tunesmith run --fresh`",
    )


def packed_tokens(tokens: Tokens, rows: Rows) -> int:
    """How many tokens a pass over these rows has: what they begin with counts once."""
    return sum(pack(tokens, rows, torch.device("cpu")).documents.lengths)


def _heaviest(tokens: Tokens, batches: list[Rows]) -> Rows:
    """The micro-batch with most tokens, counting once what its rows begin with.

    Where rows begin alike, nearly all do. What a micro-batch saves by that much is quickly known, and with it the most
    tokens that it can have: batches are looked at from there down, until none can have more.
    """
    totals = [sum(tokens.lengths[i] for i in rows) for rows in batches]
    largest = batches[max(range(len(batches)), key=totals.__getitem__)]
    if packed_tokens(tokens, largest) == rounded(max(totals)):
        return largest
    alike = beginnings(tokens, sorted({i for rows in batches for i in rows}), largest)
    at_most = [rounded(n - (len(rows) - 1) * min(alike[i] for i in rows)) for n, rows in zip(totals, batches)]
    heaviest, most = largest, 0
    for bound, rows in sorted(zip(at_most, batches), reverse=True):
        if bound <= most:
            break
        if (count := packed_tokens(tokens, rows)) > most:
            heaviest, most = rows, count
    return heaviest


def limit_bytes(processes: int) -> int:
    """What this process may come to hold: what it holds now, and its share of most of what is free."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return resident_bytes() + int(SHARE * free)
    return resident_bytes() + int(SHARE * hardware.free_memory_bytes()) // processes


def resident_bytes() -> int:
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else hardware.resident_bytes()


def reset_peak() -> bool:
    """Starts the peak anew; False where the system does not allow it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    return hardware.reset_peak_memory()


def peak_bytes() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else hardware.peak_memory_bytes()


def exhausted(error: Exception) -> bool:
    """Whether an allocation failed: torch has a type for it on a GPU, and only a sentence on a CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def _of(peak: float, room: Room) -> str:
    return f"{_gb(int(peak))} of {_gb(room.limit)}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
