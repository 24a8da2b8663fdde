"""Weights from a folder into memory."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tunesmith.core.errors import ModelError
from tunesmith.models import attention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with quiet():
        return AutoTokenizer.from_pretrained(folder)


def model(folder: Path, precision: str, *, packed: bool = False) -> PreTrainedModel:
    """The model of a folder. `packed` gives it attention per document, to be called with `documents=Documents(...)`."""
    attention.register()
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype=DTYPES[precision], attn_implementation=attention.NAME if packed else "sdpa"
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
