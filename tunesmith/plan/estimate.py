"""Bytes that training will need, from the model's shape and the method: coarse figures for transformers and PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_BYTES = {"bf16": 2, "fp32": 4}
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # 4 bits, an 8-bit scale for 64 values, an fp32 one for 256 scales
_PROCESS_BYTES = 900_000_000  # Python, torch, transformers and their code


@dataclass(frozen=True)
class Trained:
    """Parameters that training changes: `added` to the model, or the model's `own`."""

    added: int = 0
    own: int = 0


def trained(model: dict[str, Any], method: dict[str, Any], in_full: int) -> Trained:
    """What a method trains, from its decisions by name; `in_full` counts the parameters of the modules under `layers`.

    Keys and values are counted as wide as the hidden state, which they are at most.
    """
    layers, hidden, intermediate = model["layers"], model["hidden"], model["intermediate"]
    match method["method"]:
        case "full":
            return Trained(own=model["parameters"])
        case "freeze":
            return Trained(own=in_full)
        case "prompt":
            return Trained(method["virtual_tokens"] * hidden)
        case "prefix":
            return Trained(method["virtual_tokens"] * layers * 2 * hidden)
        case "ia3":
            return Trained(layers * (2 * hidden + intermediate))
        case "bottleneck":
            return Trained(layers * (2 * hidden * method["width"] + method["width"] + hidden))
    return Trained(layers * method["rank"] * (9 * hidden + 5 * intermediate) + in_full)  # PEFT trains a copy of these


def weight_bytes(parameters: int, precision: str) -> int:
    return parameters * _BYTES[precision]


def base_bytes(model: dict[str, Any], precision: str, quantised: bool) -> int:
    """The base in memory: its linear layers in 4 bits where it is quantised."""
    packed = model["linear_parameters"] if quantised else 0
    return weight_bytes(model["parameters"] - packed, precision) + round(packed * _NF4_BYTES)


def resident_bytes(
    model: dict[str, Any], precision: str, trains: Trained, *, quantised: bool, divided_by: int = 1
) -> int:
    """What stays in a process's memory over a step: the base, a working copy of what is added to it, and for each
    parameter that trains a gradient, and in fp32 the master, the summed gradient, two moments and the best state so
    far. Where that is divided among processes it is a part of it; but each of them has held the whole base first."""
    state = (trains.added + trains.own) * (_BYTES[precision] + 5 * 4)
    base, added = base_bytes(model, precision, quantised), weight_bytes(trains.added, precision)
    return _PROCESS_BYTES + max(base, (base + added + state) // divided_by)


def bytes_per_token(model: dict[str, Any], precision: str) -> int:
    """Activations kept for backward: about 26 vectors of the hidden and 9 of the intermediate size in each layer."""
    per_layer = 26 * model["hidden"] + 9 * model["intermediate"]
    return int(model["layers"] * per_layer * _BYTES[precision])
