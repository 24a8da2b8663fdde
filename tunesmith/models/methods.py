"""The methods of fine-tuning: what trains, what is frozen, and what stands on disk afterwards.

    full, freeze           the model's own weights, all of them or those of named modules    model/    transformers
    lora                   low-rank matrices beside linear layers; with `layers` a hybrid    adapter/  PEFT
    prompt, prefix, ia3    vectors before the text, keys and values before it, factors       adapter/  PEFT
    bottleneck             a small module behind each block's feed-forward one               adapter/  bottleneck.py

QLoRA. The adapter is trained beside NF4 weights, and it learns to mend their rounding too. Scores, merging and export
therefore stand on the NF4 weights, dequantised in fp32: the model whose loss was minimised. Who puts the adapter on the
unquantised base gets another model, though a near one. Measured once, SmolLM2-135M after 26 steps on 240 tickets of the
support recipe, validation loss in nats a token: 0.206 on the NF4 weights, 0.229 on the base's own (without the adapter
3.53 and 2.91). `quantisation.json` beside the adapter, a BitsAndBytesConfig as JSON, says what it stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core import store
from tunesmith.core.errors import ConfigError, ModelError
from tunesmith.models import bottleneck, load, names

QUANTISATION = "quantisation.json"
_UNMERGEABLE = {"PROMPT_TUNING", "PREFIX_TUNING", bottleneck.FORMAT}


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning; what does not belong to its kind is None or empty."""

    kind: str
    rank: int | None = None
    alpha: float | None = None
    variant: str | None = None
    layers: tuple[str, ...] = ()
    virtual_tokens: int | None = None
    width: int | None = None
    quantise: str | None = None


def of(chosen: dict[str, Any]) -> Method:
    """The method of a plan, from the values of its decisions by name."""
    options = {f.name: chosen[f.name] for f in fields(Method) if f.name in chosen}
    return Method(chosen["method"], **{**options, "layers": tuple(options.get("layers", ()))})


def attach(model: PreTrainedModel, method: Method, seed: int) -> PreTrainedModel | PeftModel:
    """The model with what the method trains, and only that requiring gradients, in the model's dtype. New random
    parameters come from `seed`; before the first step the model still answers as its base does, or, with `prompt` and
    `prefix`, as its base behind a few common words."""
    torch.manual_seed(seed)
    with load.quiet():
        tuned = _ATTACH[method.kind](model.requires_grad_(False), method)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    return tuned


def _full(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    return model.requires_grad_(True)


def _freeze(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    """A head that is tied to the embedding trains with it: they are one weight."""
    for name in names.choose(list(method.layers), _modules(model)):
        model.get_submodule(name).requires_grad_(True)
    return model


def _lora(model: PreTrainedModel, method: Method) -> PeftModel:
    """LoRA on every linear layer but the head (Dettmers et al. 2023, QLoRA); A is random, B is zero. `layers` train in
    full beside it, as PEFT's modules_to_save; a head that is tied to the embedding trains as a copy of its own."""
    whole = names.choose(list(method.layers), _modules(model)) if method.layers else None
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=0.0,
        target_modules=_linears_outside(model, whole) if whole else "all-linear",
        modules_to_save=whole,
        use_rslora=method.variant == "rslora",
        use_dora=method.variant == "dora",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _linears_outside(model: PreTrainedModel, whole: list[str]) -> list[str]:
    head = model.get_output_embeddings()
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and not any(name == outer or name.startswith(f"{outer}.") for outer in whole)
    ]
    if not found:
        raise ConfigError(
            "`train.layers` leaves nothing for `train.method: lora`",
            "every linear layer of the model is to be trained in full",
            "write `train.method: freeze`, or name fewer modules under `train.layers`",
        )
    return found


def _prompt(model: PreTrainedModel, method: Method) -> PeftModel:
    """Prompt tuning, begun from the embeddings of common words (Lester et al. 2021, section 3.2)."""
    ids_V = _common_tokens(model, method)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.virtual_tokens)
    tuned = get_peft_model(model, config)
    tuned.prompt_encoder["default"].embedding.weight.data = model.get_input_embeddings()(ids_V).detach().clone()
    return tuned


def _prefix(model: PreTrainedModel, method: Method) -> PeftModel:
    """Prefix tuning without reparametrisation, begun from the keys and values of common words (Li and Liang 2021,
    section 7.4: far better than random ones where rows are few)."""
    ids_V = _common_tokens(model, method)
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        cache = model(input_ids=ids_V[None], use_cache=True).past_key_values
    model.set_attn_implementation(attention)
    if (kept := min(layer.keys.shape[2] for layer in cache.layers)) < len(ids_V):
        raise ModelError(
            f"a prefix of {len(ids_V)} tokens is longer than this model looks back",
            f"some of its layers keep {kept} keys and values",
            f"lower train.virtual_tokens to {kept}, or write `train.method: prompt`",
        )
    kv_LHVD = torch.cat([part for layer in cache.layers for part in (layer.keys, layer.values)])
    tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.virtual_tokens))
    embedding = tuned.prompt_encoder["default"].embedding
    start = kv_LHVD.permute(2, 0, 1, 3).reshape(len(ids_V), -1)
    if start.shape != embedding.weight.shape:
        raise ModelError(
            f"{type(model).__name__} cannot be tuned by prefixes",
            f"its keys and values are {start.shape[1]} numbers a token, and PEFT makes room for "
            f"{embedding.weight.shape[1]}",
            "write `train.method: prompt`, or choose another base (`tunesmith models`)",
        )
    embedding.weight.data = start.clone()
    return tuned


def _common_tokens(model: PreTrainedModel, method: Method) -> Tensor:
    """Random ones of the 5,000 commonest tokens: those of a BPE vocabulary stand in order of frequency, behind special
    tokens and single bytes."""
    vocabulary = model.get_input_embeddings().num_embeddings
    first = min(256, vocabulary // 2)
    return torch.randint(first, min(first + 5000, vocabulary), (method.virtual_tokens or 0,)).to(model.device)


def _ia3(model: PreTrainedModel, method: Method) -> PeftModel:
    """(IA)3 on keys, values and inner feed-forward channels (Liu et al. 2022); all factors begin at one. Where keys and
    values are no linear layers of their own, the places are those of PEFT's table."""
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if present >= {"k_proj", "v_proj", "down_proj"}:
        places = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    elif model.config.model_type in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        places = {}
    else:
        raise ModelError(
            f"{type(model).__name__} cannot be tuned by IA3",
            "it has no k_proj, v_proj and down_proj, and PEFT does not know its places",
            "write `train.method: lora`, which adapts any linear layer",
        )
    return get_peft_model(model, IA3Config(task_type="CAUSAL_LM", **places), autocast_adapter_dtype=False)


def _bottleneck(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    return bottleneck.attach(model, method.width or 0)


_ATTACH: dict[str, Callable[[PreTrainedModel, Method], PreTrainedModel | PeftModel]] = {
    "full": _full,
    "freeze": _freeze,
    "lora": _lora,
    "prompt": _prompt,
    "prefix": _prefix,
    "ia3": _ia3,
    "bottleneck": _bottleneck,
}


def _modules(model: PreTrainedModel) -> Iterator[str]:
    return (name for name, module in model.named_modules() if name and any(True for _ in module.parameters()))


def bytes_on_disk(model: PreTrainedModel | PeftModel) -> int:
    """What `save` will write: adapters in fp32, whole models in their own dtype."""
    if isinstance(model, PeftModel) or bottleneck.inside(model):
        return 4 * sum(int(p.numel()) for p in model.parameters() if p.requires_grad)
    return sum(int(p.numel() * p.element_size()) for p in model.parameters())


def save(model: PreTrainedModel | PeftModel, state: dict[str, Tensor], hub_id: str | None, out: Path) -> Path:
    """Puts the trained tensors (fp32, by parameter name) into the model, writes `adapter/` or `model/` under `out`, and
    returns that folder. It names its base by the hub's id where there is one, else by the folder it was loaded from.

    An adapter keeps its fp32 values: it is small, and merged in fp32. A whole model is written in the dtype in which it
    computed: every loss that chose it was that of the rounded weights, and fp32 would be twice the size.
    """
    whole = not isinstance(model, PeftModel) and not bottleneck.inside(model)
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.data = state[name].to(parameter.dtype) if whole else state[name]
    base, _, revision = hub_id.partition("@") if hub_id else (model.name_or_path, "", "")
    folder = out / ("model" if whole else "adapter")
    with load.quiet():
        if isinstance(model, PeftModel):
            config = model.peft_config["default"]
            config.base_model_name_or_path, config.revision = base, revision or None
            model.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" would ask the hub
            if quantisation := model.config.to_dict().get("quantization_config"):
                store.write_json(folder / QUANTISATION, quantisation)
        elif whole:
            model.save_pretrained(folder)
        else:
            bottleneck.save(model, base, revision or None, folder)
    return folder


def mergeable(tuned_folder: Path) -> bool:
    """Whether what training left can be one whole model of the base's architecture."""
    return (tuned_folder / "model").is_dir() or _format(tuned_folder) not in _UNMERGEABLE


def merged(base_folder: Path, tuned_folder: Path) -> PreTrainedModel:
    """The tuned model as one whole model, in fp32: rounded to bf16, small updates would be lost in the adding."""
    if (tuned_folder / "model").is_dir():
        return load.model(tuned_folder / "model", "fp32")
    with load.quiet():
        adapter = PeftModel.from_pretrained(_base(base_folder, tuned_folder, "fp32"), str(tuned_folder / "adapter"))
        return adapter.merge_and_unload(safe_merge=True).eval()


def load_tuned(base_folder: Path, tuned_folder: Path, precision: str) -> PreTrainedModel | PeftModel:
    """The tuned model, to score and to answer: merged where it can be, else with its adapter attached."""
    if mergeable(tuned_folder):
        return merged(base_folder, tuned_folder).to(load.DTYPES[precision])
    base = _base(base_folder, tuned_folder, precision)
    if _format(tuned_folder) == bottleneck.FORMAT:
        return bottleneck.load(base, tuned_folder / "adapter")
    with load.quiet():
        return PeftModel.from_pretrained(base, str(tuned_folder / "adapter")).eval()


def _format(tuned_folder: Path) -> str:
    return str(store.read_json(tuned_folder / "adapter" / "adapter_config.json")["peft_type"])


def _base(base_folder: Path, tuned_folder: Path, precision: str) -> PreTrainedModel:
    """The base as the adapter was trained on it: where that was quantised, its 4-bit weights in `precision`."""
    quantisation = tuned_folder / "adapter" / QUANTISATION
    if not quantisation.is_file():
        return load.model(base_folder, precision)
    exact = load.model(base_folder, "fp32", quantise=store.read_json(quantisation)["bnb_4bit_quant_type"])
    with load.quiet():
        return exact.dequantize().to(load.DTYPES[precision])
