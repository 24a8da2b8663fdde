"""Attention per document, registered by transformers' public interface under the name "tunesmith_documents"."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.core.errors import ModelError
from tunesmith.kernels.apply import Kernels
from tunesmith.kernels.plain import Documents, Heads

NAME = "tunesmith_documents"
_UNHEEDED = {"dropout", "position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions"}
Prefixes = list[tuple[Tensor, Tensor]]  # for each layer keys and values that all documents begin with, (G, S, D) each


def register() -> None:
    """Makes NAME an `attn_implementation` of every model; it is called with `documents` and `kernels`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*, config: Any, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> int | None:
    """In place of a mask, how many keys back it lets a query see: attention per document makes the rest. transformers
    says `use_vmap` where a model adds conditions of its own, and gives the size of chunks as that of a window."""
    if use_vmap or (local_size and local_size != vars(config).get("sliding_window")):
        raise _unsupported("a mask of its own")
    return local_size


def _attention(
    module: Any,
    q_1HTD: Tensor,
    k_1GTD: Tensor,
    v_1GTD: Tensor,
    attention_mask: int | Tensor | None,
    *,
    documents: Documents,
    kernels: Kernels,
    prefixes: Prefixes | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over packed documents; returns (1, T, H, D). The mask tells the window, as it
    does elsewhere; many layers repeat it. Raises ModelError for whatever else a model asks of its attention."""
    if beyond := [name for name, value in other.items() if value is not None and name not in _UNHEEDED]:
        raise _unsupported(" and ".join(beyond))
    window = attention_mask
    if isinstance(window, Tensor) or is_causal is False or sliding_window not in (None, window):
        raise _unsupported("a mask of its own")
    _, H, _, D = q_1HTD.shape
    if (narrower := D - v_1GTD.shape[-1]) and (prefixes or narrower < 0 or k_1GTD.shape[-1] != D):
        raise _unsupported("values of another width than its keys")
    v_1GTD = pad(v_1GTD, (0, narrower)) if narrower else v_1GTD  # with zeros, whose mean is zero
    heads = Heads(H, k_1GTD.shape[1], D, D**-0.5 if scaling is None else scaling, window)
    q_TC, k_TC, v_TC = (x[0].transpose(0, 1).flatten(1) for x in (q_1HTD, k_1GTD, v_1GTD))
    past = prefixes[module.layer_idx] if prefixes else None
    found_1THD = kernels.attention(q_TC, k_TC, v_TC, documents, heads, past).unflatten(1, (H, D))[None]
    return found_1THD[..., : D - narrower], None


def _unsupported(what: str) -> ModelError:
    return ModelError(
        "this architecture's attention is not supported for packed training",
        f"it has {what}, which attention per document has not",
        "choose another base (`tunesmith models`)",
    )
