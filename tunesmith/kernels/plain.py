"""The elementwise work of a decoder layer in plain torch: what native.cpp must agree with, and what runs without it.

Shapes: N tokens, D features, I features of the feed-forward layer; B matrices of L queries by U keys; C rows of V
logits.
Functions whose name ends in an underscore write their result over their first argument, as torch's do.

Heads live in two orders. Token order is what matrix products over features want: (N, H * D). Document order is what
attention wants: document by document, within it head by head, so that each document's heads are one contiguous block.
There a document may have more room than it has tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Turn = tuple[Tensor, Tensor] | None  # cosines and sines of the rotary embedding, (N, D) each


@dataclass(frozen=True)
class Operations:
    """The functions of this module, or others that agree with them."""

    norm: Callable[..., Any]
    norm_backward: Callable[..., Any]
    swiglu: Callable[..., Any]
    swiglu_backward: Callable[..., Any]
    to_documents: Callable[..., Any]
    to_tokens: Callable[..., Any]
    softmax_: Callable[..., Any]
    softmax_backward_: Callable[..., Any]
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


def to_documents(
    tokens_NC: Tensor, lengths: list[int], rooms: list[int], depth: int, turn: Turn, scale: float
) -> Tensor:
    """Heads of `depth` features from token to document order, turned by the rotary embedding and scaled. Each document
    gets room for so many tokens; what it does not fill is zero."""
    heads_NHD = tokens_NC.unflatten(1, (-1, depth)).float()
    if turn:
        cos_N1D, sin_N1D = (part[:, None].float() for part in turn)
        heads_NHD = heads_NHD * cos_N1D + _rotated(heads_NHD) * sin_N1D
    heads_NHD = (heads_NHD * scale).to(tokens_NC.dtype)
    parts = zip(heads_NHD.split(lengths), lengths, rooms)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 0, 0, room - length)) for part, length, room in parts]
    return torch.cat([part.transpose(0, 1).flatten() for part in padded])


def to_tokens(
    documents: Tensor, lengths: list[int], rooms: list[int], depth: int, turn: Turn, scale: float, out_NC: Tensor
) -> None:
    """The transpose of `to_documents`: what it makes of values, this makes of their gradients; written to `out_NC`."""
    heads = out_NC.shape[1] // depth
    parts = documents.split([room * heads * depth for room in rooms])
    filled = [p.view(heads, -1, depth)[:, :length].transpose(0, 1) for p, length in zip(parts, lengths)]
    heads_NHD = torch.cat(filled).float() * scale
    if turn:
        cos_N1D, sin_N1D = (part[:, None].float() for part in turn)
        heads_NHD = heads_NHD * cos_N1D - _rotated(heads_NHD * sin_N1D)
    out_NC.copy_(heads_NHD.flatten(1))


def _rotated(heads_NHD: Tensor) -> Tensor:
    low, high = heads_NHD.chunk(2, -1)
    return torch.cat([-high, low], -1)


def softmax_(scores_BLU: Tensor, offset: int, window: int | None) -> None:
    """Query i sees the keys up to i + offset, and no more than `window` of them."""
    scores_BLU.masked_fill_(_hidden(scores_BLU, offset, window), float("-inf"))
    scores_BLU.copy_(scores_BLU.float().softmax(-1))


def softmax_backward_(grad_BLU: Tensor, weights_BLU: Tensor, offset: int) -> None:
    """From the gradient of the weights to that of the scores."""
    grad_BLU.masked_fill_(_hidden(grad_BLU, offset, None), 0.0)  # what no query sees was never computed with care
    wide_BLU, weights_BLU = grad_BLU.float(), weights_BLU.float()
    grad_BLU.copy_(weights_BLU * (wide_BLU - (weights_BLU * wide_BLU).sum(-1, keepdim=True)))


def _hidden(scores_BLU: Tensor, offset: int, window: int | None) -> Tensor:
    ones = torch.ones(scores_BLU.shape[1:], dtype=torch.bool, device=scores_BLU.device)
    return ones.triu(1 + offset) if window is None else ones.triu(1 + offset) | ones.tril(offset - window)


def label_softmax_(logits_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label in fp32, and whether it is the first choice; the logits become the derivative of
    the former, onehot(label) - softmax."""
    logp_CV = logits_CV.float().log_softmax(-1)
    logp_C = logp_CV.gather(1, y_C[:, None])[:, 0]
    correct_C = logp_C == logp_CV.amax(1)
    gradient_CV = logp_CV.exp_().neg_().scatter_add_(1, y_C[:, None], torch.ones_like(logp_C)[:, None])
    logits_CV.copy_(gradient_CV)
    return logp_C, correct_C


OPERATIONS = Operations(
    norm,
    norm_backward,
    swiglu,
    swiglu_backward,
    to_documents,
    to_tokens,
    softmax_,
    softmax_backward_,
    label_softmax_,
)
