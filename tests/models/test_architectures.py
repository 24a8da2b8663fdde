"""Models of several families, with random small weights, train packed: fused where the family allows it, else as their
own modules, and either way with the loss and the gradients of transformers' own forward pass, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tunesmith.core.errors import ModelError
from tunesmith.models import attention, fused, methods, packed
from tunesmith.models.methods import Method
from tunesmith.models.tokens import Tokens

SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4, head_dim=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(  # values narrower than keys
        DeepseekV3Config(
            **SHAPE,
            num_key_value_heads=4,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            q_lora_rank=12,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=6,
        )
    ),
    "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(**GROUPED, num_local_experts=4, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    ),
}
FUSED = {"llama", "mistral", "qwen2", "qwen3"}
LINEARS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phimoe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "deepseek_v3": ["q_b_proj", "kv_b_proj", "o_proj"],
}
LENGTHS = [9, 5, 14, 7]


class Rows(Tokens):
    """Four random rows that begin alike; all but their first nine tokens are learnt."""

    def __init__(self) -> None:
        make = torch.Generator().manual_seed(3)
        parts = [torch.randint(97, (n + 9,), generator=make) for n in LENGTHS]
        for part in parts:
            part[:9] = parts[0][:9]
        self.ids = torch.cat(parts).int().numpy()
        self.learnt = torch.cat([torch.arange(len(part)) >= 9 for part in parts]).numpy()
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0).numpy()


def made(family: str, method: str) -> PreTrainedModel | PeftModel:
    """A model with weights that are no special case: norms and biases are random too, and so is a LoRA's B."""
    torch.manual_seed(0)
    model: Any = FAMILIES[family]()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    if method == "lora":
        layers = LINEARS.get(family, "all-linear")
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=layers, task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()  # type: ignore[no-any-return]


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers_own(family: str, method: str) -> None:
    model, rows = made(family, method), Rows()
    scorer = packed.fast(model)
    assert bool(scorer.notes) == (family not in FUSED)
    batch = packed.pack(rows, [0, 1, 2, 3], torch.device("cpu"))
    assert batch.documents.shared
    loss = -scorer(batch)[0].sum()
    found = gradients(model, loss)

    fused.restore(model)
    model.set_attn_implementation("eager") if method == "full" else model.get_base_model().set_attn_implementation(
        "eager"
    )
    own = torch.zeros(())
    for i in range(len(rows)):
        ids, learnt = (torch.from_numpy(array.copy()) for array in rows.row(i))
        logits = model(input_ids=ids.long()[None], use_cache=False).logits[0, :-1]
        own = own + torch.nn.functional.cross_entropy(logits[learnt[1:]], ids[1:][learnt[1:]].long(), reduction="sum")
    wanted = gradients(model, own)
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_what_is_fused_can_be_restored() -> None:
    model = made("llama", "lora")
    before = [type(m).forward for m in model.modules()]
    packed.fast(model)
    assert any("forward" in vars(m) for m in model.modules())
    fused.restore(model)
    assert not any("forward" in vars(m) for m in model.modules())
    assert [type(m).forward for m in model.modules()] == before


@pytest.mark.parametrize("change", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}], ids=str)
def test_what_cannot_be_fused_is_said(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **change))
    (note,) = fused.fuse(tuned)
    assert ("dropout" if "lora_dropout" in change else "of a kind of its own") in note
    assert "slower" in note


def test_disabled_adapters_are_left_out() -> None:
    model, rows = made("llama", "lora"), Rows()
    scorer, batch = packed.fast(model), packed.pack(rows, [0, 1], torch.device("cpu"))
    with_adapter = scorer(batch)[0]
    with model.disable_adapter():  # type: ignore[operator]
        without = scorer(batch)[0]
        fused.restore(model)
        torch.testing.assert_close(without, scorer(batch)[0])
    assert not torch.allclose(with_adapter, without)


def test_a_model_whose_rows_do_not_stay_apart_is_refused() -> None:
    """LFM2 has short convolutions, which would run on from one row into the next."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"])
    attention.register()
    model = Lfm2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 5  # what is just made predicts all but the same everywhere
    model.set_attn_implementation(attention.NAME)
    with pytest.raises(ModelError, match="cannot be trained packed") as error:
        packed.require_same_loss(packed.fast(model), Rows())
    assert "from one row to the next" in error.value.why


def unsupported() -> dict[str, PreTrainedModel]:
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GptOssConfig,
        GptOssForCausalLM,
        Llama4ForCausalLM,
        Llama4TextConfig,
    )

    chunked = Llama4TextConfig(
        **GROUPED, head_dim=8, intermediate_size_mlp=16, num_local_experts=2, attention_chunk_size=4
    )
    return {
        "softcap": Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8)),
        "s_aux": GptOssForCausalLM(GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2)),
        "a mask of its own": Llama4ForCausalLM(chunked),
    }


@pytest.mark.parametrize("what", ["softcap", "s_aux", "a mask of its own"])
def test_what_attention_per_document_lacks_is_named(what: str) -> None:
    attention.register()
    model = unsupported()[what].eval()
    model.set_attn_implementation(attention.NAME)
    with pytest.raises(ModelError, match="not supported") as error:
        packed.require_same_loss(packed.fast(model), Rows())
    assert f"it has {what}" in error.value.why


def test_dropout_of_the_base_is_told_to_be_off() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4)).eval()
    assert "the base's dropout is off (resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.1)" in packed.fast(gpt2).notes[-1]
    llama = LlamaForCausalLM(LlamaConfig(**GROUPED, attention_dropout=0.2)).eval()
    assert "(attention_dropout 0.2)" in packed.fast(llama).notes[-1]
    assert "forward" in vars(llama.model.layers[0])  # and its layers are fused


def test_a_model_that_keeps_its_attention_to_itself_is_refused() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    attention.register()
    model = FalconForCausalLM(FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ModelError, match="cannot be trained packed"):
        packed.require_same_loss(packed.fast(model.eval()), Rows())


def test_a_model_without_a_limit_of_positions_is_refused_like_others() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    attention.register()
    model = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ModelError, match="cannot be trained packed"):
        packed.require_same_loss(packed.fast(model.eval()), Rows())


@pytest.mark.parametrize("what", ["a bias", "final_logit_softcapping 30", "logits_scaling 8"])
def test_what_ours_lack_of_the_logits_is_named_even_where_it_changes_no_loss_yet(what: str) -> None:
    attention.register()
    model = LlamaForCausalLM(LlamaConfig(**GROUPED)).eval()
    model.set_attn_implementation(attention.NAME)
    if what == "a bias":
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(97))
    else:
        setattr(model.config, what.split()[0], float(what.split()[1]))
    with pytest.raises(ModelError, match="cannot be trained packed") as error:
        packed.require_same_loss(packed.fast(model), Rows())
    assert error.value.why == f"its logits have {what}, which ours have not"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_all_others_stay_apart(family: str) -> None:
    model = made(family, "lora")
    packed.require_same_loss(packed.fast(model), Rows())


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_that_would_turn_each_others_positions_are_refused(kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 20, **factors}
    model = LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters=rope, max_position_embeddings=40)).eval()
    model.set_attn_implementation(attention.NAME)
    with pytest.raises(ModelError, match="beside shorter ones") as error:
        packed.require_same_loss(packed.fast(model), Rows())
    assert error.value.next == "set data.format.max_tokens to 20"


def test_a_base_whose_loss_is_not_a_number_is_not_blamed_for_its_layers() -> None:
    model = made("llama", "lora")
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="own loss is not a number"):
        packed.require_same_loss(packed.fast(model), Rows())


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_prefix_must_lie_within_what_layers_look_back_over(family: str) -> None:
    methods.attach(FAMILIES[family](), Method("prefix", virtual_tokens=3), 0)
    with pytest.raises(ModelError, match="longer than this model looks back") as error:
        methods.attach(FAMILIES[family](), Method("prefix", virtual_tokens=5), 0)
    assert "virtual_tokens to 3" in error.value.next
