"""Causal attention over several documents laid end to end, without padding and without a T x T mask.

Why. Rows are trained packed: the documents of a micro-batch stand one behind the other in a sequence of T tokens.
With a block mask, stock attention computes all T x T scores and throws most of them away. Here every document is its
own small attention: cost follows the sum of squared document lengths, and a document cannot see another because their
scores never exist. Scores are not kept either; attention.cpp says how they are made twice.

A shared beginning. Rows of one task begin with the same system message. Where `shared` is set, the first document of
the pack is the beginning of all others: it is computed once, its keys are seen by all, and its gradient is the sum of
theirs. That is the same function as with the beginning repeated in every row, and fewer tokens. A beginning that is
not made of tokens (prefix tuning) comes as `past`, keys and values from outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.plain import Documents, Heads, Inputs, Operations, Past


def reference(
    q_TC: Tensor, k_TC: Tensor, v_TC: Tensor, documents: Documents, heads: Heads, past: Past = None
) -> Tensor:
    """Plain torch: one mask that lets a token see its own document up to itself, and what all documents begin with."""
    lengths, start = documents.lengths, past[0].shape[1] if past else 0
    before = start + (lengths[0] if documents.shared else 0)
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q_TC.device)
    starts = [start if documents.shared and i == 0 else before for i in range(len(lengths))]
    position_T = torch.cat([torch.arange(n) + at for n, at in zip(lengths, starts)]).to(q_TC.device)
    document_U = torch.cat([torch.full((start,), -1, device=q_TC.device), document_T])
    position_U = torch.cat([torch.arange(start, device=q_TC.device), position_T])
    for_all_U = document_U <= (0 if documents.shared else -1)
    back_TU = position_T[:, None] - position_U[None, :]
    visible_TU = (document_T[:, None] == document_U[None, :]) | for_all_U[None, :]
    visible_TU = visible_TU & (back_TU >= 0) & (back_TU < (heads.window or len(position_U) + 1))
    q_HTD, k_GUD, v_GUD = (x.unflatten(1, (-1, heads.D)).transpose(0, 1) for x in (q_TC, k_TC, v_TC))
    if past:
        k_GUD, v_GUD = torch.cat([past[0], k_GUD], 1), torch.cat([past[1], v_GUD], 1)
    k_HUD, v_HUD = (x.repeat_interleave(heads.H // heads.G, 0) for x in (k_GUD, v_GUD))
    scores_HTU = q_HTD @ k_HUD.transpose(1, 2) * heads.scale
    weights_HTU = scores_HTU.masked_fill(~visible_TU, float("-inf")).softmax(-1)
    return (weights_HTU @ v_HUD).transpose(0, 1).flatten(1)


def document_attention(
    operations: Operations,
    q_TC: Tensor,
    k_TC: Tensor,
    v_TC: Tensor,
    documents: Documents,
    heads: Heads,
    past: Past = None,
) -> Tensor:
    """Attention of each document to itself and to what all begin with; heads in token order, T x (heads * D)."""
    output: Tensor = _DocumentAttention.apply(q_TC, k_TC, v_TC, *(past or (None, None)), (operations, documents, heads))
    return output


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_TC: Tensor,
        k_TC: Tensor,
        v_TC: Tensor,
        past_k: Tensor | None,
        past_v: Tensor | None,
        rest: tuple[Operations, Documents, Heads],
    ) -> Tensor:
        operations, documents, heads = ctx.rest = rest
        past = None if past_k is None or past_v is None else (past_k, past_v)
        o_TC, lse_HT = operations.attention(Inputs(q_TC, k_TC, v_TC, None, past, documents, heads))
        ctx.save_for_backward(lse_HT, q_TC, k_TC, v_TC, past_k, past_v)
        output: Tensor = o_TC
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        operations, documents, heads = ctx.rest
        lse_HT, q_TC, k_TC, v_TC, past_k, past_v = ctx.saved_tensors
        past = None if past_k is None else (past_k, past_v)
        grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_TC, k_TC, v_TC))
        of = Inputs(q_TC, k_TC, v_TC, None, past, documents, heads)
        past_grads = operations.attention_backward(of, gradients[0].contiguous(), lse_HT, grads)
        return *grads, *(past_grads or (None, None)), None
