"""The kernels as CUDA wants them: few launches, each over all documents.

Why. A GPU multiplies the matrices of a layer in microseconds, so that what costs time on it is the number of launches
and the passes over memory between two products. A loop over documents would be launches without end.

Attention. torch's variable-length flash attention takes all documents at once, by the offsets at which they begin. The
last query of a document stands against its last key, so that a document whose keys begin with those of another (a
shared beginning, or keys from outside) needs nothing but these keys before its own: they are gathered, and in backward,
in fp32, added up.

Layers. What is before attention and what is after it are two functions (layer.py), compiled by torch: norms, rotary
embedding and SwiGLU become a pass each, and backward recomputes them instead of keeping them. All layers share the
compiled code, because weights are arguments; the number of tokens may vary.

The loss needs logits once: their softmax is compiled, too, and takes more tokens at a time than on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import layer, plain
from tunesmith.kernels.layer import Parameters, Shape
from tunesmith.kernels.plain import Documents, Heads, Operations, Past, Turn

DTYPES = (torch.bfloat16, torch.float16)  # of flash attention


@dataclass(frozen=True)
class Layout:
    """Where documents begin among the queries and among the keys, as offsets with the total last; the longest of each;
    and which key stands where, if keys are gathered."""

    starts_q: Tensor
    starts_k: Tensor
    longest_q: int
    longest_k: int
    keys_K: Tensor | None


@lru_cache(maxsize=8)  # all layers of a pass ask for the same one
def layout(lengths: tuple[int, ...], shared: bool, start: int, device: torch.device) -> Layout:
    """Of documents with these lengths behind `start` keys from outside."""
    before = start + (lengths[0] if shared else 0)
    common = [start if shared and i == 0 else before for i in range(len(lengths))]
    keys = [length + beginning for length, beginning in zip(lengths, common)]
    starts_q, starts_k = (
        torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32) for counts in (lengths, keys)
    )
    gathered, at = list[Tensor](), start
    for length, beginning in zip(lengths, common):
        gathered += [torch.arange(beginning), torch.arange(at, at + length)]
        at += length
    keys_K = torch.cat(gathered).to(device) if before else None
    return Layout(starts_q.to(device), starts_k.to(device), max(lengths), max(keys), keys_K)


def flash(q_NHD: Tensor, k_KGD: Tensor, v_KGD: Tensor, at: Layout, heads: Heads) -> Tensor:
    """torch's flash attention over documents: bf16 and fp16, on a GPU, from torch 2.13 on."""
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if heads.window is None else (heads.window - 1, 0)
    offsets = at.starts_q, at.starts_k, at.longest_q, at.longest_k
    found: Tensor = varlen_attn(
        q_NHD, k_KGD, v_KGD, *offsets, scale=heads.scale, window_size=window, enable_gqa=heads.H != heads.G
    )
    return found


def document_attention(
    q_TC: Tensor,
    k_TC: Tensor,
    v_TC: Tensor,
    documents: Documents,
    heads: Heads,
    past: Past = None,
    attend: Callable[[Tensor, Tensor, Tensor, Layout, Heads], Tensor] = flash,
) -> Tensor:
    """As attention.document_attention; `attend` is what computes it."""
    q_THD, k_TGD, v_TGD = (x.unflatten(1, (-1, heads.D)) for x in (q_TC, k_TC, v_TC))
    at = layout(tuple(documents.lengths), documents.shared, past[0].shape[1] if past else 0, q_TC.device)
    if past:
        k_TGD, v_TGD = (torch.cat([p.transpose(0, 1), x]) for p, x in zip(past, (k_TGD, v_TGD)))
    if at.keys_K is not None:
        k_TGD, v_TGD = (x.float().index_select(0, at.keys_K).to(x.dtype) for x in (k_TGD, v_TGD))
    return attend(q_THD, k_TGD, v_TGD, at, heads).flatten(1)


def compiled_layer(backend: str = "inductor", attend: Callable[..., Tensor] = document_attention) -> Any:
    """A function with the signature of layer.layer less its first argument."""
    before = torch.compile(layer.before_attention, fullgraph=True, backend=backend)
    after = torch.compile(layer.after_attention, fullgraph=True, backend=backend)

    def run(x_ND: Tensor, turn: Turn, documents: Documents, shape: Shape, parameters: Parameters) -> Tensor:
        for tensor in (x_ND, *(turn or ())):
            torch._dynamo.mark_dynamic(tensor, 0)
        with torch._dynamo.config.patch(recompile_limit=64):  # a project's stages and methods have layers of many kinds
            q_NC, k_NC, v_NC = before(x_ND, turn, shape, parameters)
            o_NC = attend(q_NC, k_NC, v_NC, documents, shape.heads)
            torch._dynamo.mark_dynamic(o_NC, 0)
            found: Tensor = after(x_ND, o_NC, shape, parameters)
        return found

    return run


def operations(backend: str = "inductor") -> Operations:
    """Those of plain.py, the softmax over the vocabulary compiled."""
    softmax = torch.compile(plain.label_softmax_, fullgraph=True, dynamic=True, backend=backend)
    return replace(plain.OPERATIONS, label_softmax_=softmax)
