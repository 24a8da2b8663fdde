"""How much memory a run will take, measured before its first step.

A formula knows the shapes, not the allocator, the library or the kernels. So the longest row goes forward and backward
once, and then the heaviest micro-batch of the whole run, which is known because the order of the rows is. What the
second takes is what the run will take, and what the optimizer still has to allocate is counted; the line between the
two says what other micro-batches would take.

If that is more than the budget, micro-batches become smaller: the sums, and with them the result, stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.core import hardware
from tunesmith.core.errors import ResourceError
from tunesmith.core.records import Decision
from tunesmith.models.packed import Packed
from tunesmith.train.batches import micro_batches

SHARE = 0.85  # of the memory that is free: the rest is for the evaluation's batches, the disk cache and other programs
MARGIN = 1.04  # freed memory does not always return to the system, so that peaks creep up over a run


@dataclass(frozen=True)
class Load:
    """What a micro-batch is made of: tokens, and pairs of a query and a key that it sees."""

    tokens: int
    pairs: int

    def __add__(self, other: Load) -> Load:
        return Load(self.tokens + other.tokens, self.pairs + other.pairs)


def load_of(batch: Packed) -> Load:
    lengths = batch.documents.lengths
    before = lengths[0] if batch.documents.shared else 0
    pairs = sum(n * (n + (before if i else 0)) for i, n in enumerate(lengths))
    return Load(sum(lengths), pairs)


@dataclass(frozen=True)
class Fit:
    """Peak bytes of the process over a pass: what is there at rest, and what the pass adds."""

    resting: int
    per_token: float
    per_pair: float

    def peak(self, load: Load) -> int:
        return int(self.resting + self.per_token * load.tokens + self.per_pair * load.pairs)


def fit(resting: int, passes: list[tuple[Load, int]], per_pair: float) -> Fit:
    """The line through what passes took; `per_pair` is known, because the attention weights of all layers are kept."""
    slopes = [(peak - resting - per_pair * load.pairs) / load.tokens for load, peak in passes]
    return Fit(resting, max(0.0, *slopes), per_pair)


@dataclass(frozen=True)
class Forecast:
    """The micro-batch to train with, and the peak of the process that is expected with it."""

    micro_batch_tokens: Decision
    peak_bytes: int


class Rehearsal:
    """Passes that learn nothing, to see what they take. `trial` goes forward and backward over rows as one
    micro-batch; what it accumulates stays until `forget`."""

    def __init__(
        self, trial: Callable[[list[int]], Load], forget: Callable[[], None], per_pair: float, pending_bytes: int
    ) -> None:
        self.trial, self.forget, self.per_pair, self.pending = trial, forget, per_pair, pending_bytes
        self.passes: list[tuple[Load, int]] = []
        self.resting = resident_bytes()

    def run(self, rows: list[int]) -> int:
        """The peak over a pass on these rows, with what the optimizer has still to allocate."""
        reset_peak()
        load = self.trial(rows)
        self.passes.append((load, peak_bytes()))
        return self.passes[-1][1] + self.pending

    @property
    def fit(self) -> Fit:
        return fit(self.resting, self.passes, self.per_pair)


def forecast(
    rehearsal: Rehearsal, lengths: list[int], steps: list[list[int]], wanted: Decision, budget_bytes: int
) -> Forecast:
    """Micro-batches of the wanted size if they fit into the budget, else of the largest size that does.

    Raises ResourceError when the longest row alone does not fit.
    """
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    least = int(rehearsal.run([longest]) * MARGIN)
    told = f"the longest row ({lengths[longest]:,} tokens) takes {_gb(least)} of {_gb(budget_bytes)} that are free"
    if least > budget_bytes:
        raise ResourceError(
            "training does not fit into this machine's memory",
            f"{told} for this process",
            "lower data.format.max_tokens, choose a smaller model (`tunesmith models`), or close other programs",
        )
    size = wanted.value
    while True:
        heaviest = _heaviest(rehearsal.fit, lengths, steps, size)
        expected = int((rehearsal.fit.peak(_bound(lengths, heaviest)) + rehearsal.pending) * MARGIN)
        if expected <= budget_bytes or size <= lengths[longest]:
            peak = max(least, int(rehearsal.run(heaviest) * MARGIN))
            if peak <= budget_bytes or size <= lengths[longest]:
                break
        size = max(lengths[longest], int(size * 0.8))
    rehearsal.forget()
    reason = f"{wanted.reason}; measured: {told}, the largest pass of this run {_gb(peak)}"
    if size < wanted.value:
        reason = f"{wanted.value:,} would not fit: {reason}"
    return Forecast(Decision(size, reason), peak)


def _heaviest(fit: Fit, lengths: list[int], steps: list[list[int]], size: int) -> list[int]:
    """The micro-batch of the run that takes most, if no row shares its beginning with another."""
    batches = (batch for rows in steps for batch in micro_batches(rows, lengths, size))
    return max(batches, key=lambda rows: fit.peak(_bound(lengths, rows)))


def _bound(lengths: list[int], rows: list[int]) -> Load:
    return Load(sum(lengths[i] for i in rows), sum(lengths[i] ** 2 for i in rows))


def budget_bytes() -> int:
    """What this process may come to hold: what it holds now, and most of what is free."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(SHARE * free) + resident_bytes()
    return resident_bytes() + int(SHARE * hardware.free_memory_bytes())


def resident_bytes() -> int:
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else hardware.resident_bytes()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        hardware.reset_peak_memory()


def peak_bytes() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else hardware.peak_memory_bytes()


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch has a type for it on a GPU, and only a sentence on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
