"""Decoder layers of the Llama family computed by one function each, in place of their modules' forward.

The modules and their parameters stay where they are: what is read, saved and trained is the same. `fuse` puts the
function into every layer that it can serve and says why for the rest; `restore` takes it out again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftModel, PeftType
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from tunesmith.kernels.apply import Kernels
from tunesmith.kernels.layer import Linear, Parameters, Shape
from tunesmith.kernels.plain import Documents, Heads
from tunesmith.models.bottleneck import Bottleneck

_WINDOW: dict[type[nn.Module], Callable[[Any], int | None]] = {  # the layers that the function can serve
    LlamaDecoderLayer: lambda layer: None,
    MistralDecoderLayer: lambda layer: layer.self_attn.config.sliding_window,
    Qwen2DecoderLayer: lambda layer: layer.self_attn.sliding_window,
    Qwen3DecoderLayer: lambda layer: layer.self_attn.sliding_window,
}


def fuse(model: nn.Module) -> list[str]:
    """Fuses the decoder layers of a model, with or without a LoRA in it; returns a note for the layers left alone."""
    restore(model)
    if isinstance(model, PeftModel) and model.active_peft_config.peft_type == PeftType.PREFIX_TUNING:
        return ["the layers run as the model's own modules, which is slower: each has keys and values before its own"]
    obstacles: Counter[str] = Counter()
    fused = 0
    for layer in model.modules():
        if type(layer) in _WINDOW:
            obstacle = _obstacle(layer)
            if obstacle:
                obstacles[obstacle] += 1
            else:
                layer.forward = partial(_forward, layer, layer.forward)
                fused += 1
    if not fused and not obstacles:
        obstacles[f"{type(model).__name__} is of another family"] = 0
    each = [f"{count} layers run" if fused else "the layers run" for count in obstacles.values()]
    return [f"{told} as the model's own modules, which is slower: {why}" for told, why in zip(each, obstacles)]


def restore(model: nn.Module) -> None:
    """Gives every fused layer its own forward back."""
    for layer in model.modules():
        if type(layer) in _WINDOW and "forward" in vars(layer):
            del layer.forward


def _obstacle(layer: Any) -> str | None:
    """Why a layer of the family cannot be fused."""
    if isinstance(layer.mlp, Bottleneck):
        return "bottleneck adapters stand behind their feed-forward modules"
    if layer.mlp.config.hidden_act != "silu":
        return f"its feed-forward layer has {layer.mlp.config.hidden_act}"
    for module in _linears(layer):
        lora = type(module) is LoraLinear
        base = module.base_layer if lora else module
        if type(base) is not nn.Linear:
            return f"{type(base).__name__} is not a plain or LoRA linear"
        if lora and (module.lora_variant or any(module.lora_bias.values()) or module.merged):
            return "its LoRA is of a kind of its own"
        if lora and any(type(dropout) is not nn.Identity for dropout in module.lora_dropout.values()):
            return "its LoRA has dropout"
        if lora and list(module.active_adapters) != ["default"]:
            return "several adapters are active"
    return None


def _linears(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    )


def _forward(
    layer: Any,
    own_forward: Callable[..., Tensor],
    hidden_states: Tensor,
    *arguments: Any,
    documents: Documents | None = None,
    kernels: Kernels | None = None,
    **others: Any,
) -> Tensor:
    """A decoder layer's forward: fused for a packed sequence, the module's own for everything else."""
    if documents is None or kernels is None or kernels.layer is None:
        packed = {} if documents is None else {"documents": documents, "kernels": kernels}
        return own_forward(hidden_states, *arguments, **packed, **others)
    cos_1TD, sin_1TD = others["position_embeddings"]
    turn = cos_1TD[0].contiguous(), sin_1TD[0].contiguous()
    output_TD = kernels.layer(hidden_states[0], turn, documents, _shape(layer), _parameters(layer))
    return output_TD[None]


def _shape(layer: Any) -> Shape:
    attention = layer.self_attn
    D = attention.head_dim
    heads = [projection.out_features // D for projection in (attention.q_proj, attention.k_proj)]
    window = _WINDOW[type(layer)](layer)
    scales = tuple(m.scaling["default"] if type(m) is LoraLinear else 1.0 for m in _linears(layer))
    return Shape(
        Heads(heads[0], heads[1], D, attention.scaling, window), layer.input_layernorm.variance_epsilon, scales
    )


def _parameters(layer: Any) -> Parameters:
    q, k, v, o, gate, up, down = map(_linear, _linears(layer))
    norms: tuple[Tensor | None, Tensor | None] = (None, None)
    if type(layer) is Qwen3DecoderLayer:
        norms = layer.self_attn.q_norm.weight, layer.self_attn.k_norm.weight
    first, middle = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return Parameters(first, q, k, v, norms[0], norms[1], o, middle, gate, up, down)


def _linear(module: Any) -> Linear:
    if type(module) is nn.Linear:
        return Linear(module.weight, module.bias)
    base = module.base_layer
    if module.disable_adapters:
        return Linear(base.weight, base.bias)
    return Linear(base.weight, base.bias, module.lora_A["default"].weight, module.lora_B["default"].weight)
