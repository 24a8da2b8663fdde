"""fp32 copies of what trains.

At a learning rate of 1e-4, an update is smaller than the distance between neighbouring bf16 numbers, so that parameters
kept in bf16 alone would round most of it away. The optimizer therefore works on exact copies, and the model computes
with their rounding; gradients of many passes are summed in fp32 too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.errors import ModelError
from tunesmith.models.packed import Scorer
from tunesmith.train.processes import ALONE, Processes, whole

State = dict[str, Tensor]


def _spared(name: str, parameter: Tensor) -> bool:
    """Whether weight decay spares it: norms, biases, DoRA's magnitudes and the factors of IA3, which mean nothing at
    zero. (transformers spares norms and biases.)"""
    return parameter.ndim < 2 or ".ia3_l." in name


class Master:
    """fp32 copies of the trainable parameters: the optimizer works on them, the model computes with their rounding.

    After a step of several passes the memory of its summed gradients is kept for the next one. The peak is no higher,
    since the sums are there beside the second pass; and to fill new memory would take longer than AdamW does.
    """

    def __init__(self, scorer: Scorer, processes: Processes = ALONE) -> None:
        self.processes = processes
        named = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
        self.names = sorted(named, key=lambda name: _spared(name, named[name]))
        self.working = [named[name] for name in self.names]
        self.exact = [p.detach().float().clone().requires_grad_() for p in self.working]
        self._passes, self._room = 0, dict[int, Tensor]()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The exact parameters for an optimizer, in their order; those that decay come first."""
        spared = [_spared(name, exact) for name, exact in zip(self.names, self.exact)]
        decay = {"params": self.exact[: spared.count(False)], "weight_decay": weight_decay}
        none = {"params": self.exact[spared.count(False) :], "weight_decay": 0.0}
        return [group for group in (decay, none) if group["params"]]

    @property
    def exact_bytes(self) -> int:
        return sum(exact.nbytes for exact in self.exact)

    def collect(self) -> None:
        """Adds the gradients of one backward pass to the exact ones: in bf16, sums over many passes would drift."""
        self._passes += 1
        for i, (exact, working) in enumerate(zip(self.exact, self.working)):
            if working.grad is None:
                continue
            if exact.grad is not None:
                exact.grad.add_(working.grad)
            elif i in self._room:
                exact.grad = self._room.pop(i).copy_(working.grad)
            else:
                exact.grad = working.grad.float()
            working.grad = None

    def gradient_bytes(self) -> int:
        """What the summed gradients hold now, and the room that is kept for them."""
        summed = [exact.grad for exact in self.exact if exact.grad is not None]
        return sum(gradient.nbytes for gradient in (*summed, *self._room.values()))

    def forget(self) -> None:
        """Throws away the gradients of this step, and their room."""
        for parameter in (*self.exact, *self.working):
            parameter.grad = None
        self._passes = 0
        self._room.clear()

    def update(self, optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float, normaliser: int) -> float:
        """One optimizer step on the exact parameters, rounded back into the model; returns the gradient's norm. A
        gradient that is not finite changes nothing. (To divide by the normaliser and to clip is one pass over memory.)
        """
        gradients = [exact.grad for exact in self.exact if exact.grad is not None]
        norm = float(whole(torch.nn.utils.get_total_norm(gradients))) / normaliser
        for gradient in gradients:
            gradient /= normaliser * max(1.0, (norm + 1e-6) / max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            optimizer.step()
        several, self._passes = self._passes > 1, 0
        self._room = {i: exact.grad for i, exact in enumerate(self.exact) if several and exact.grad is not None}
        optimizer.zero_grad()
        self.round()
        return norm

    @torch.no_grad()
    def round(self) -> None:
        """Gives the model the exact parameters in its own precision."""
        for exact, working in zip(self.exact, self.working):
            working.copy_(exact)

    def state(self) -> State:
        """A copy of the trainable tensors by the model's names, in fp32, outside the accelerator's memory; sharded,
        only in the first process."""
        held = {name: exact.detach() for name, exact in zip(self.names, self.exact)}
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.processes.whole(held).items()}

    @torch.no_grad()
    def load(self, state: State) -> None:
        if state.keys() != set(self.names):
            raise ModelError(
                "the checkpoint holds other parameters than those that train",
                "it was written by another version of tunesmith or of a library",
                "tunesmith run --fresh starts the step over",
            )
        for name, exact in zip(self.names, self.exact):
            exact.copy_(self.processes.divide(state[name], exact))
        self.round()
