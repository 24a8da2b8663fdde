"""Causal attention over several documents laid end to end, without padding and without a T x T mask.

Why. Rows are trained packed: the documents of a micro-batch stand one behind the other in a sequence of T tokens.
With a block mask, stock attention computes all T x T scores and throws most of them away; on a CPU, torch's bf16
flash backward is also called in pieces too small to pay. Here every document is its own small attention: two batched
matrix products forward, four backward. Cost follows the sum of squared document lengths, and a document cannot see
another because their scores never exist.

Layout. H query heads share G key heads (H a multiple of G). A document of L tokens is seen as G batches of (H/G * L)
queries against L keys, so that grouped-query attention needs no repeated keys. The probabilities are saved for
backward: H * L * L values per document and layer.

Scores are rounded to the dtype of the inputs, as in transformers' eager attention; softmax sums in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reference(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, lengths: list[int], scale: float, window: int | None
) -> Tensor:
    """Plain torch: one T x T mask that lets a token see its own document up to itself (and `window` tokens back)."""
    T = q_HTD.shape[1]
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q_HTD.device)
    visible_TT = (document_T[:, None] == document_T[None, :]) & ~_hidden(T, window, q_HTD.device)
    repeat = q_HTD.shape[0] // k_GTD.shape[0]
    scores_HTT = q_HTD @ k_GTD.repeat_interleave(repeat, 0).transpose(1, 2) * scale
    weights_HTT = scores_HTT.masked_fill(~visible_TT, float("-inf")).softmax(-1)
    return weights_HTT @ v_GTD.repeat_interleave(repeat, 0)


def document_attention(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, lengths: list[int], scale: float, window: int | None = None
) -> Tensor:
    """Attention of each document to itself; `lengths` sum to T, `window` limits how far back a token sees."""
    parts = zip(q_HTD.split(lengths, 1), k_GTD.split(lengths, 1), v_GTD.split(lengths, 1))
    return torch.cat([_Document.apply(q, k, v, scale, window) for q, k, v in parts], 1)


class _Document(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_HLD: Tensor, k_GLD: Tensor, v_GLD: Tensor, scale: float, window: int | None) -> Tensor:
        H, L, D = q_HLD.shape
        G = k_GLD.shape[0]
        q_GMD = (q_HLD * scale).reshape(G, H // G * L, D)
        scores_GRLL = torch.bmm(q_GMD, k_GLD.transpose(1, 2)).view(G, H // G, L, L)
        weights_GML = (
            scores_GRLL.masked_fill_(_hidden(L, window, q_HLD.device), float("-inf")).softmax(-1).view(G, -1, L)
        )
        ctx.save_for_backward(q_GMD, k_GLD, v_GLD, weights_GML)
        ctx.scale = scale
        return torch.bmm(weights_GML, v_GLD).view(H, L, D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_GMD, k_GLD, v_GLD, weights_GML = ctx.saved_tensors
        grad_GMD = gradients[0].reshape(q_GMD.shape)
        grad_v_GLD = torch.bmm(weights_GML.transpose(1, 2), grad_GMD)
        grad_weights_GML = torch.bmm(grad_GMD, v_GLD.transpose(1, 2))
        grad_scores_GML = torch._softmax_backward_data(grad_weights_GML, weights_GML, -1, weights_GML.dtype)
        grad_q_GMD = torch.bmm(grad_scores_GML, k_GLD) * ctx.scale
        grad_k_GLD = torch.bmm(grad_scores_GML.transpose(1, 2), q_GMD)  # the scale is in q already
        return grad_q_GMD.view(gradients[0].shape), grad_k_GLD, grad_v_GLD, None, None


def _hidden(length: int, window: int | None, device: torch.device) -> Tensor:
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)
