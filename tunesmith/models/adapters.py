"""LoRA adapters, in PEFT's own format on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tunesmith.models.load import quiet


def add_lora(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> PeftModel:
    """LoRA on every linear layer but the head (Dettmers et al. 2023, QLoRA); A is random from `seed`, B is zero."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet():
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def save(model: PeftModel, state: dict[str, torch.Tensor], hub_id: str | None, folder: Path) -> None:
    """Writes these trainable tensors (fp32, by parameter name) as a plain PEFT adapter. It names its base by the hub's
    id where there is one, else by the folder that it was loaded from."""
    if hub_id:
        model.peft_config["default"].base_model_name_or_path, _, revision = hub_id.partition("@")
        model.peft_config["default"].revision = revision or None
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.data = state[name]
    with quiet():
        model.save_pretrained(str(folder))


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter added to its weights. In fp32: rounded to bf16, small updates would be lost."""
    with quiet():
        return PeftModel.from_pretrained(model.float(), str(folder)).merge_and_unload(safe_merge=True)
