"""Bottleneck adapters: a small feed-forward module behind each block's own (Houlsby et al. 2019).

Placed as Pfeiffer et al. 2020 do, one a block and not a second behind attention: as good, at half the cost. For the
output y of a block's feed-forward module,

    y + up(relu(down(y))),    down: hidden -> width,    up: width -> hidden, zero at first

so that training starts from the base model itself. The nonlinearity is why it cannot be merged into the weights.

On disk, since neither PEFT nor a library for transformers 5 has a format for it: `adapter_model.safetensors` holds, for
each MODULE that `adapter_config.json` lists under `modules` by its name in transformers' model, MODULE.down.weight
(width, hidden), MODULE.down.bias, MODULE.up.weight (hidden, width) and MODULE.up.bias in fp32. A few lines of plain
torch load it; the model card has them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core import store
from tunesmith.core.errors import ModelError

FORMAT = "BOTTLENECK"  # where PEFT's formats have their own name, so that PEFT refuses the folder by this one


class Bottleneck(nn.Module):
    """A feed-forward module with the adapter behind it."""

    def __init__(self, inner: nn.Module, hidden: int, width: int) -> None:
        super().__init__()
        self.inner, self.down, self.up = inner, nn.Linear(hidden, width), nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) in and out."""
        y = self.inner(x)
        return y + self.up(torch.relu(self.down(y)))


def attach(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """Puts a trainable bottleneck behind every module called `mlp`. Raises ModelError where there is none."""
    modules = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "mlp"]
    if not modules:
        raise ModelError(
            f"{type(model).__name__} cannot take bottleneck adapters",
            "they go behind modules called `mlp`, and its blocks have none",
            "write `train.method: lora`, which adapts any linear layer",
        )
    for name in modules:
        _insert(model, name, width)
    return model


def inside(model: nn.Module) -> dict[str, Bottleneck]:
    """The bottlenecks of a model, by the names of the modules that they stand behind."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}


def save(model: PreTrainedModel, base: str, revision: str | None, folder: Path) -> None:
    """Writes the bottlenecks as they are; `base` and `revision` name the model that they belong to."""
    found = inside(model)
    folder.mkdir()
    weights = {name: tensor.detach().contiguous() for name, tensor in _weights(model).items()}
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"base_model_name_or_path": base, "revision": revision, "peft_type": FORMAT, "nonlinearity": "relu"}
    widths = {module.down.out_features for module in found.values()}
    store.write_json(folder / "adapter_config.json", {**about, "width": widths.pop(), "modules": list(found)})


def load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the bottlenecks of a folder, in the model's dtype and ready to answer."""
    config, weights = store.read_json(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    missing = set(config["modules"]) - {name for name, _ in model.named_modules()}
    if missing:
        raise ModelError(
            f"the adapter in {folder} does not fit {type(model).__name__}",
            f"it stands behind {min(missing)}, which this model has not",
            "load it on the base that its adapter_config.json names",
        )
    for name in config["modules"]:
        _insert(model, name, config["width"])
    if {name: w.shape for name, w in weights.items()} != {name: p.shape for name, p in _weights(model).items()}:
        raise ModelError(
            f"the adapter in {folder} is damaged",
            "its weights are not those that its adapter_config.json tells of",
            "export the adapter again",
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Those of the bottlenecks, by the names that they have on disk."""
    return {
        f"{name}.{part}": tensor
        for name, module in inside(model).items()
        for part, tensor in module.named_parameters()
        if not part.startswith("inner.")
    }


def _insert(model: PreTrainedModel, name: str, width: int) -> None:
    parent, _, last = name.rpartition(".")
    hidden = model.config.get_text_config().hidden_size
    bottleneck = Bottleneck(model.get_submodule(name), hidden, width).to(model.device, model.dtype)
    model.get_submodule(parent).register_module(last, bottleneck)
