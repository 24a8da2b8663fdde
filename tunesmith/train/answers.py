"""How answers begin: whether rows want, or the model would give, an answer that is only an end token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.models.packed import Packed, Scorer
from tunesmith.models.tokens import Tokens
from tunesmith.train.objectives.sft import Loss

ASKED_ROWS = 64  # enough to tell a quarter from a half


def only_end(tokens: Tokens, ends: list[int]) -> NDArray[np.bool_]:
    """For each row, whether the first token that it teaches is an end token."""
    if not ends:
        return np.zeros(len(tokens), dtype=bool)
    learnt_N = np.flatnonzero(tokens.learnt)
    row_N = np.searchsorted(tokens.ends, learnt_N, side="right")
    _, first_R = np.unique(row_N, return_index=True)  # every row teaches a token (models/chat.py, faults)
    return np.isin(tokens.ids[learnt_N[first_R]], ends)


def asked(tokens: Tokens, ends: list[int]) -> list[int]:
    """Rows that want more than an end token: at most 64, spread over all of them."""
    wanting = np.flatnonzero(~only_end(tokens, ends))
    rows: list[int] = wanting[np.linspace(0, len(wanting) - 1, min(ASKED_ROWS, len(wanting))).astype(int)].tolist()
    return rows


def end_only(ends: list[int], scorer: Scorer, batch: Packed) -> Loss:
    """As an objective: how many rows the model would answer with an end token alone. There is no loss."""
    row_R = torch.arange(len(batch.lengths), device=batch.row_N.device)
    first_R = torch.searchsorted(batch.row_N, row_R)
    questions = replace(  # each end token in turn is the target at the beginning of each answer
        batch,
        at_N=batch.at_N[first_R].repeat(len(ends)),
        targets_N=torch.tensor(ends, device=row_R.device).repeat_interleave(len(row_R)),
        row_N=row_R.repeat(len(ends)),
    )
    likeliest_N = scorer(questions)[1]
    count = float(likeliest_N.view(len(ends), -1).any(0).sum())
    return Loss(torch.zeros(()), len(row_R), {"end_only": count})
