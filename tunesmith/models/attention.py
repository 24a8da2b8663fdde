"""Attention per document, registered by transformers' public interface under the name "tunesmith_documents"."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.core.errors import ModelError
from tunesmith.kernels.apply import Kernels
from tunesmith.kernels.plain import Documents, Heads

NAME = "tunesmith_documents"
_BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "attention_bias")  # caps, sinks and biases of scores
Prefixes = list[tuple[Tensor, Tensor]]  # for each layer keys and values that all documents begin with, (G, S, D) each


def register() -> None:
    """Makes NAME an `attn_implementation` of every model; it is called with `documents` and `kernels`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


def _attention(
    module: Any,
    q_1HTD: Tensor,
    k_1GTD: Tensor,
    v_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    kernels: Kernels,
    prefixes: Prefixes | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over packed documents; returns (1, T, H, D)."""
    beyond = [name for name in _BEYOND if other.get(name) is not None]
    if beyond or attention_mask is not None:
        raise ModelError(
            "this architecture's attention is not supported for packed training",
            f"it has {' and '.join(beyond) if beyond else 'a mask of its own'}, which attention per document has not",
            "choose another base (`tunesmith models`)",
        )
    _, H, _, D = q_1HTD.shape
    heads = Heads(H, k_1GTD.shape[1], D, D**-0.5 if scaling is None else scaling, sliding_window)
    q_TC, k_TC, v_TC = (x[0].transpose(0, 1).flatten(1) for x in (q_1HTD, k_1GTD, v_1GTD))
    past = prefixes[module.layer_idx] if prefixes else None
    return kernels.attention(q_TC, k_TC, v_TC, documents, heads, past).unflatten(1, (H, D))[None], None
