"""How answers begin: whether rows want, or the model would give, an answer that is only an end token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.models.packed import Scorer, Tokens, pack
from tunesmith.train.batches import micro_batches

ASKED_ROWS = 64  # enough to tell a quarter from a half


def only_end(tokens: Tokens, ends: list[int]) -> NDArray[np.bool_]:
    """For each row, whether the first token that it teaches is an end token."""
    learnt_N = np.flatnonzero(tokens.learnt)
    row_N = np.searchsorted(tokens.ends, learnt_N, side="right")
    _, first_R = np.unique(row_N, return_index=True)  # every row teaches a token (models/chat.py, faults)
    return np.isin(tokens.ids[learnt_N[first_R]], ends)


@torch.no_grad()
def share_of_end_only(scorer: Scorer, tokens: Tokens, ends: list[int], micro_batch_tokens: int) -> float:
    """Share of the rows that want more than an end token for which the model's likeliest first token is one.

    At most 64 rows are asked, spread over all of them.
    """
    wanting = np.flatnonzero(~only_end(tokens, ends))
    rows = wanting[np.linspace(0, len(wanting) - 1, min(ASKED_ROWS, len(wanting))).astype(int)].tolist()
    ended = 0
    for batch_rows in micro_batches(rows, tokens.lengths, micro_batch_tokens):
        batch = pack(tokens, batch_rows, scorer.causal.device)
        row_R = torch.arange(len(batch_rows), device=batch.row_N.device)
        first_R = torch.searchsorted(batch.row_N, row_R)
        asked = replace(  # each end token in turn is the target at the beginning of each answer
            batch,
            at_N=batch.at_N[first_R].repeat(len(ends)),
            targets_N=torch.tensor(ends, device=row_R.device).repeat_interleave(len(row_R)),
            row_N=row_R.repeat(len(ends)),
        )
        ended += int(scorer(asked)[1].view(len(ends), -1).any(0).sum())
    return ended / max(1, len(rows))
