"""Weights from a folder into memory, with the document attention registered by transformers' public interface."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tunesmith.core.errors import ModelError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with quiet():
        return AutoTokenizer.from_pretrained(folder)


def model(folder: Path, precision: str, *, packed: bool = False) -> PreTrainedModel:
    """The model of a folder. `packed` gives it attention per document, to be called with `documents=Documents(...)`."""
    AttentionInterface.register("tunesmith_documents", _document_attention)
    AttentionMaskInterface.register("tunesmith_documents", lambda *arguments, **options: None)
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype=DTYPES[precision], attn_implementation="tunesmith_documents" if packed else "sdpa"
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded",
            str(error).strip().splitlines()[0],
            "check that the folder is whole, or choose another base (`tunesmith models`)",
        ) from None
    if torch.cuda.is_available():
        loaded = loaded.cuda()
    return loaded.eval()


def unpack_gguf(gguf: Path, out: Path) -> None:
    """Writes a quantised GGUF file as an ordinary bf16 model folder.

    What transformers reads from GGUF calls itself quantised and cannot be saved; its state dict, put into a model built
    from the same config without the quantisation, can.
    """
    with (
        quiet(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # the GGUF reader draws a bar that ignores transformers' switch
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = type(packed.config).from_dict(
            {
                key: value
                for key, value in packed.config.to_dict().items()
                if key not in ("quantization_config", "dtype")
            }
        )
        plain = type(packed)(config)
        plain.load_state_dict(packed.state_dict())
        plain.tie_weights()
        plain.to(torch.bfloat16).save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


@dataclass(frozen=True)
class Documents:
    """How a packed sequence divides into documents, and the attention to use; handed down to every attention layer."""

    lengths: list[int]
    attention: Callable[..., Tensor]


def _document_attention(
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving are announced by us; transformers' own bars, notes and warnings stay out of the way."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft, not for our users
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
