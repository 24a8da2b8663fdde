"""Attention per document, registered by transformers' public interface under the name "tunesmith_documents"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.core.errors import ModelError

NAME = "tunesmith_documents"


@dataclass(frozen=True)
class Documents:
    """How a packed sequence divides into documents, and the attention to use; handed down to every attention layer."""

    lengths: list[int]
    attention: Callable[..., Tensor]


def register() -> None:
    """Makes NAME an `attn_implementation` of every model; it is called with `documents=Documents(...)`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


def _attention(
    module: nn.Module,
    q_1HTD: Tensor,
    k_1GTD: Tensor,
    v_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over packed documents; returns (1, T, H, D)."""
    if other.get("softcap") or other.get("s_aux") is not None:
        raise ModelError(
            "this architecture's attention is not supported for packed training",
            "it caps its scores or has attention sinks",
            "choose another base (`tunesmith models`)",
        )
    scale = scaling if scaling is not None else q_1HTD.shape[-1] ** -0.5
    o_HTD = documents.attention(q_1HTD[0], k_1GTD[0], v_1GTD[0], documents.lengths, scale, sliding_window)
    return o_HTD.transpose(0, 1)[None], None
