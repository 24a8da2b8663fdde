"""What a decoder layer does beside its large matrix products, in plain torch: what the compiled forms must agree with,
and what runs without them.

Shapes: N tokens, D features, I features of the feed-forward layer; in attention D features of a head, H heads of
queries in G groups that share their keys, L queries, U keys, S keys from outside; C rows of V logits.
Functions whose name ends in an underscore write their result over their first argument, as torch's do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Turn = tuple[Tensor, Tensor] | None  # cosines and sines of the rotary embedding, (N, D) each
Past = tuple[Tensor, Tensor] | None  # keys and values before all documents, (G, S, D) each


@dataclass(frozen=True)
class Documents:
    """How a pack divides: the documents' lengths, and whether the first is the beginning of all the others."""

    lengths: list[int]
    shared: bool = False


@dataclass(frozen=True)
class Heads:
    """H query heads, G key heads, D features each; scores are multiplied by `scale`; a query sees no more than `window`
    keys back."""

    H: int
    G: int
    D: int
    scale: float
    window: int | None = None


class Inputs(NamedTuple):
    """What attention is computed of: queries, keys and values (N, H * D), which `turn` still has to turn and which may
    be columns of wider rows; keys and values from outside; how tokens and features divide."""

    q_NC: Tensor
    k_NC: Tensor
    v_NC: Tensor
    turn: Turn
    past: Past
    documents: Documents
    heads: Heads


@dataclass(frozen=True)
class Operations:
    """The functions of this module, or others that agree with them."""

    norm: Callable[..., Any]
    norm_backward: Callable[..., Any]
    swiglu: Callable[..., Any]
    swiglu_backward: Callable[..., Any]
    attention: Callable[..., Any]
    attention_backward: Callable[..., Any]
    label_softmax_: Callable[..., Any]


def norm(x_ND: Tensor, w_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich 2019) and the reciprocal root mean square of each row, in fp32."""
    wide_ND = x_ND.float()
    rstd_N = torch.rsqrt(wide_ND.square().mean(1) + eps)
    return (wide_ND * rstd_N[:, None] * w_D.float()).to(x_ND.dtype), rstd_N


def norm_backward(
    grad_ND: Tensor, x_ND: Tensor, w_D: Tensor, rstd_N: Tensor, residual_ND: Tensor, weight_too: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient with respect to x, added to that of the residual branch; and that of the weight if it is wanted."""
    unit_ND = x_ND.float() * rstd_N[:, None]
    weighted_ND = grad_ND.float() * w_D.float()
    dx_ND = (weighted_ND - unit_ND * (weighted_ND * unit_ND).mean(1, keepdim=True)) * rstd_N[:, None]
    dw_D = (grad_ND.float() * unit_ND).sum(0).to(w_D.dtype) if weight_too else None
    return (residual_ND.float() + dx_ND).to(x_ND.dtype), dw_D


def swiglu(pair_N2I: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020), where the first half of each row is the gate."""
    gate_NI, up_NI = pair_N2I.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate_NI) * up_NI).to(pair_N2I.dtype)


def swiglu_backward(grad_NI: Tensor, pair_N2I: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with respect to gate and up, and the output once more: it is cheaper to make again than to keep."""
    gate_NI, up_NI = pair_N2I.float().chunk(2, 1)
    wide_NI, sigmoid_NI = grad_NI.float(), gate_NI.sigmoid()
    dgate_NI = wide_NI * up_NI * sigmoid_NI * (1 + gate_NI * (1 - sigmoid_NI))
    dup_NI = wide_NI * gate_NI * sigmoid_NI
    return torch.cat([dgate_NI, dup_NI], 1).to(pair_N2I.dtype), swiglu(pair_N2I)


def attention(of: Inputs) -> tuple[Tensor, Tensor]:
    """What attention makes of its inputs, (N, H * D); and the logarithm of the sum under each query's softmax, (H, N)
    in fp32, which backward wants. Computed in fp32."""
    heads = of.heads
    q_HND, k_GKD, v_GKD = _heads(of)
    o_NHD, lse_HN = of.q_NC.new_empty(len(of.q_NC), heads.H, heads.D), q_HND.new_empty(q_HND.shape[:2])
    for rows, keys_U, hidden_LU in _documents(of):
        q_GRLD = q_HND[:, rows].unflatten(0, (heads.G, -1))
        k_G1UD, v_G1UD = (x[:, None, keys_U] for x in (k_GKD, v_GKD))
        scores_GRLU = (q_GRLD @ k_G1UD.mT * heads.scale).masked_fill_(hidden_LU, -torch.inf)
        lse_HN[:, rows] = scores_GRLU.logsumexp(-1).flatten(0, 1)
        o_NHD[rows] = (scores_GRLU.softmax(-1) @ v_G1UD).flatten(0, 1).transpose(0, 1).to(o_NHD.dtype)
    return o_NHD.flatten(1), lse_HN


def attention_backward(of: Inputs, grad_NC: Tensor, lse_HN: Tensor, out: tuple[Tensor, Tensor, Tensor]) -> Past:
    """The gradients with respect to q, k and v, before they were turned, written to `out`; and to what is past."""
    heads, turn, past = of.heads, of.turn, of.past
    q_HND, k_GKD, v_GKD = _heads(of)
    grad_HND = grad_NC.float().unflatten(1, (-1, heads.D)).transpose(0, 1)
    dq_HND, dk_GKD, dv_GKD = (torch.zeros_like(x) for x in (q_HND, k_GKD, v_GKD))
    for rows, keys_U, hidden_LU in _documents(of):
        q_GRLD, grad_GRLD = (x[:, rows].unflatten(0, (heads.G, -1)) for x in (q_HND, grad_HND))
        k_G1UD, v_G1UD = (x[:, None, keys_U] for x in (k_GKD, v_GKD))
        scores_GRLU = q_GRLD @ k_G1UD.mT * heads.scale - lse_HN[:, rows].unflatten(0, (heads.G, -1))[..., None]
        weights_GRLU = scores_GRLU.exp_().masked_fill_(hidden_LU, 0.0)
        dweights_GRLU = grad_GRLD @ v_G1UD.mT
        dots_GRL1 = (weights_GRLU * dweights_GRLU).sum(-1, keepdim=True)
        dscores_GRLU = weights_GRLU * (dweights_GRLU - dots_GRL1) * heads.scale
        dq_HND[:, rows] = (dscores_GRLU @ k_G1UD).flatten(0, 1)
        dk_GKD.index_add_(1, keys_U, (dscores_GRLU.mT @ q_GRLD).sum(1))
        dv_GKD.index_add_(1, keys_U, (weights_GRLU.mT @ grad_GRLD).sum(1))
    start = past[0].shape[1] if past else 0
    for x_HND, turned, to_NC in zip((dq_HND, dk_GKD[:, start:], dv_GKD[:, start:]), (turn, turn, None), out):
        to_NC.copy_(_turned_back(x_HND, turned).transpose(0, 1).flatten(1))
    return (dk_GKD[:, :start].to(grad_NC.dtype), dv_GKD[:, :start].to(grad_NC.dtype)) if past else None


def _heads(of: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (H, N, D), and keys and values (G, S + N, D) in fp32, turned."""
    inputs = of.q_NC, of.k_NC, of.v_NC
    q_HND, k_GND, v_GND = (x.float().unflatten(1, (-1, of.heads.D)).transpose(0, 1) for x in inputs)
    if of.turn:
        cos_ND, sin_ND = (part.float() for part in of.turn)
        q_HND, k_GND = (x * cos_ND + _rotated(x) * sin_ND for x in (q_HND, k_GND))
    if of.past:
        k_GND, v_GND = (torch.cat([before.float(), x], 1) for before, x in zip(of.past, (k_GND, v_GND)))
    return q_HND, k_GND, v_GND


def _turned_back(x_HND: Tensor, turn: Turn) -> Tensor:
    return x_HND if turn is None else x_HND * turn[0].float() - _rotated(x_HND * turn[1].float())


def _rotated(x_HND: Tensor) -> Tensor:
    low, high = x_HND.chunk(2, -1)
    return torch.cat([-high, low], -1)


def _documents(of: Inputs) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each document the rows of its queries, which of the keys are its own or those that it begins with, and which
    of these each query must not see."""
    start, at, device = of.past[0].shape[1] if of.past else 0, 0, of.q_NC.device
    for i, length in enumerate(of.documents.lengths):
        before = start + (of.documents.lengths[0] if of.documents.shared and i else 0)
        keys_U = torch.cat([torch.arange(before), torch.arange(length) + start + at]).to(device)
        back_LU = before + torch.arange(length, device=device)[:, None] - torch.arange(before + length, device=device)
        yield slice(at, at + length), keys_U, (back_LU < 0) | (back_LU >= (of.heads.window or before + length))
        at += length


def label_softmax_(logits_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label in fp32, and whether it is the first choice (of equals, the first in order); the
    logits become the derivative of the former, onehot(label) - softmax."""
    wide_CV = logits_CV.float()
    logp_CV = wide_CV - wide_CV.logsumexp(-1, keepdim=True)  # log_softmax loses a vocabulary's many small terms
    logp_C = logp_CV.gather(1, y_C[:, None])[:, 0]
    correct_C = logp_CV.argmax(1) == y_C
    gradient_CV = logp_CV.exp_().neg_().scatter_add_(1, y_C[:, None], torch.ones_like(logp_C)[:, None])
    logits_CV.copy_(gradient_CV)
    return logp_C, correct_C


OPERATIONS = Operations(
    norm,
    norm_backward,
    swiglu,
    swiglu_backward,
    attention,
    attention_backward,
    label_softmax_,
)
