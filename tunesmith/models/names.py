"""Modules chosen by name: patterns such as `layers.28`, `layers.2?.mlp` or `lm_head`. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from tunesmith.core.errors import ConfigError
from tunesmith.models import base


def of_folder(folder: Path) -> set[str]:
    """Names of the modules with parameters of their own or within, from the headers of a folder's weight files. A head
    that is tied to the embedding stands in no file; it is named all the same."""
    modules: set[str] = {"lm_head"}
    for tensor in base.tensors(folder):
        parts = tensor.split(".")[:-1]
        modules |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return modules


def choose(patterns: list[str], names: Iterable[str], key: str = "train.layers") -> list[str]:
    """The outermost modules that the patterns name, each by its last parts: `layers.2` is model.layers.2, and not
    model.layers.12. Raises ConfigError, naming the project's `key`, for a pattern that names none."""
    names = sorted(names)
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")}
        if not matching:
            raise _names_nothing(pattern, names, key)
        found |= matching
    return [name for name in names if name in found and not any(name.startswith(f"{outer}.") for outer in found)]


def linears_outside(folder: Path, patterns: list[str]) -> set[str]:
    """The linear layers within a model's blocks that the patterns leave, as far as weight files tell: matrices below a
    numbered module."""
    chosen = choose(patterns, of_folder(folder))
    matrices = {name.rpartition(".")[0] for name, shape in base.tensors(folder).items() if len(shape) == 2}
    blocks = {name for name in matrices if any(part.isdigit() for part in name.split("."))}
    return {name for name in blocks if not any(name == outer or name.startswith(f"{outer}.") for outer in chosen)}


def parameters(folder: Path, patterns: list[str]) -> int:
    """How many parameters the patterns name. A head that stands in no file is tied to the embedding, the largest weight
    of a model."""
    chosen = choose(patterns, of_folder(folder)) if patterns else []
    weights = {name: prod(shape) for name, shape in base.tensors(folder).items()}
    total = sum(size for name, size in weights.items() if any(name.startswith(f"{outer}.") for outer in chosen))
    return total + (max(weights.values()) if "lm_head" in chosen and "lm_head.weight" not in weights else 0)


def _names_nothing(pattern: str, names: list[str], key: str) -> ConfigError:
    endings = {".".join(parts[n:]) for parts in (name.split(".") for name in names) for n in range(len(parts))}
    near = difflib.get_close_matches(pattern, endings, 3, 0.5)
    return ConfigError(
        f"`{key}`: no module of this model is called `{pattern}`",
        f"close to it are {', '.join(f'`{name}`' for name in near)}" if near else f"there is, say, `{names[-1]}`",
        "name modules by the last parts of their names, such as `layers.0` or `layers.*.mlp`",
    )
