"""Weights from a folder into memory."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tunesmith.core import hardware
from tunesmith.core.errors import ModelError
from tunesmith.models import attention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with quiet():
        return AutoTokenizer.from_pretrained(folder)


def model(
    folder: Path, precision: str, *, packed: bool = False, quantise: str | None = None, on_cpu: bool = False
) -> PreTrainedModel:
    """The model of a folder. `packed` gives it attention per document, to be called with `documents=Documents(...)`.
    `quantise="nf4"` keeps its linear layers, but for the head, in 4 bits, and computes in `precision`. It comes to the
    GPU, where there is one, unless it is to stay `on_cpu`."""
    on_gpu = torch.cuda.is_available() and not on_cpu
    attention.register()
    options: dict[str, Any] = {"dtype": DTYPES[precision]}
    if quantise:
        options["quantization_config"] = _nf4(DTYPES[precision])
        options["device_map"] = {"": torch.cuda.current_device() if on_gpu else "cpu"}
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation=attention.NAME if packed else "sdpa", **options
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded",
            str(error).strip().splitlines()[0],
            "check that the folder is whole, or choose another base (`tunesmith models`)",
        ) from None
    if quantise:
        _keep_differentiable(loaded)
        if not on_gpu:
            hardware.keep_no_holes()  # which weights, unpacked for one product, would leave behind (docs/log.md)
    elif on_gpu:
        loaded = loaded.cuda()
    hardware.give_memory_back()  # the threads that read weights leave more than the model's size behind
    return loaded.eval()


def _nf4(compute: torch.dtype) -> BitsAndBytesConfig:
    """Dettmers et al. 2023, QLoRA: 4-bit NormalFloat in blocks of 64, their scales quantised a second time."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks a weight for good at its first pass without gradients, and what it
    computes from then on passes no gradient to its input: after one validation, training would go silently wrong."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


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
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # of tied heads: we untie on purpose
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
