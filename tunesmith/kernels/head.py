"""Log-probabilities of labels under a frozen LM head, without keeping logits.

Why. With a vocabulary of 49,152, the logits of 2,000 tokens are 400 MB in fp32, and autograd would keep several copies.
But the head is frozen, and the gradient of a token's log-probability with respect to its hidden state,

    u_i = d logp_i / d h_i = W[y_i] - softmax(h_i W^T) W,

needs nothing from backward except one factor per token. So the forward pass computes u_i while the logits of a chunk
are at hand and keeps it (N x D values); backward is one multiplication. Two matrix products instead of three, logits
live for one chunk of `CHUNK` tokens, and any loss that is a function of per-token log-probabilities can stand on top.
Only label positions come in: what has no label never meets the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # tokens; 256 x 49,152 fp32 logits are 50 MB


def reference(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch: all logits at once, in fp32 from the matrix product on."""
    logits_NV = (h_ND @ w_VD.t()).float()
    logp_N = logits_NV.log_softmax(-1).gather(1, y_N[:, None])[:, 0]
    return logp_N, logits_NV.argmax(-1) == y_N


def label_logprobs(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 log-probability of each label, and whether the label is the first choice. Gradient goes to `h_ND` only."""
    logp_N, correct_N = _LabelLogprobs.apply(h_ND, w_VD, y_N)
    return logp_N, correct_N


class _LabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
        N = h_ND.shape[0]
        logp_N = torch.empty(N, dtype=torch.float32, device=h_ND.device)
        correct_N = torch.empty(N, dtype=torch.bool, device=h_ND.device)
        unit_ND = torch.empty_like(h_ND) if ctx.needs_input_grad[0] else None
        for at in range(0, N, CHUNK):
            rows = slice(at, min(at + CHUNK, N))
            y_C = y_N[rows, None]
            logits_CV = (h_ND[rows] @ w_VD.t()).float()
            label_C, top_C = logits_CV.gather(1, y_C), logits_CV.amax(1, keepdim=True)
            correct_N[rows] = (label_C == top_C)[:, 0]
            p_CV = logits_CV.sub_(top_C).exp_()
            sum_C = p_CV.sum(1, keepdim=True)
            logp_N[rows] = (label_C - top_C - sum_C.log())[:, 0]
            if unit_ND is not None:
                p_CV.div_(sum_C).scatter_add_(1, y_C, torch.full_like(label_C, -1.0))
                unit_ND[rows] = -(p_CV.to(w_VD.dtype) @ w_VD)
        ctx.save_for_backward(*(() if unit_ND is None else (unit_ND,)))
        ctx.mark_non_differentiable(correct_N)
        return logp_N, correct_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (unit_ND,) = ctx.saved_tensors
        return (unit_ND * gradients[0][:, None]).to(unit_ND.dtype), None, None
