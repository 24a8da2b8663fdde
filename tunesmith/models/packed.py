"""Rows laid end to end, and the log-probabilities that a model gives to their learnt tokens.

Shapes: T tokens in the packed sequence, N of them learnt, R rows. A row's first token is never a target, so that no row
is predicted from the end of the one before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.errors import ModelError
from tunesmith.kernels.apply import Kernels, choose
from tunesmith.models.attention import Documents


class Tokens:
    """The tokenised rows of one side of the split: three arrays on disk, read as they are needed."""

    def __init__(self, folder: Path, side: str) -> None:
        self.ids = np.load(folder / f"{side}.ids.npy", mmap_mode="r")
        self.learnt = np.load(folder / f"{side}.learnt.npy", mmap_mode="r")
        self.ends: NDArray[np.int64] = np.load(folder / f"{side}.ends.npy")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> list[int]:
        return [int(length) for length in np.diff(self.ends, prepend=0)]

    def row(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start = self.ends[i - 1] if i else 0
        return self.ids[start : self.ends[i]], self.learnt[start : self.ends[i]]

    def learnt_tokens(self, rows: Iterable[int]) -> int:
        """Targets of these rows: learnt tokens that are not a row's first."""
        return sum(int(self.row(i)[1][1:].sum()) for i in rows)


@dataclass(frozen=True)
class Packed:
    """A micro-batch: ids and positions of T tokens, where the N targets are predicted from, and what they are."""

    ids_1T: Tensor
    positions_1T: Tensor
    at_N: Tensor
    targets_N: Tensor
    row_N: Tensor
    lengths: list[int]


def pack(tokens: Tokens, rows: list[int], device: torch.device) -> Packed:
    parts = [tokens.row(i) for i in rows]
    lengths = [len(ids) for ids, _ in parts]
    ids_T = torch.from_numpy(np.concatenate([ids for ids, _ in parts]).astype(np.int64))
    learnt_T = torch.from_numpy(np.concatenate([learnt for _, learnt in parts]))
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    learnt_T[starts] = False
    target_N = learnt_T.nonzero()[:, 0]
    row_T = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    positions_T = torch.arange(len(ids_T)) - starts[row_T]
    return Packed(
        ids_T[None].to(device),
        positions_T[None].to(device),
        (target_N - 1).to(device),
        ids_T[target_N].to(device),
        row_T[target_N].to(device),
        lengths,
    )


class Scorer(nn.Module):
    """A causal model as training sees it: a packed micro-batch in, the log-probability of each target out.

    It is a module of its own so that whatever wraps modules (data-parallel, sharding) finds all work in `forward`.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, kernels: Kernels) -> None:
        super().__init__()
        self.model, self.kernels = model, kernels

    @property
    def causal(self) -> PreTrainedModel:
        """transformers' own model, inside PEFT's wrapper where there is one."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Log-probability (fp32, N) of each target, and whether it is the likeliest token. The head meets targets
        only."""
        hidden_TD = self.causal.base_model(
            input_ids=batch.ids_1T,
            position_ids=batch.positions_1T,
            use_cache=False,
            documents=Documents(batch.lengths, self.kernels.attention),
        ).last_hidden_state[0]
        head = self.causal.get_output_embeddings()
        return self.kernels.label_logprobs(hidden_TD[batch.at_N], head.weight, batch.targets_N)


@torch.no_grad()
def require_same_loss(scorer: Scorer, tokens: Tokens) -> None:
    """Compares one row's loss with transformers' own; raises ModelError where this architecture needs more than we do
    (a cap or a bias on its logits, say)."""
    model = scorer.causal
    batch = pack(tokens, [min(range(len(tokens)), key=lambda i: tokens.lengths[i])], model.device)
    ours = -scorer(batch)[0].mean()
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits_TV = model(input_ids=batch.ids_1T, use_cache=False).logits[0].float()
    model.set_attn_implementation(implementation)
    theirs = torch.nn.functional.cross_entropy(logits_TV[batch.at_N], batch.targets_N)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.03
    if not abs(ours - theirs) <= tolerance * max(1.0, float(theirs)):  # not a number is no agreement
        raise ModelError(
            f"{type(model).__name__} cannot be trained packed",
            f"its loss on one row is {float(theirs):.4f} by "
            f"its own forward pass and {float(ours):.4f} by the packed one",
            "choose another base (`tunesmith models`), and report this architecture",
        )


@torch.no_grad()
def row_nlls(
    model: PreTrainedModel, tokens: Tokens, rows: list[int], together: int = 16
) -> Iterator[tuple[float, int]]:
    """Negative log-likelihood in nats of each row's targets, and the number of them; `together` rows share a pass."""
    scorer = Scorer(model, choose(model.dtype, model.device))
    for at in range(0, len(rows), together):
        batch = pack(tokens, rows[at : at + together], model.device)
        row_N, nll_N = batch.row_N.cpu(), -scorer(batch)[0].double().cpu()
        sums_R = torch.zeros(len(batch.lengths), dtype=torch.float64).index_add_(0, row_N, nll_N)
        yield from zip(sums_R.tolist(), torch.bincount(row_N, minlength=len(batch.lengths)).tolist())
