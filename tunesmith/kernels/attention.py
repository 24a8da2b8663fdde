"""Causal attention over several documents laid end to end, without padding and without a T x T mask.

Why. Rows are trained packed: the documents of a micro-batch stand one behind the other in a sequence of T tokens.
With a block mask, stock attention computes all T x T scores and throws most of them away; on a CPU, torch's bf16
flash backward is also called in pieces too small to pay. Here every document is its own small attention: two batched
matrix products forward, four backward. Cost follows the sum of squared document lengths, and a document cannot see
another because their scores never exist.

A shared beginning. Rows of one task begin with the same system message. Where `shared` is set, the first document of
the pack is the beginning of all others: it is computed once, its keys are seen by all, and its gradient is the sum of
theirs. That is the same function as with the beginning repeated in every row, and fewer tokens. A beginning that is
not made of tokens (prefix tuning) comes as `past`, keys and values from outside.

Layout. H query heads share G key heads (H a multiple of G, R = H / G). In document order (plain.py) a document of L
tokens is G batches of R * L queries against its keys, so that grouped-query attention needs no repeated keys. Queries
go in blocks of at most `BLOCK`, each against the keys up to its end: of a long document's scores, the half above the
diagonal is never computed. The attention weights are kept for backward.

Scores are rounded to the dtype of the inputs, as in transformers' eager attention; softmax sums in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.plain import Operations

ROOM = 8  # tokens; oneDNN keeps code for a thousand shapes of products, and each length makes seven (docs/log.md)
BLOCK = 256  # queries; less would starve the matrix products, more would compute what causality hides

Past = tuple[Tensor, Tensor] | None  # keys and values before all documents, (G, S, D) each


@dataclass(frozen=True)
class Documents:
    """How a pack divides: the documents' lengths, and whether the first is the beginning of all the others."""

    lengths: list[int]
    shared: bool = False

    @cached_property
    def rooms(self) -> list[int]:
        """How many tokens each has room for while attention is computed: a multiple of `ROOM`. No query of a document
        sees the keys behind its last one. Those of a shared beginning would be seen, so that it gets what it needs."""
        return [n if self.shared and i == 0 else -(-n // ROOM) * ROOM for i, n in enumerate(self.lengths)]


@dataclass(frozen=True)
class Heads:
    """H query heads, G key heads, D features each; scores are multiplied by `scale`; a query sees no more than `window`
    keys back."""

    H: int
    G: int
    D: int
    scale: float
    window: int | None = None


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
        into, D = (documents.lengths, documents.rooms), heads.D
        q = operations.to_documents(q_TC.contiguous(), *into, D, None, heads.scale)
        k, v = (operations.to_documents(x.contiguous(), *into, D, None, 1.0) for x in (k_TC, v_TC))
        past = None if past_k is None or past_v is None else (past_k, past_v)
        o, weights = forward(operations, q, k, v, documents, heads, past)
        ctx.save_for_backward(q, k, v, past_k, past_v, *weights)
        o_TC = torch.empty_like(q_TC, memory_format=torch.contiguous_format)
        operations.to_tokens(o, *into, D, None, 1.0, o_TC)
        return o_TC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        operations, documents, heads = ctx.rest
        q, k, v, past_k, past_v, *weights = ctx.saved_tensors
        past = None if past_k is None else (past_k, past_v)
        into = documents.lengths, documents.rooms
        grad = operations.to_documents(gradients[0].contiguous(), *into, heads.D, None, 1.0)
        grads, past_grads = backward(operations, grad, (q, k, v), weights, documents, heads, past)
        tokens = [grad.new_empty(sum(documents.lengths), n * heads.D) for n in (heads.H, heads.G, heads.G)]
        for part, out_TC, scale in zip(grads, tokens, (heads.scale, 1.0, 1.0)):
            operations.to_tokens(part, *into, heads.D, None, scale, out_TC)
        return *tokens, *(past_grads or (None, None)), None


def forward(
    operations: Operations, q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads, past: Past
) -> tuple[Tensor, list[Tensor]]:
    """From scaled queries, keys and values in document order to outputs in document order, and the attention weights of
    each block of queries, (H, queries, keys)."""
    o, weights = torch.empty_like(q), list[Tensor]()
    counts = (heads.H, heads.G, heads.G, heads.H)
    parts = [_parts(x, count, documents, heads) for x, count in zip((q, k, v, o), counts)]
    for i, (q_HLD, k_GLD, v_GLD, o_HLD) in enumerate(zip(*parts)):
        k_GUD, v_GUD = _after(past, k_GLD, v_GLD)
        offset = k_GUD.shape[1] - k_GLD.shape[1]
        for at, to, q_GMD in _blocks(q_HLD, heads):
            weights_GMU = torch.bmm(q_GMD, k_GUD[:, : offset + to].transpose(1, 2))
            weights_HLU = weights_GMU.view(heads.H, to - at, offset + to)
            operations.softmax_(weights_HLU, offset + at, heads.window)
            o_HLD[:, at:to] = torch.bmm(weights_GMU, v_GUD[:, : offset + to]).view(heads.H, to - at, heads.D)
            weights.append(weights_HLU)
        if documents.shared and i == 0:
            past = k_GUD, v_GUD
    return o, weights


def backward(
    operations: Operations,
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    weights: list[Tensor],
    documents: Documents,
    heads: Heads,
    past: Past,
) -> tuple[tuple[Tensor, Tensor, Tensor], Past]:
    """The gradients of `forward` with respect to q, k and v (document order) and to `past`."""
    grads = tuple(torch.empty_like(x) for x in inputs)
    counts = (heads.H, heads.G, heads.G)
    read = [_parts(x, count, documents, heads) for x, count in zip((*inputs, grad), (*counts, heads.H))]
    written = [_parts(x, count, documents, heads) for x, count in zip(grads, counts)]
    outside = past
    if documents.shared:
        past = _after(outside, read[1][0], read[2][0])
    past_grads = [torch.zeros_like(x, dtype=torch.float32) for x in past] if past else []
    left = list(weights)
    for i in reversed(range(len(documents.lengths))):  # the shared beginning comes last: all others add to its gradient
        q_HLD, k_GLD, v_GLD, grad_HLD = (part[i] for part in read)
        first = documents.shared and i == 0
        k_GUD, v_GUD = _after(outside if first else past, k_GLD, v_GLD)
        blocks = list(_blocks(q_HLD, heads))
        used, left = left[-len(blocks) :], left[: -len(blocks)]
        dq_HLD, dk_GUD, dv_GUD = _document_backward(operations, grad_HLD, blocks, k_GUD, v_GUD, used, heads)
        offset = k_GUD.shape[1] - k_GLD.shape[1]
        if past and not first:
            past_grads[0] += dk_GUD[:, :offset]
            past_grads[1] += dv_GUD[:, :offset]
        if first:
            dk_GUD, dv_GUD = past_grads = [dk_GUD + past_grads[0], dv_GUD + past_grads[1]]
        for part, value in zip(written, (dq_HLD, dk_GUD[:, offset:], dv_GUD[:, offset:])):
            part[i].copy_(value)
    if outside is None:
        return grads, None
    start = outside[0].shape[1]
    return grads, tuple(x[:, :start].to(grad.dtype) for x in past_grads)


def _document_backward(
    operations: Operations,
    grad_HLD: Tensor,
    blocks: list[tuple[int, int, Tensor]],
    k_GUD: Tensor,
    v_GUD: Tensor,
    weights: list[Tensor],
    heads: Heads,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, (dk_GUD, dv_GUD) = list[Tensor](), (None, None)
    for (at, to, q_GMD), weights_HLU in zip(blocks, weights):
        seen = weights_HLU.shape[2]
        weights_GMU = weights_HLU.view(heads.G, -1, seen)
        grad_GMD = grad_HLD[:, at:to].reshape(q_GMD.shape)
        dscores_GMU = torch.bmm(grad_GMD, v_GUD[:, :seen].transpose(1, 2))
        operations.softmax_backward_(dscores_GMU.view(weights_HLU.shape), weights_HLU, seen - (to - at))
        dq.append(torch.bmm(dscores_GMU, k_GUD[:, :seen]).view(heads.H, to - at, heads.D))
        dk_GUD = _longer(torch.bmm(dscores_GMU.transpose(1, 2), q_GMD), dk_GUD)
        dv_GUD = _longer(torch.bmm(weights_GMU.transpose(1, 2), grad_GMD), dv_GUD)
    return dq[0] if len(dq) == 1 else torch.cat(dq, 1), dk_GUD, dv_GUD


def _longer(new_GUD: Tensor, sum_GUD: Tensor | None) -> Tensor:
    """The sum of two gradients, the new one reaching over more keys. A sum of several is kept in fp32."""
    if sum_GUD is None:
        return new_GUD
    total_GUD = new_GUD.float()
    total_GUD[:, : sum_GUD.shape[1]] += sum_GUD
    return total_GUD


def _parts(flat: Tensor, count: int, documents: Documents, heads: Heads) -> list[Tensor]:
    """Each document's `count` heads, (count, L, D), where L is its room."""
    sizes = [room * count * heads.D for room in documents.rooms]
    return [part.view(count, -1, heads.D) for part in flat.split(sizes)]


def _blocks(q_HLD: Tensor, heads: Heads) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks of queries, (G, R * L, D), with where they begin and end."""
    L = q_HLD.shape[1]
    for at in range(0, L, BLOCK):
        to = min(at + BLOCK, L)
        yield at, to, q_HLD[:, at:to].reshape(heads.G, -1, heads.D)


def _after(past: Past, k_GLD: Tensor, v_GLD: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.cat([past[0], k_GLD], 1), torch.cat([past[1], v_GLD], 1)) if past else (k_GLD, v_GLD)
