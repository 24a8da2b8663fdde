"""Log-probabilities of labels under an LM head, without keeping logits.

Why. With a vocabulary of 49,152, the logits of 2,000 tokens are 400 MB in fp32, and autograd would keep several copies.
But the gradient of a token's log-probability with respect to its hidden state,

    u_i = d logp_i / d h_i = W[y_i] - softmax(h_i W^T) W,

needs nothing from backward except one factor per token. Where the head is frozen, the forward pass therefore computes
u_i while the logits of a chunk are at hand and keeps it (N x D values); backward is one multiplication. Two matrix
products instead of three, logits live for one chunk of tokens, and any loss that is a function of per-token
log-probabilities can stand on top. Only label positions come in: what has no label never meets the head.

A head that is trained needs the factors before it can add up its own gradient. The derivatives with respect to the
logits, onehot - softmax, are kept in the dtype of the model as far as `KEPT_BYTES`, and made again past it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.plain import Operations

LOGITS_BYTES = {"cpu": 48 << 20, "cuda": 384 << 20}  # of a chunk; 512 tokens of 49,152 bf16 logits on a CPU
LEAST_CHUNK = 256  # tokens; fewer would starve the matrix products
KEPT_BYTES = 256 << 20


def reference(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch: all logits at once, in fp32 from the matrix product on."""
    logits_NV = (h_ND @ w_VD.t()).float()
    logp_N = logits_NV.log_softmax(-1).gather(1, y_N[:, None])[:, 0]
    return logp_N, logits_NV.argmax(-1) == y_N


def label_logprobs(operations: Operations, h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 log-probability of each label, and whether the label is the first choice."""
    logp_N, correct_N = _LabelLogprobs.apply(h_ND, w_VD, y_N, operations)
    return logp_N, correct_N


class _LabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, w_VD: Tensor, y_N: Tensor, operations: Operations) -> tuple[Tensor, Tensor]:
        N, V = h_ND.shape[0], w_VD.shape[0]
        trained = ctx.needs_input_grad[1]
        keep = trained and N * V * w_VD.element_size() <= KEPT_BYTES
        logp_N = torch.empty(N, dtype=torch.float32, device=h_ND.device)
        correct_N = torch.empty(N, dtype=torch.bool, device=h_ND.device)
        unit_ND = torch.empty_like(h_ND) if ctx.needs_input_grad[0] and not trained else None
        d_NV = h_ND.new_empty(N, V) if keep else _room(_chunk(w_VD), V, h_ND.dtype, h_ND.device)
        for rows in _chunks(N, _chunk(w_VD)):
            d_CV = d_NV[rows] if keep else d_NV[: rows.stop - rows.start]
            torch.mm(h_ND[rows], w_VD.t(), out=d_CV)
            logp_N[rows], correct_N[rows] = operations.label_softmax_(d_CV, y_N[rows])
            if unit_ND is not None:
                torch.mm(d_CV, w_VD, out=unit_ND[rows])
        ctx.operations = operations
        ctx.save_for_backward(*((h_ND, w_VD, y_N, d_NV if keep else None) if trained else (unit_ND,)))
        ctx.mark_non_differentiable(correct_N)
        return logp_N, correct_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_N1 = gradients[0][:, None]
        if not ctx.needs_input_grad[1]:
            (unit_ND,) = ctx.saved_tensors
            return (unit_ND * grad_N1).to(unit_ND.dtype), None, None, None
        h_ND, w_VD, y_N, d_NV = ctx.saved_tensors
        dh_ND, weighted_ND = torch.empty_like(h_ND), (h_ND * grad_N1).to(h_ND.dtype)
        if d_NV is not None:
            torch.mm(d_NV, w_VD, out=dh_ND)
            dw_VD = torch.mm(d_NV.t(), weighted_ND)
        else:
            dw_VD = torch.zeros_like(w_VD, dtype=torch.float32)
            room_CV = _room(_chunk(w_VD), len(w_VD), h_ND.dtype, h_ND.device)
            for rows in _chunks(len(y_N), _chunk(w_VD)):
                d_CV = room_CV[: rows.stop - rows.start]
                torch.mm(h_ND[rows], w_VD.t(), out=d_CV)
                ctx.operations.label_softmax_(d_CV, y_N[rows])
                torch.mm(d_CV, w_VD, out=dh_ND[rows])
                dw_VD += torch.mm(d_CV.t(), weighted_ND[rows])
        return (dh_ND * grad_N1).to(h_ND.dtype), dw_VD.to(w_VD.dtype), None, None


def _chunk(w_VD: Tensor) -> int:
    """The tokens whose logits live at a time."""
    tokens: int = LOGITS_BYTES.get(w_VD.device.type, 0) // (len(w_VD) * w_VD.element_size())
    return max(LEAST_CHUNK, tokens)


@lru_cache(maxsize=1)
def _room(tokens: int, V: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For a chunk's logits, kept from pass to pass: on a CPU it takes long to fill new memory (docs/log.md)."""
    return torch.empty(tokens, V, dtype=dtype, device=device)


def _chunks(tokens: int, chunk: int) -> list[slice]:
    """As few as there must be, and as even as they can."""
    count = -(-tokens // chunk)
    return [slice(tokens * i // count, tokens * (i + 1) // count) for i in range(count)]
