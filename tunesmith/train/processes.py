"""The processes that train together: who takes which rows, and how their sums become those of one process.

Data-parallel. Every process holds the whole model and takes its share of each optimizer step's rows. Gradients of sums,
and normalisers, are added over the processes once a step, in fp32: the result is that of one process, whatever the
shares are.

FSDP2 (Zhao et al. 2023; torch's `fully_shard`). Parameters, gradients and optimizer state are divided among the
processes, and each decoder layer is put together while it computes. Every pass is then a meeting of all processes:
who has fewer rows than the others makes up the number with passes that count nothing.

accelerate starts the processes (launch.py), joins them and carries what they tell each other: over gloo on CPUs, over
NCCL on GPUs. `fully_shard` is called here, as accelerate would, because accelerate 1.15 shards on GPUs only, and what
runs on GPUs should be what is tested on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.core.errors import ConfigError
from tunesmith.models.packed import Scorer
from tunesmith.models.tokens import Tokens
from tunesmith.train.batches import passes, shares

T = TypeVar("T")

_BUCKET_BYTES = 64 << 20  # gradients that travel together: one message each would take longer, one for all more memory


@dataclass(frozen=True)
class Processes:
    """This process and those that it trains with; the first one speaks, writes and decides."""

    rank: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def divided_by(self) -> int:
        """Into how many parts the model is divided."""
        return self.count if self.sharded else 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this way to train."""
        if self.count == 1:
            return ()
        share = f"{self.count} processes share each optimizer step's rows ({torch.distributed.get_backend()})"
        if not self.sharded:
            return (share,)
        return share, "the model is divided among them (FSDP2); its layers run as its own modules, which is slower"

    def own(self, name: str) -> str:
        """A file name for each process; the first one's is the name itself."""
        return name if self.first else f"{self.rank}.{name}"

    def passes(self, rows: list[int], tokens: Tokens, micro_batch_tokens: int) -> list[tuple[list[int], bool]]:
        """This process's share of the rows in micro-batches, and whether each counts.

        Sharded, all processes get equally many: the missing ones are passes over one row, which do not count.
        """
        batches = [passes(part, tokens, micro_batch_tokens) for part in shares(rows, tokens.lengths, self.count)]
        counted = [(batch, True) for batch in batches[self.rank]]
        if not self.sharded:
            return counted
        missing = max(map(len, batches)) - len(counted)
        return counted + [([min(rows, key=lambda i: tokens.lengths[i])], False)] * missing

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the same order everywhere."""
        gathered: list[T] = gather_object([value]) if self.count > 1 else [value]
        return gathered

    def agree(self, ask: Callable[[], T]) -> T:
        """What the first process finds; the others do not ask."""
        if self.count == 1:
            return ask()
        answer: T = broadcast_object_list([ask() if self.first else None])[0]
        return answer

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process runs the block before the others do."""
        with PartialState().main_process_first():
            yield

    def place(self, scorer: Scorer) -> Scorer:
        """The scorer on this process's device, its parameters divided where they are to be."""
        device = PartialState().device
        scorer.to(device)
        if self.sharded:
            mesh = init_device_mesh(device.type, (self.count,))
            policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
            for module in [*_decoder_layers(scorer), scorer]:
                fully_shard(module, mesh=mesh, mp_policy=policy)
            for module in scorer.modules():
                if isinstance(module, FSDPModule):  # sums, not means; gloo cannot scale while it sums
                    module.set_gradient_divide_factor(1.0)
                    module.set_force_sum_reduction_for_comms(True)
        return scorer

    def add_gradients(self, parameters: list[Tensor]) -> None:
        """Makes each gradient the sum over the processes. Sharded, the backward pass has done that."""
        if self.count == 1 or self.sharded:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
            parts = reduce(flat, "sum").split([p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts):
                parameter.grad = part.view_as(parameter)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves; sharded ones put together in the first process's memory, and nowhere else."""
        if not self.sharded:
            return tensors
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = whole(tensor)  # all processes take part
            if self.first:
                found[name] = full.cpu()
        return found

    def divide(self, full: Tensor, like: Tensor) -> Tensor:
        """This process's part of a tensor that all processes hold, divided as `like` is."""
        if not isinstance(like, DTensor) or full.shape != like.shape:
            return full
        return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


ALONE = Processes()


def join(sharding: str = "none") -> Processes:
    """All processes that were launched together; just this one where none were. To be called before weights are loaded:
    it is what gives each process a GPU of its own. Raises ConfigError where there are fewer GPUs than processes."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise ConfigError(
            f"train.processes is {here}, and there are only {torch.cuda.device_count()} GPUs",
            "each process trains on a GPU of its own",
            f"set train.processes to {torch.cuda.device_count()}",
        )
    state = Accelerator(cpu=not torch.cuda.is_available()).state
    return Processes(state.process_index, state.num_processes, sharding == "fsdp2" and state.num_processes > 1)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes have to ask for; any other as it is."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def _decoder_layers(scorer: Scorer) -> list[nn.Module]:
    """The blocks that transformers keeps on one device: what is put together, computed and taken apart at once."""
    blocks = set(scorer.causal._no_split_modules or ())
    return [module for module in scorer.modules() if type(module).__name__ in blocks]


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in order, in runs of about 64 MiB of fp32."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        bucket.append(parameter)
        if 4 * sum(p.numel() for p in bucket) >= _BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
