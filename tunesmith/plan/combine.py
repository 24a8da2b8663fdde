"""What does not go together in a project, said before any work starts: both keys, and the change to make."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.core import store, tracking
from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Project, Train
from tunesmith.models import names
from tunesmith.models.base import Base

_BELONGS_TO = {  # keys of `train` that only some methods read, and what those are
    "rank": ("lora",),
    "alpha": ("lora",),
    "variant": ("lora",),
    "quantise": ("lora",),
    "layers": ("freeze", "lora"),
    "virtual_tokens": ("prompt", "prefix"),
    "width": ("bottleneck",),
}
_UNMERGEABLE = {
    "prompt": "vectors before the text are no part of any weight",
    "prefix": "keys and values before the text are no part of any weight",
    "bottleneck": "what stands behind a nonlinearity cannot be added to a weight",
}


def check(p: Project, base: Base) -> None:
    """Raises ConfigError for the first pair of settings that cannot both be followed. Patterns of module names are
    compared with the base where its files are at hand, else when the plan is made."""
    _method(p.train, "train", base)
    if p.pretrain:
        _method(p.pretrain.train, "pretrain.train", base)
        method = p.pretrain.train.method
        if method in _UNMERGEABLE:
            raise ConfigError(
                f"`pretrain.train.method: {method}` does not go with the training after it",
                f"that starts from a whole model, and {_UNMERGEABLE[method]}",
                "write `pretrain.train.method: lora`, or `full`",
            )
    if p.export.merged and p.train.method in _UNMERGEABLE:
        why = _UNMERGEABLE[p.train.method]
        raise _conflict("export.merged", True, "train", p.train, why, "write `train.method: lora`")
    if p.export.merged is False and p.train.method in ("full", "freeze"):
        why = "the whole model is all that it makes, so that nothing would be exported"
        raise _conflict("export.merged", False, "train", p.train, why, "write `train.method: lora`")


def _method(train: Train, at: str, base: Base) -> None:
    """`at` is the section's place in the file."""
    settings = dict(train)
    for key, methods in _BELONGS_TO.items():
        if settings[key] not in (None, []) and train.method not in methods:
            why = f"only {' and '.join(methods)} {'read' if len(methods) > 1 else 'reads'} it"
            raise _conflict(f"{at}.{key}", settings[key], at, train, why, f"write `{at}.method: {methods[0]}`")
    if train.method == "freeze" and not train.layers:
        raise ConfigError(
            f"`{at}.method: freeze` needs `{at}.layers`",
            "all modules but those named there are frozen",
            f"add `layers: [lm_head]`, say, under `{at}`; or write `{at}.method: full`",
        )
    if train.quantise:
        _quantised(train, at)
    if train.sharding == "fsdp2" and train.processes == 1:
        raise ConfigError(
            f"`{at}.sharding: fsdp2` does not go with `{at}.processes: 1`",
            "there is nobody to divide the model with",
            f"raise `{at}.processes`, or remove `{at}.sharding`",
        )
    tracking.require(train.trackers, f"{at}.trackers")
    if base.folder:
        _places(train, at, base.folder)
    if train.layers and base.folder:
        names.choose(train.layers, names.of_folder(base.folder), f"{at}.layers")
        if train.method == "lora" and not names.linears_outside(base.folder, train.layers):
            raise ConfigError(
                f"`{at}.layers` leaves nothing for `{at}.method: lora`",
                "every linear layer of the model is to be trained in full",
                f"write `{at}.method: freeze`, or name fewer modules under `{at}.layers`",
            )


def _places(train: Train, at: str, folder: Path) -> None:
    """Some methods go to modules that not every architecture has."""
    present = {name.rpartition(".")[2] for name in names.of_folder(folder)}
    if train.method == "bottleneck" and "mlp" not in present:
        wanted = "modules called `mlp`"
    elif train.method == "ia3" and not present >= {"k_proj", "v_proj", "down_proj"}:
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING  # takes seconds, and is seldom needed

        if (
            store.read_json(folder / "config.json").get("model_type")
            in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        ):
            return
        wanted = "k_proj, v_proj and down_proj, or an architecture that PEFT knows"
    else:
        return
    raise ConfigError(
        f"`{at}.method: {train.method}` does not go with this base",
        f"it needs {wanted}, and the base has none",
        f"write `{at}.method: lora`, which adapts any linear layer",
    )


def _quantised(train: Train, at: str) -> None:
    if train.layers:
        raise ConfigError(
            f"`{at}.layers` does not go with `{at}.quantise: nf4`",
            "weights in 4 bits cannot be trained themselves",
            "remove one of the two",
        )
    if train.processes > 1:
        raise ConfigError(
            f"`{at}.quantise: nf4` does not go with `{at}.processes: {train.processes}`",
            "a model in 4 bits fits into one process, and several with it are not tested",
            f"remove `{at}.processes`, or `{at}.quantise`",
        )
    if not find_spec("bitsandbytes"):
        raise ConfigError(
            f"`{at}.quantise: nf4` needs bitsandbytes",
            "it is not installed in this environment",
            "pip install bitsandbytes",
        )


def _conflict(key: str, value: Any, at: str, train: Train, why: str, instead: str) -> ConfigError:
    shown = str(value).lower() if isinstance(value, bool) else value
    return ConfigError(
        f"`{key}: {shown}` does not go with `{at}.method: {train.method}`", why, f"remove `{key}`, or {instead}"
    )
