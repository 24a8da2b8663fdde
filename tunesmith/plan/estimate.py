"""Bytes that training will need, from the model's shape: coarse figures for eager transformers and PEFT."""

from __future__ import annotations

_BYTES = {"bf16": 2, "fp32": 4}
_PROCESS_BYTES = 900_000_000  # Python, torch, transformers and their code


def weight_bytes(parameters: int, precision: str) -> int:
    return parameters * _BYTES[precision]


def resident_bytes(model: dict[str, int], precision: str, rank: int) -> int:
    """Frozen weights, and for each adapter parameter a working copy, an fp32 master, a gradient and two moments."""
    adapter = model["layers"] * rank * (9 * model["hidden"] + 5 * model["intermediate"])
    return _PROCESS_BYTES + weight_bytes(model["parameters"], precision) + adapter * (2 * _BYTES[precision] + 12)


def bytes_per_token(model: dict[str, int], precision: str, longest: int) -> int:
    """Activations kept for backward: about 26 vectors of the hidden and 9 of the intermediate size in each layer,
    and the attention weights of a row of `longest` tokens."""
    per_layer = 26 * model["hidden"] + 9 * model["intermediate"] + model["heads"] * longest
    return model["layers"] * per_layer * _BYTES[precision]
